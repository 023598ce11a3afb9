"""Perturbed copies in a user's corpus: those at another speed are left out, others stay in the part of their original."""

from __future__ import annotations

from pathlib import Path

from local.corpus.copies import KIND, original_name, originals, without_speed_copies
from local.corpus.dropped import Dropped
from local.corpus.pairs import whole_file
from local.corpus.splits import split_off
from tests.corpus.stage_one import stage_1, tones

import pytest
from lhotse import CutSet, Recording, SupervisionSegment


def cuts_of(folder: Path, *names: str) -> CutSet:
    """Return a cut of each file, without speakers."""
    cuts = []
    for name in names:
        cut = Recording.from_file(folder / f"{name}.wav").to_cut()
        cut.id = name
        cut.supervisions = [SupervisionSegment(name, cut.recording.id, 0.0, cut.duration, text=f"text {name}")]
        cuts.append(cut)
    return CutSet.from_cuts(cuts)


def test_icefalls_copies_in_cuts_are_left_out_and_counted(tmp_path: Path) -> None:
    names = tones(tmp_path, *"abcdefgh")
    cuts = cuts_of(tmp_path, *names)
    (cuts + cuts.perturb_speed(0.9) + cuts.perturb_speed(1.1)).to_file(tmp_path / "cuts_train.jsonl.gz")
    found, dropped = stage_1(tmp_path, tmp_path / "work", test="[test]")
    assert {u.id: u.hertz for part in found.values() for u in part} == names
    assert len(dropped) == 16 and {d.kind.split(":")[0] for d in dropped} == {KIND.split(":")[0]}


def test_copies_that_kept_their_ids_are_recognised_by_the_transform(tmp_path: Path) -> None:
    names = tones(tmp_path, "a", "b")
    cuts = cuts_of(tmp_path, *names)
    fast = CutSet.from_cuts(cut.perturb_speed(1.1, affix_id=False) for cut in cuts)
    (cuts + fast).to_file(tmp_path / "cuts_train.jsonl.gz")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert {u.id: u.hertz for u in found["train"]} == names and len(dropped) == 2
    assert {d.kind.split(":")[0] for d in dropped} == {KIND.split(":")[0]}


def test_copies_in_recordings_and_supervisions(tmp_path: Path) -> None:
    names = tones(tmp_path, "a", "b")
    cuts = cuts_of(tmp_path, *names)
    recordings, supervisions, _ = (cuts + cuts.perturb_speed(0.9)).decompose(verbose=False)
    recordings.to_file(tmp_path / "recordings_train.jsonl.gz")
    supervisions.to_file(tmp_path / "supervisions_train.jsonl.gz")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert {u.id: u.hertz for u in found["train"]} == names and {d.id for d in dropped} == {"a_sp0.9", "b_sp0.9"}


def test_a_copy_whose_original_is_absent_stays(tmp_path: Path) -> None:
    tones(tmp_path, "a", "b")
    cuts = cuts_of(tmp_path, "a", "b")
    slow = cuts.perturb_speed(0.5)
    CutSet.from_cuts([cuts[0], slow[0], slow[1]]).to_file(tmp_path / "cuts_train.jsonl.gz")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert [u[:3] for u in found["train"]] == [("a", "TEXT A", 200), ("b_sp0.5", "TEXT B", 110)]
    assert [d.id for d in dropped] == ["a_sp0.5"]


def test_copies_in_files_of_their_own_are_recognised_by_name_and_text() -> None:
    rows = {
        "a": "x",
        "sp0.9-a": "x",
        "a_sp1.1": "x",
        "b_sp1.1": "x",
        "c": "x",
        "c_sp1.1": "another text",
        "d_sp2": "x",
        "d": "x",
    }
    pairs = [whole_file(name, Path(f"{name}.wav"), text, None) for name, text in rows.items()]
    dropped: list[Dropped] = []
    kept = [segment.id for _, segment in without_speed_copies(pairs, "train", dropped)]
    assert [d.id for d in dropped] == ["sp0.9-a", "a_sp1.1"]
    assert kept == ["a", "b_sp1.1", "c", "c_sp1.1", "d_sp2", "d"]


@pytest.mark.parametrize(
    "name", ["u_sp0.9", "u_tp1.05", "u_vp0.125", "u_ln-23.0", "u_rvb", "u_sp1.1_vp2.0_rvb", "rev1-u", "sp0.9-u"]
)
def test_marks_of_copies(name: str) -> None:
    assert original_name(name) == "u"
    assert original_name(f"{name}x") != "u"


def test_a_split_keeps_copies_with_their_original(tmp_path: Path) -> None:
    """By name and, for copies of another name, by place in the file; also across speakers that Kaldi renamed."""
    names = [f"u{i}" for i in range(60)]
    tones(tmp_path, names[0])
    pairs = []
    for name in names:
        pairs += [whole_file(f"{name}{mark}", tmp_path / f"{name}{mark}.wav", "x", None) for mark in ("", "_rvb", "_vp0.5")]
        pairs.append(whole_file(f"other-{name}", tmp_path / f"{name}.wav", "x", None))
    inside, outside = split_off(pairs, "dev", 0.1, tmp_path)
    groups = [{s.id.split("_")[0].removeprefix("other-") for _, s in side} for side in (inside, outside)]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 60 and 20 <= len(inside) <= 48
    pairs = [
        whole_file(f"{mark}{i}", Path(f"{mark}{i}.wav"), "x", f"{mark}{i % 8}") for i in range(160) for mark in ("rev1-", "")
    ]
    inside, outside = split_off(pairs, "dev", 0.1, tmp_path)
    speakers = [{(s.speaker or "").removeprefix("rev1-") for _, s in side} for side in (inside, outside)]
    assert not speakers[0] & speakers[1] and len(speakers[0] | speakers[1]) == 8


def test_segments_of_one_recording_are_not_copies_of_each_other() -> None:
    recording, segment = whole_file("r", Path("r.wav"), "x", None)
    segments = [SupervisionSegment(f"s{i}", "r", 0.5 * i, 0.5, text="x") for i in range(5)]
    segments.append(SupervisionSegment("again", "r", 1.01, 0.5, text="x"))
    assert originals([(recording, s) for s in segments]) == ["s0", "s1", "again", "s3", "s4", "again"]
