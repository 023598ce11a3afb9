"""One id stands for one audio: what has an id that is taken keeps its own audio under another id, or is listed."""

from __future__ import annotations

import time
from pathlib import Path

from local.common.errors import UserError
from local.corpus.copies import without_speed_copies
from local.corpus.ctm import with_alignments
from local.corpus.dropped import Dropped
from local.corpus.pairs import audio_of, place_of, whole_file, with_unique_ids
from tests.corpus.stage_one import stage_1, tone, tones

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from lhotse import AudioSource, CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.utils import fastcopy


def recording(path: Path, name: str) -> Recording:
    return Recording.from_file(path, recording_id=name)


def cut(path: Path, name: str, text: str) -> MonoCut:
    made = recording(path, f"rec-{name}").to_cut()
    made.id = name
    made.supervisions = [SupervisionSegment(name, f"rec-{name}", 0.0, made.duration, text=text)]
    return made


def test_two_cuts_with_one_id_and_different_files_are_two_utterances(tmp_path: Path) -> None:
    tones(tmp_path, "x", "y", "z")
    cuts = [cut(tmp_path / "x.wav", "a", "ex"), cut(tmp_path / "y.wav", "a", "why"), cut(tmp_path / "z.wav", "b", "zed")]
    cuts += [cut(tmp_path / "x.wav", "a", "ex")]  # the same once more
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts_train.jsonl.gz")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert [u[:3] for u in found["train"]] == [("a", "EX", 200), ("a-2", "WHY", 220), ("b", "ZED", 240)]
    assert [(d.id, d.kind.split(",")[0]) for d in dropped] == [("a", "duplicate id")]


def test_a_manifest_names_the_channel(tmp_path: Path) -> None:
    """By the cut, whatever its supervision says; or by a recording that states only the second channel of its file."""
    samples = np.stack([soundfile.read(tone(tmp_path / "tone.wav", hertz))[0] for hertz in (300, 500)], axis=1)
    (tmp_path / "tone.wav").unlink()
    soundfile.write(tmp_path / "two.wav", samples, 8000)
    made = recording(tmp_path / "two.wav", "r")
    one = cut(tmp_path / "two.wav", "c", "one")
    mono = MonoCut("c", 0.0, 0.5, 1, supervisions=one.supervisions, recording=made)
    CutSet.from_cuts([mono]).to_file(tmp_path / "cuts_train.jsonl.gz")
    stated = fastcopy(made, sources=[fastcopy(made.sources[0], channels=[1])], channel_ids=[1])
    RecordingSet.from_recordings([stated]).to_file(tmp_path / "recordings_test.jsonl.gz")
    segment = SupervisionSegment("s", "r", 0.0, 0.5, channel=1, text="two")
    SupervisionSet.from_segments([segment]).to_file(tmp_path / "supervisions_test.jsonl.gz")
    found, _ = stage_1(tmp_path, tmp_path / "work", test="[test]")
    assert [u[:3] for u in found["train"] + found["test"]] == [("c", "ONE", 500), ("s", "TWO", 500)]


def test_one_id_for_all_audio_takes_no_more_time_than_others() -> None:
    """Each new number was looked for from 2 on: 20,000 equal ids took a minute."""
    pairs = [whole_file("a", Path(f"/x/{i}.wav"), "T", None) for i in range(20_000)]
    began = time.process_time()
    found = with_unique_ids(pairs, "train")
    assert time.process_time() - began < 8
    assert [segment.id for _, segment in found] == ["a", *(f"a-{n}" for n in range(2, 20_001))]


def test_cuts_of_different_recordings_with_one_id_keep_their_audio(tmp_path: Path) -> None:
    tones(tmp_path, "x", "y")
    cuts = [cut(tmp_path / "x.wav", "a", "ex"), cut(tmp_path / "y.wav", "b", "why")]
    for c in cuts:
        c.recording.id = c.supervisions[0].recording_id = "rec"
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts_train.jsonl.gz")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert [u[:3] for u in found["train"]] == [("a", "EX", 200), ("b", "WHY", 220)] and not dropped


def test_a_recording_id_twice_with_different_files_is_listed(tmp_path: Path) -> None:
    tones(tmp_path, "x", "y", "z")
    files = [("x", "r"), ("y", "r"), ("z", "s"), ("z", "s")]
    made = [recording(tmp_path / f"{name}.wav", key) for name, key in files]
    with (tmp_path / "recordings_train.jsonl").open("w") as out:
        for i, r in enumerate(made):
            RecordingSet.from_recordings([r]).to_file(tmp_path / f"one{i}.jsonl")
            out.write((tmp_path / f"one{i}.jsonl").read_text())
    segments = [("u", "r", "ex"), ("v", "r", "why"), ("w", "s", "zed")]
    SupervisionSet.from_segments(SupervisionSegment(i, r, 0.0, 0.5, text=t) for i, r, t in segments).to_file(
        tmp_path / "supervisions_train.jsonl"
    )
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert [u[:3] for u in found["train"]] == [("u", "EX", 200), ("w", "ZED", 240)]
    listed = {d.id: d.kind for d in dropped}
    assert listed.keys() == {"r", "v"}  # v's text lies on u's, so it belongs to the other file
    assert "duplicate recording id" in listed["r"] and "y.wav" in listed["r"] and "train.jsonl:2" in listed["r"]


def test_two_shards_with_the_same_ids_are_both_used(tmp_path: Path) -> None:
    """As exported apart: both have the cuts 0, 1, 2."""
    names = tones(tmp_path / "audio", *"abcdef")
    (tmp_path / "train").mkdir()
    for shard, group in enumerate(("abc", "def")):
        cuts = CutSet.from_cuts([cut(tmp_path / f"audio/{name}.wav", str(i), name) for i, name in enumerate(group)])
        (tmp_path / f"shard{shard}").mkdir()
        cuts.to_shar(tmp_path / f"shard{shard}", {"recording": "wav"}, shard_size=10)
        for path in (tmp_path / f"shard{shard}").iterdir():
            path.rename(tmp_path / "train" / path.name.replace("000000", f"{shard:06d}"))
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert {u.text: u.hertz for u in found["train"]} == {name.upper(): hertz for name, hertz in names.items()}
    assert sorted(u.id for u in found["train"]) == ["0", "0-2", "1", "1-2", "2", "2-2"] and not dropped


def test_a_shard_with_one_id_twice_gives_each_cut_its_audio(tmp_path: Path) -> None:
    tones(tmp_path / "audio", "a", "b", "c")
    cuts = CutSet.from_cuts([cut(tmp_path / f"audio/{name}.wav", "0", name) for name in "abc"])
    (tmp_path / "train").mkdir()
    cuts.to_shar(tmp_path / "train", {"recording": "wav"}, shard_size=10)
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert [u[:3] for u in found["train"]] == [("0", "A", 200), ("0-2", "B", 220), ("0-3", "C", 240)] and not dropped


def test_a_table_with_one_id_for_different_files(tmp_path: Path) -> None:
    tones(tmp_path, "x", "y")
    rows = ["id\tpath\ttext", "u 1\tx.wav\tex", "u_1\ty.wav\twhy", "u 1\t./x.wav\tagain"]
    (tmp_path / "train.tsv").write_text("\n".join(rows))
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert [u[:3] for u in found["train"]] == [("u_1", "EX", 200), ("u_1-2", "WHY", 220)]
    assert [d.id for d in dropped] == ["u_1"]  # one audio, two texts: the first is kept


def test_an_id_that_training_gives_to_a_copy_is_avoided(tmp_path: Path) -> None:
    tones(tmp_path, "x", "y")
    (tmp_path / "train.tsv").write_text("id\tpath\ttext\nu\tx.wav\tex\nu_sp0.9\ty.wav\twhy\n")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert [u[:3] for u in found["train"]] == [("u", "EX", 200), ("u_sp0.9-2", "WHY", 220)] and not dropped


def test_times_of_words_belong_to_the_audio_beside_them(tmp_path: Path) -> None:
    pairs = [whole_file("u", tone(tmp_path / f"1/{chapter}/u.wav", 200), "one", None) for chapter in "ab"]
    for chapter, word in (("a", "ONE"), ("b", "TWO")):
        (tmp_path / f"1/{chapter}/{chapter}.ctm").write_text(f"u 1 0.1 0.2 {word}\n")
    words = [[item.symbol for item in segment.alignment["word"]] for _, segment in with_alignments(pairs, tmp_path)]
    assert words == [["ONE"], ["TWO"]]
    (tmp_path / "1/a/b.ctm").write_text("u 1 0.1 0.2 THREE\n")
    with pytest.raises(UserError, match=r"b.ctm:1: u .*a.ctm"):
        with_alignments(pairs, tmp_path)


names = st.sampled_from(["a", "b", "a-2", "a_sp0.9", "a_sp1.1", "sp0.9-a", "a_sp0.9-2"])
utterances = st.lists(st.tuples(names, names, st.sampled_from("xyz"), st.sampled_from([0.0, 0.5]), st.sampled_from([1.0, 0.9])))


@given(utterances)
def test_any_utterances_keep_their_audio_or_are_listed(rows: list[tuple[str, str, str, float, float]]) -> None:
    """Whatever ids utterances and recordings have; the text tells which file and which place in it an utterance has."""
    pairs = []
    for segment_id, recording_id, file, start, speed in rows:
        found = Recording(recording_id, [AudioSource("file", [0], f"{file}.wav")], 8000, 16000, 2.0)
        found = found if speed == 1 else found.perturb_speed(speed, affix_id=False)
        text = f"{file} {start}" if segment_id != "b" else file
        pairs.append((found, SupervisionSegment(segment_id, recording_id, start / speed, 0.5 / speed, text=text)))
    dropped: list[Dropped] = []
    kept = with_unique_ids(without_speed_copies(pairs, "train", dropped), "train")
    assert len(kept) + len(dropped) == len(rows)
    by_id: dict[str, object] = {}
    recordings: dict[str, object] = {}
    for found, segment in kept:
        assert segment.recording_id == found.id and (segment.text or "")[0] == found.sources[0].source[0]
        assert recordings.setdefault(found.id, audio_of(found)) == audio_of(found)
        assert by_id.setdefault(segment.id, (audio_of(found), place_of(segment))) == (audio_of(found), place_of(segment))
    assert not {f"{name}_sp{speed}" for name in by_id for speed in (0.9, 1.1)} & set(by_id)
