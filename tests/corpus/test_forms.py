"""Forms in which people have their speech: Common Voice, LJSpeech, NeMo, lhotse's own names, any table, audio beside .txt."""

from __future__ import annotations

import json
import os
from pathlib import Path

from local.common.errors import UserError
from local.corpus.corpus_yaml import Corpus
from local.corpus.custom import read_given
from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair
from local.corpus.shard_store import ShardStore
from tests.corpus.stage_one import Found, stage_1, tone, tones
from tests.corpus.test_copies import cuts_of

import pytest


def given(folder: Path, train: list[str], dev: list[str], test: list[str]) -> dict[str, list[Pair]]:
    return read_given(folder, Corpus("own", "custom", train, dev, test), [], ShardStore(folder / "s", 1.0), str)


def heard(found: list[Found]) -> dict[str, tuple[str, int]]:
    return {u.id: (u.text, u.hertz) for u in found}


def test_common_voice(tmp_path: Path) -> None:
    """Its paths count from clips/, with an ending or, in the first releases, without; quotes are part of the text."""
    tones(tmp_path / "clips", "cv_1", "cv_2", "cv_3", ending=".mp3")
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale"
    (tmp_path / "train.tsv").write_text(f'{header}\nanna\tcv_1.mp3\tx\tSay "one\t2\ten\nben\tcv_2\ty\ttwo\t2\ten\n')
    (tmp_path / "test.tsv").write_text(f"{header}\ncleo\tcv_3.mp3\tz\tthree\t2\ten\n")
    (tmp_path / "validated.tsv").write_text(f"{header}\n")
    found, dropped = stage_1(tmp_path, tmp_path / "work", test="[test]")
    assert heard(found["train"]) == {"cv_1": ('SAY "ONE', 200), "cv_2": ("TWO", 220)} and not dropped
    assert heard(found["test"]) == {"cv_3": ("THREE", 240)} and [u.speaker for u in found["train"]] == ["anna", "ben"]


def test_ljspeech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No header, no endings, commas and quotes in the texts; the third column is the normalised text."""
    tones(tmp_path / "wavs", "LJ001-0001", "LJ001-0002", "LJ001-0003")
    rows = ['LJ001-0001|Printing, "in 1455, A|printing, "in fourteen fifty-five, a', "LJ001-0002|in Dr. B|in doctor b"]
    (tmp_path / "metadata.csv").write_text("\n".join([*rows, "LJ001-0003|being modern|"]))
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]) == {
        "LJ001-0001": ('PRINTING, "IN FOURTEEN FIFTY-FIVE, A', 200),
        "LJ001-0002": ("IN DOCTOR B", 220),
        "LJ001-0003": ("BEING MODERN", 240),
    }
    assert not dropped and "3 text" in capsys.readouterr().out


def test_a_list_of_path_speaker_text_with_bars(tmp_path: Path) -> None:
    tones(tmp_path, "a", "b")
    (tmp_path / "train.txt").write_text("a.wav|12|one two\nb.wav|13|three\n")
    found, _ = stage_1(tmp_path, tmp_path / "work")
    assert [(u.text, u.speaker) for u in found["train"]] == [("ONE TWO", "12"), ("THREE", "13")]


@pytest.mark.parametrize("name", ["train.json", "train_manifest.json", "manifest_train.jsonl", "an4.json"])
def test_nemo(tmp_path: Path, name: str) -> None:
    """JSON lines; offset and duration are a segment, a duration alone is that of the file, however rounded."""
    pitches = tones(tmp_path / "wav", "a", "b")
    rows = [
        {"audio_filepath": "wav/a.wav", "duration": 0.52, "text": "one"},
        {"audio_filepath": "wav/b.wav", "duration": 0.2, "offset": 0.1, "text": "two", "speaker": 7},
        {"audio_filepath": "wav/b.wav", "duration": 0.15, "offset": 0.3, "text": "three"},
    ]
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows)) + '\n{"text": "no file"}\n[1]\n{broken\n')
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]) == {
        "a": ("ONE", pitches["a"]),
        "b-0000100-0000300": ("TWO", pitches["b"]),
        "b-0000300-0000450": ("THREE", pitches["b"]),
    }
    assert [d.id for d in dropped] == [f"{tmp_path / name}:{n}" for n in (4, 5, 6)]


def test_a_segment_without_a_start_begins_the_file(tmp_path: Path) -> None:
    """Such a row got the whole file, and the text of a part of it."""
    tones(tmp_path, "a", "b")
    rows = ("path\ttext\tstart\tend\tduration", "a.wav\tone\t\t0.3\t", "a.wav\ttwo\t0.3\t\t0.1", "b.wav\tthree\t\t\t0.4")
    (tmp_path / "train.tsv").write_text("\n".join(rows))
    pairs = given(tmp_path, ["train"], [], [])["train"]
    assert [(s.text, s.start, s.duration) for _, s in pairs] == [("one", 0.0, 0.3), ("two", 0.3, 0.1), ("three", 0.0, 0.0)]


@pytest.mark.parametrize("damage", [b"{broken", b"[1]"])
def test_a_bad_first_line_does_not_hide_a_table_of_json(tmp_path: Path, damage: bytes) -> None:
    tones(tmp_path, "a")
    (tmp_path / "train.json").write_bytes(damage + b'\n{"audio_filepath": "a.wav", "text": "one"}\n')
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]) == {"a": ("ONE", 200)}
    assert [d.id for d in dropped] == [f"{tmp_path / 'train.json'}:1"]


def test_a_line_of_json_that_is_not_text_is_named(tmp_path: Path) -> None:
    tones(tmp_path, "a")
    (tmp_path / "train.json").write_bytes(b'{"audio_filepath": "a.wav", "text": "one"}\n\xff\n')
    with pytest.raises(UserError, match=r"train\.json:2"):
        given(tmp_path, ["train"], [], [])


@pytest.mark.parametrize("names", [("wav", "txt", "key"), ("audio", "sentence", "id")])
def test_json_lines_of_other_tools(tmp_path: Path, names: tuple[str, str, str]) -> None:
    tones(tmp_path, "a")
    path = {"path": "a.wav"} if names[0] == "audio" else "a.wav"
    (tmp_path / "train.jsonl").write_text(json.dumps(dict(zip(names, (path, "one", "first"), strict=True))))
    found, _ = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]) == {"first": ("ONE", 200)}


@pytest.mark.parametrize("place", ["", "train"])
@pytest.mark.parametrize("form", ["cuts", "recordings"])
def test_lhotses_own_names_with_relative_paths(tmp_path: Path, place: str, form: str) -> None:
    folder = tmp_path / place
    pitches = tones(folder / "audio", "a", "b")
    cuts = cuts_of(folder / "audio", *pitches)
    for cut in cuts:
        cut.recording.sources[0].source = f"audio/{cut.id}.wav"
    if form == "cuts":
        cuts.to_file(folder / "cuts.jsonl.gz")
    else:
        recordings, supervisions, _ = cuts.decompose(verbose=False)
        recordings.to_file(folder / "recordings.jsonl.gz")
        supervisions.to_file(folder / "supervisions.jsonl.gz")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]) == {name: (f"TEXT {name.upper()}", hertz) for name, hertz in pitches.items()} and not dropped


@pytest.mark.parametrize("place", ["", "train"])
def test_a_lone_table_of_any_name(tmp_path: Path, place: str) -> None:
    """In the folder or in that of the part (Hugging Face's metadata.csv); other tables are not tables of speech."""
    folder = tmp_path / place
    tones(folder, "a", "b")
    (folder / "metadata.csv").write_text("file_name,transcription\na.wav,one\nb.wav,two\n")
    (folder / "README.txt").write_text("About this\tcorpus\n")
    (folder / "durations.tsv").write_text("clip\tms\nx\t5\n")
    found, _ = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]) == {"a": ("ONE", 200), "b": ("TWO", 220)}


def test_two_tables_that_could_be_it_are_named(tmp_path: Path) -> None:
    tones(tmp_path, "a")
    for name in ("x.tsv", "y.tsv"):
        (tmp_path / name).write_text("a.wav\tone\n")
    with pytest.raises(UserError, match=r"2 tables: x.tsv, y.tsv.*train.tsv"):
        given(tmp_path, ["train"], [], [])
    assert list(given(tmp_path, ["x"], ["y"], [])) == ["x", "y"]


@pytest.mark.parametrize("place", ["", "train"])
def test_audio_beside_its_txt(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    tones(folder / "1", "a", "b", "bare")
    tone(folder / "2" / "a.flac", 300)
    for name, text in (("1/a", "one\ntwo\n"), ("1/b", "three"), ("2/a", "four"), ("2/text", "five")):
        (folder / f"{name}.txt").write_text(text)
    tone(folder / "1" / "b.mp3", 400)
    tone(tmp_path / "test" / "t.wav", 500)
    (tmp_path / "test" / "t.txt").write_text("six")
    (folder / "1" / "bad.txt").write_bytes(b"\xff")
    tone(folder / "1" / "bad.wav", 300)
    found, dropped = stage_1(tmp_path, tmp_path / "work", test="[test]")
    assert heard(found["train"]) == {"1-a": ("ONE TWO", 200), "b": ("THREE", 220), "2-a": ("FOUR", 300)}
    assert heard(found["test"]) == {"t": ("SIX", 500)}
    assert {(d.id, d.kind.split(":")[0]) for d in dropped} == {
        ("bare", "audio without transcript"),
        ("text", "transcript without audio"),
        ("b", "second audio file of a transcript"),
        ("bad", "transcript cannot be read"),
    }


def test_links_to_folders_of_audio_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    tones(folder, "a")
    tones(tmp_path / "elsewhere" / "deep", "x", "b")
    for file in (folder / "a.txt", tmp_path / "elsewhere" / "deep" / "b.txt"):
        file.write_text(file.stem)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    found, dropped = stage_1(folder, tmp_path / "work")
    assert heard(found["train"]) == {"a": ("A", 200), "b": ("B", 220)}
    assert [(d.id, d.kind.split(":")[0]) for d in dropped] == [("x", "audio without transcript")]


def test_file_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    """Latin-1 names; manifests are UTF-8 and cannot hold them."""
    tones(tmp_path, "a", "b", "c")
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("one")
    folder = os.fsencode(tmp_path)
    for ending in (b".wav", b".txt"):
        os.rename(folder + b"/b" + ending, folder + b"/caf\xe9" + ending)
    os.rename(folder + b"/c.wav", folder + b"/\xe9.wav")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]) == {"a": ("ONE", 200)}
    assert {(d.id, "UTF-8" in d.kind) for d in dropped} == {(r"caf\udce9", True), (r"\udce9", False)}


def test_files_that_need_ffmpeg_are_found(tmp_path: Path) -> None:
    """Whether they can be decoded is another question."""
    for name in ("a.m4a", "b.webm"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "train.tsv").write_text("a\tone\nb\ttwo\n")
    assert [Path(r.sources[0].source).name for r, _ in given(tmp_path, ["train"], [], [])["train"]] == ["a.m4a", "b.webm"]


def test_the_message_says_what_is_there(tmp_path: Path) -> None:
    tones(tmp_path, "a", "b", "c", "d")
    (tmp_path / "notes.docx").write_text("x")
    (tmp_path / "raw").mkdir()
    (tmp_path / "notes.json").write_text('{"no": "manifest"}')
    with pytest.raises(
        UserError, match=r"4 \.wav \(a.wav, b.wav, c.wav, \.\.\.\).*1 \.docx \(notes.docx\).*expected train.tsv"
    ):
        given(tmp_path, ["train"], ["dev"], [])
    with pytest.raises(UserError, match="nowhere .*--corpus-dir"):
        given(tmp_path / "nowhere", ["train"], [], [])


def test_a_bad_part_does_not_hide_others(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"x\ty\n\xff\n")
    (tmp_path / "b.tsv").write_text("no tab\n")
    for name in ("d.tsv", "d.csv"):
        (tmp_path / name).write_text("x\ty")
    with pytest.raises(UserError) as e:
        given(tmp_path, ["a", "c"], ["b", "d"], [])
    assert all(text in str(e.value) for text in ("a.tsv:2:", "b.tsv:1:", "'c'", "'d'"))


def test_a_corpus_may_have_test_parts_alone(tmp_path: Path) -> None:
    tones(tmp_path, "a", "b")
    (tmp_path / "any.tsv").write_text("a.wav\tone\n")
    assert list(given(tmp_path, [], [], ["test"])) == ["test"]
    (tmp_path / "test.tsv").write_text("b.wav\ttwo\n")
    assert [s.id for _, s in given(tmp_path, [], [], ["test"])["test"]] == ["b"]
    with pytest.raises(UserError, match="'more'"):
        given(tmp_path, [], ["more"], ["test"])


def test_audio_and_texts_of_a_librispeech_tree_without_each_other(tmp_path: Path) -> None:
    tones(tmp_path / "train/1/1", "1-1-0", "1-1-1")
    tones(tmp_path / "train/1/2", "1-2-0")  # no transcript in the whole chapter
    (tmp_path / "train/1/1/1-1.trans.txt").write_text("1-1-0 one\n1-1-9 nine\n")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]) == {"1-1-0": ("ONE", 200)}
    assert {d.id: d.kind.split(":")[0] for d in dropped} == {
        "1-1-1": "audio without transcript",
        "1-2-0": "audio without transcript",
        "1-1-9": "missing audio file",
    }


def test_recordings_without_a_supervision_are_listed(tmp_path: Path) -> None:
    tones(tmp_path, "a", "b")
    recordings, supervisions, _ = cuts_of(tmp_path, "a", "b").decompose(verbose=False)
    recordings.to_file(tmp_path / "recordings_train.jsonl.gz")
    supervisions.subset(first=1).to_file(tmp_path / "supervisions_train.jsonl.gz")
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]).keys() == {"a"}
    assert [(d.id, d.kind.split(":")[0]) for d in dropped] == [("b", "audio without transcript")]


def test_recordings_without_a_segment_in_kaldis_form(tmp_path: Path) -> None:
    tones(tmp_path, "a", "b")
    (tmp_path / "train").mkdir()
    for name, lines in (("wav.scp", "a a.wav\nb b.wav\n"), ("segments", "u a 0 0.4\n"), ("text", "u one\n")):
        (tmp_path / "train" / name).write_text(lines)
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert heard(found["train"]).keys() == {"u"} and [d.id for d in dropped] == ["b"]


def test_audio_in_a_shard_without_a_cut_is_listed(tmp_path: Path) -> None:
    tones(tmp_path / "audio", "a", "b", "c")
    (tmp_path / "train").mkdir()
    cuts_of(tmp_path / "audio", "a", "b", "c").to_shar(tmp_path / "train", {"recording": "wav"}, shard_size=10)
    cuts_of(tmp_path / "audio", "a", "c").to_file(tmp_path / "train" / "cuts.000000.jsonl.gz")
    dropped: list[Dropped] = []
    corpus = Corpus("own", "custom", ["train"], [], [])
    found = read_given(tmp_path, corpus, dropped, ShardStore(tmp_path / "s", 1.0), str)["train"]
    assert [(r.id, s.text) for r, s in found] == [("a", "text a"), ("c", "text c")]
    assert [d.id for d in dropped] == ["b"]


def test_other_names_of_dev_and_test_are_known_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tones(tmp_path, "a", "b", "c")
    for name, row in (("train", "a.wav\tone"), ("valid", "b.wav\ttwo"), ("eval", "c.wav\tthree")):
        (tmp_path / f"{name}.tsv").write_text(row)
    found = given(tmp_path, ["train"], ["dev"], ["test"])
    assert {part: [s.id for _, s in pairs] for part, pairs in found.items()} == {"train": ["a"], "dev": ["b"], "test": ["c"]}
    assert [line.split("'")[1] for line in capsys.readouterr().out.splitlines()] == ["dev", "test"]
    assert list(given(tmp_path, ["train"], ["dev"], ["eval"])) == ["train", "dev", "eval"]


def test_a_table_that_names_no_file_is_said(tmp_path: Path) -> None:
    tones(tmp_path, "a")
    (tmp_path / "lines.csv").write_text("x.wav,one\n")
    with pytest.raises(UserError, match=r"1 \.wav \(a.wav\).*lines.csv names no audio"):
        given(tmp_path, ["train"], [], [])


def test_values_that_cannot_be_written_are_malformed(tmp_path: Path) -> None:
    """Half of a surrogate pair, a zero byte, numbers beyond all limits; in JSON lines and in lhotse's manifests."""
    tones(tmp_path, "a")
    good = {"audio_filepath": "a.wav", "text": "one"}
    bad = [{"text": "x\ud800"}, {"id": "x\0"}, {"audio_filepath": "a\0.wav"}, {"offset": 10**400}, {"offset": float("nan")}]
    (tmp_path / "train.json").write_text("\n".join(json.dumps({**good, **values}) for values in ({}, *bad)))
    found, dropped = stage_1(tmp_path, tmp_path / "work")
    assert [u.text for u in found["train"]] == ["ONE"]
    assert [d.id.rpartition(":")[2] for d in dropped] == ["2", "3", "4", "5", "6"]
    (tmp_path / "train.json").unlink()
    lines = [json.dumps(cut.to_dict()) for cut in cuts_of(tmp_path, "a")]
    (tmp_path / "cuts_train.jsonl").write_text("\n".join([lines[0], lines[0].replace("text a", "text \\ud800")]))
    found, dropped = stage_1(tmp_path, tmp_path / "cuts")
    assert [u.text for u in found["train"]] == ["TEXT A"] and [d.id for d in dropped] == [f"{tmp_path}/cuts_train.jsonl:2"]
