"""Corpora as users have them: ids that meet, parts of an earlier preparation, marks at the start of a file, linked noise."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

from local.common.errors import UserError
from local.config import load_config
from local.corpus.audio_paths import AUDIO_ENDINGS
from local.corpus.corpus_yaml import parts_of
from local.corpus.dropped import Dropped
from local.corpus.lhotse_manifests import items
from local.corpus.librispeech import read_part
from local.data.channels import make_cuts
from local.data.token_counts import TokenCounter
from local.data.tokenizer import train_tokenizer
from local.data.training_cuts import ShuffledCuts
from local.prepare_noise import read_cuts, read_folder
from tests.conftest import ROOT
from tests.corpus.noise_corpus import RATE, lhotse_manifests, prepare, recording, segment, write

import pytest
from lhotse import CutSet, SupervisionSegment


def test_ids_of_channels_do_not_meet_those_of_other_recordings(tmp_path: Path) -> None:
    pairs = []
    for name in ("call", "call-0"):
        write(tmp_path / f"{name}.wav", 1, channels=2)
        pairs.append((recording(tmp_path / f"{name}.wav", channels=2), segment(name, [0, 1])))
    ids = [cut.id for cut in make_cuts(pairs, 16000, "both", "train")]
    assert len(set(ids)) == 4


def test_a_part_of_an_earlier_preparation_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "corpus.yaml").write_text("name: a\nsource: custom\ntrain: [train]\ndev: [mine]\ntest: []\n")
    (tmp_path / "cuts").mkdir()
    for part in ("train", "train2", "dev", "mine"):
        (tmp_path / "cuts" / f"{part}.jsonl.gz").touch()
    assert parts_of(["dev"], tmp_path, load_config(None).data) == ["mine"]
    with pytest.raises(UserError, match=r"'train2'.* mine, train.*cuts/train2\.jsonl\.gz"):
        parts_of(["train2"], tmp_path, load_config(None).data)


def test_a_byte_order_mark_costs_no_line(tmp_path: Path) -> None:
    lines = "".join(f'{{"id": "{i}", "recording_id": "{i}", "start": 0, "duration": 1, "channel": 0}}\n' for i in "ab")
    dropped: list[Dropped] = []
    for path, opened in ((tmp_path / "x.jsonl", open), (tmp_path / "x.jsonl.gz", gzip.open)):
        with opened(path, "wt", encoding="utf-8-sig") as file:  # type: ignore[operator]
            file.write(lines)
        assert [item.id for _, item in items(path, SupervisionSegment, "train", dropped)] == ["a", "b"] and not dropped


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_the_line_that_is_not_utf_8_is_named(tmp_path: Path, ending: str) -> None:
    line = b'{"id": "a", "recording_id": "a", "start": 0, "duration": 1, "channel": 0}\n'
    text = 49 * line + line.replace(b'"a"', b'"\xff"') + 50 * line
    (tmp_path / f"x.{ending}").write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    with pytest.raises(UserError, match=rf"x\.{ending}:50: .*UTF-8"):
        list(items(tmp_path / f"x.{ending}", SupervisionSegment, "train", []))


def test_a_start_below_zero_by_rounding_is_zero(tmp_path: Path) -> None:
    corpus = tmp_path / "mine"
    write(corpus / "a.wav", 1)
    lhotse_manifests(corpus, [recording(corpus / "a.wav")], [segment("a", start=-0.0005, duration=0.9)])
    cuts, _ = prepare(corpus, "data.dev_parts=[]", "data.test_parts=[]")
    assert cuts["a"].start == 0 and cuts["a"].duration == pytest.approx(0.8995, abs=1e-4)


@pytest.mark.parametrize("order", ["pq", "qp"])
def test_tokens_are_counted_by_part(tmp_path: Path, order: str) -> None:
    """Ids are unique within a part only."""
    tokenizer = train_tokenizer(["ONE TWO"] * 20, 10)
    for part, text in (("p", "one two"), ("q", "ONE TWO")):
        supervision = {"id": "1", "recording_id": "1", "start": 0, "duration": 2.0, "channel": 0, "text": text}
        cut = {"id": "1", "duration": 2.0, "supervisions": [supervision], "recording": {"sampling_rate": RATE}}
        (tmp_path / f"{part}.jsonl.gz").write_bytes(gzip.compress(json.dumps(cut).encode()))
    counter = TokenCounter(tokenizer)
    cuts = ShuffledCuts([tmp_path / f"{part}.jsonl.gz" for part in order], counter, 1, False, False)
    assert cuts.usable == 1 and counter.report().startswith("1 of 2 ")


def test_the_speaker_is_the_folder(tmp_path: Path) -> None:
    for speaker in ("anna-maria", "anna-lena"):
        write(tmp_path / "train" / speaker / "1" / f"{speaker}-1-0.flac", 1)
        (tmp_path / "train" / speaker / "1" / "x.trans.txt").write_text(f"{speaker}-1-0 ONE\n")
    assert {s.speaker for _, s in read_part(tmp_path, "train", [])} == {"anna-maria", "anna-lena"}


def test_noise_is_found_through_links_and_relative_paths(tmp_path: Path) -> None:
    write(tmp_path / "there" / "hum.wav", 1)
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "link").symlink_to(tmp_path / "there")
    left_out: list[Dropped] = []
    name = os.fsdecode(b"ger\xe4usch.wav")
    (tmp_path / "noise" / name).write_bytes((tmp_path / "there" / "hum.wav").read_bytes())
    assert [cut.recording_id for cut in read_folder(tmp_path / "noise", 1, left_out)] == ["link/hum"]
    assert [d.kind for d in left_out] == ["file name that is not UTF-8; rename the file"]
    relative = recording(Path("there/hum.wav")).to_cut()
    CutSet.from_cuts([relative]).to_file(tmp_path / "cuts.jsonl.gz")
    assert len(read_cuts(tmp_path / "cuts.jsonl.gz", 1, left_out)) == 1


def test_the_shell_knows_all_audio_endings() -> None:
    """Their names, sizes and times count, not their content."""
    text = (ROOT / "local" / "signatures.sh").read_text()
    (endings,) = [line.partition("'")[2].partition("'")[0] for line in text.splitlines() if "local endings=" in line]
    assert {f".{ending}" for ending in endings.split()} == {*AUDIO_ENDINGS, ".tar"}
