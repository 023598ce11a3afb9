"""Checks of parts: unreadable and empty manifests, dropped utterances, small parts."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

from local.common.errors import UserError
from local.corpus.splits import ENOUGH
from local.health.finding import guarded
from local.health.parts import check_dropped, check_manifests, check_sizes
from tests.health.prepared_data import Folder, run, words, write_data

import pytest

GOOD = {"dropped": {}, "utterances": 100}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_data(tmp_path, {"train": words("train", 60), "dev": words("dev", 30)})


def write_summary(folder: Folder, content: object) -> None:
    (folder.path / "summary.json").write_text(json.dumps(content))


def test_manifests_is_quiet(folder: Folder) -> None:
    assert run(check_manifests, folder) == []


@pytest.mark.parametrize(
    "line", ['{"id": "a"', '{"id": "a"}', '{"id": "a", "supervisions": [{"id": "a"}], "recording": 3}', "[]"]
)
def test_manifests_fires_for_a_damaged_line(folder: Folder, line: str) -> None:
    path = folder.path / "cuts" / "dev.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join([*lines[:4], line, *lines[5:]]).encode()))
    (found,) = run(check_manifests, folder)
    assert found.level == "error" and f"{path}:5" in found.what
    assert run(check_sizes, folder) == []  # the other checks leave the part out


def test_manifests_fires_for_parts_without_utterances(folder: Folder) -> None:
    (folder.path / "cuts" / "train.jsonl.gz").unlink()
    (folder.path / "cuts" / "dev.jsonl.gz").write_bytes(gzip.compress(b""))
    found = run(check_manifests, folder)
    assert [f.level for f in found] == ["error", "error"] and "train.jsonl.gz" in found[0].what and "'dev'" in found[1].what


def test_dropped_is_quiet(folder: Folder) -> None:
    assert run(check_dropped, folder) == []  # without a summary, which an older version did not write
    write_summary(
        folder, {"parts": {"train": {"utterances": 90, "dropped": {"missing audio file": 10}}}, "cuts": {"train": GOOD}}
    )
    assert run(check_dropped, folder) == []


def test_dropped_fires(folder: Folder) -> None:
    lost = {"train": {"utterances": 89, "dropped": {"missing audio file": 11}}}
    late = {"dev": {"utterances": 80, "dropped": {"shorter than one frame after subsampling": 20}}}
    write_summary(folder, {"parts": lost, "cuts": late})
    first, second = run(check_dropped, folder)
    assert "11 of 100" in first.what and "missing audio file" in first.what and "20 of 100" in second.what


@pytest.mark.parametrize("content", [{"parts": [1]}, {"parts": {"train": 3}}, {"cuts": {"dev": {"dropped": {"odd": "many"}}}}])
def test_dropped_fires_for_a_damaged_summary(folder: Folder, content: object) -> None:
    write_summary(folder, content)
    (found,) = guarded(check_dropped(folder.path, folder.cfg(), False))
    assert found.level == "error" and "summary.json" in found.what


def test_sizes_is_quiet(folder: Folder) -> None:
    assert run(check_sizes, folder) == []


def test_sizes_fires_for_few_utterances_and_for_one_speaker(tmp_path: Path) -> None:
    few, alone = words("dev", ENOUGH - 1), words("test", 30, speakers=1)
    found = run(check_sizes, write_data(tmp_path, {"train": words("train", 60), "dev": few, "test": alone}, ["test"]))
    assert [("'dev'" in f.what, "'test'" in f.what) for f in found] == [(True, False), (False, True)]


def test_sizes_is_quiet_for_unknown_speakers(tmp_path: Path) -> None:
    unknown = [replace(utterance, speaker=None) for utterance in words("dev", 30)]
    assert run(check_sizes, write_data(tmp_path, {"train": words("train", 60), "dev": unknown})) == []


def test_sizes_is_quiet_if_the_corpus_has_one_speaker(tmp_path: Path) -> None:
    parts = {"train": words("all", 60, speakers=1), "dev": words("all", 30, speakers=1)}
    assert run(check_sizes, write_data(tmp_path, parts)) == []


def test_a_folder_that_is_not_prepared_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="corpus.yaml"):
        list(check_manifests(tmp_path, Folder(tmp_path).cfg(), False))
