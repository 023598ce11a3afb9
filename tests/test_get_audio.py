"""Getting audio: which parts are downloaded, and the errors of a failing network; see tests/corpus/test_archives.py."""

from __future__ import annotations

from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

from local.common.errors import UserError
from local.corpus import archives
from local.corpus.archives import MUSAN, Archive
from local.corpus.corpus_yaml import Corpus
from local.get_audio import fetch, fetch_musan

import pytest


def corpus(source: str, *parts: str, **options: object) -> Corpus:
    return Corpus(source, source, [parts[0]], list(parts[1:]), list(parts[1:]), options)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Return the archives that were asked for; each then is there."""
    found: list[tuple[str, Path]] = []

    def get(archive: Archive, out: Path, part: str = "") -> None:
        found.append((archive.name, out))
        (out / archive.folder / part).mkdir(parents=True)

    monkeypatch.setattr(archives, "get", get)
    return found


def test_each_part_is_downloaded_once(tmp_path: Path, asked: list[tuple[str, Path]]) -> None:
    for _ in range(2):
        fetch(corpus("mini_librispeech", "train-clean-5", "dev-clean-2"), tmp_path, 1)
        assert asked == [("train-clean-5.tar.gz", tmp_path), ("dev-clean-2.tar.gz", tmp_path)]


def test_a_part_that_is_split_off_is_not_downloaded(tmp_path: Path, asked: list[tuple[str, Path]]) -> None:
    fetch(Corpus("mini", "mini_librispeech", ["train-clean-5"], ["dev"], ["dev-clean-2"], {"split": 0.1}), tmp_path, 1)
    assert [name for name, _ in asked] == ["train-clean-5.tar.gz", "dev-clean-2.tar.gz"]
    with pytest.raises(UserError, match="'train-5'"):
        fetch(Corpus("mini", "mini_librispeech", ["train-5"], ["dev"], [], {"split": 0.1}), tmp_path, 1)
    with pytest.raises(UserError, match="'dev-clean'"):
        fetch(Corpus("mini", "mini_librispeech", ["train-clean-5"], ["dev"], ["dev-clean"], {"split": 0.1}), tmp_path, 1)


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        HTTPError("http://x/y.tar.gz", 404, "Not Found", None, None),  # type: ignore[arg-type]
        IncompleteRead(b"", 3),
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
    ],
)
def test_a_failing_network_names_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(archives, "resumable_download", failing)
    with pytest.raises(UserError, match="/31/train-clean-5.tar.gz"):
        fetch(corpus("mini_librispeech", "train-clean-5"), tmp_path, 1)


def test_unknown_parts_and_sources_stop(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mini_librispeech .*'dev-clean'.* dev-clean-2"):
        fetch(corpus("mini_librispeech", "dev-clean"), tmp_path, 1)
    with pytest.raises(UserError, match="--corpus-dir"):
        fetch(corpus("custom", "train"), tmp_path, 1)
    with pytest.raises(UserError, match="options.seed.*'x'"):
        fetch(corpus("tiny", "train", seed="x"), tmp_path, 1)


def test_musan_is_downloaded_if_it_is_missing(tmp_path: Path, asked: list[tuple[str, Path]]) -> None:
    for _ in range(2):
        fetch_musan(tmp_path / "musan")
        assert asked == [(MUSAN.name, tmp_path)]
    with pytest.raises(UserError, match="augment.musan=.*noises"):
        fetch_musan(tmp_path / "noises")
