"""A part with one flaw in the files that list it is read or refused by name, never taken for a part that is not there."""

from __future__ import annotations

import json
from pathlib import Path

from tests.corpus.stage_one import Found, stage_1, tone, tones
from tests.corpus.test_copies import cuts_of

import pytest

NAMES = ("a", "b", "c", "d", "e", "f")
NEMO = [json.dumps({"audio_filepath": f"wav/{name}.wav", "text": f"text {name}"}) for name in NAMES]
BARS = [f"{name}|text {name}" for name in NAMES]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder of six tones, of which train has the last three; test is missing."""
    tones(tmp_path / "my" / "wav", *NAMES)
    (tmp_path / "my" / "train.tsv").write_text("".join(f"wav/{name}.wav\ttext {name}\n" for name in NAMES[3:]))
    return tmp_path / "my"


def texts(found: list[Found]) -> dict[str, int]:
    return {u.text: u.hertz for u in found}


def error_of(corpus: Path, capsys: pytest.CaptureFixture[str], test: str = "[test]") -> str:
    with pytest.raises(SystemExit):
        stage_1(corpus, corpus.parent / "work", test=test)
    assert not list((corpus.parent / "work" / "data" / "manifests").glob("supervisions*"))
    return capsys.readouterr().err


def write(corpus: Path, name: str, lines: list[str]) -> Path:
    path = corpus / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("name", ["test.json", "test_manifest.jsonl", "test/list.json"])
def test_a_first_line_of_json_that_is_cut_off(corpus: Path, name: str) -> None:
    if "/" in name:
        tones(corpus / "test" / "wav", *NAMES[:3])
    path = write(corpus, name, [NEMO[0][:20], *NEMO[1:3]])
    found, dropped = stage_1(corpus, corpus.parent / "work", test="[test]")
    assert texts(found["test"]) == {"TEXT B": 220, "TEXT C": 240} and len(found["train"]) == 3
    assert [(d.id, d.part) for d in dropped] == [(f"{path}:1", "test")]


@pytest.mark.parametrize("first", ["a", "a|text a|text a|text a", "a, b"])
def test_a_first_line_of_a_table_with_bars_that_lacks_cells(corpus: Path, first: str) -> None:
    tones(corpus / "test" / "wavs", *NAMES[:3])
    path = write(corpus, "test/metadata.csv", [first, *BARS[1:3]])
    found, dropped = stage_1(corpus, corpus.parent / "work", test="[test]")
    assert texts(found["test"]) == {"TEXT B": 220, "TEXT C": 240} and [d.id for d in dropped] == [f"{path}:1"]
    write(corpus, "test/metadata.csv", ["a", "b", "c|Text 3|text c"])  # bars in a few lines only
    found, dropped = stage_1(corpus, corpus.parent / "work", test="[test]")
    assert texts(found["test"]) == {"TEXT C": 240} and [d.id for d in dropped] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize(
    ("name", "lines"), [("test.json", NEMO), ("test.jsonl", NEMO), ("test.txt", BARS), ("test/metadata.csv", BARS)]
)
@pytest.mark.parametrize("bad", [b"\xff", b"\0"])
def test_a_byte_that_is_no_text_is_named(
    corpus: Path, name: str, lines: list[str], bad: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    tones(corpus / "test" / "wavs", *NAMES[:3])
    path = write(corpus, name, lines[:3])
    path.write_bytes(path.read_bytes().replace(b"text b", b"text " + bad))
    assert f"{path}:2: " in error_of(corpus, capsys)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.json", ""),
        ("test.json", '{"no": "manifest"}\n'),
        ("test_manifest.json", "[\n1\n]\n"),
        ("test/metadata.csv", ""),
        ("test/metadata.csv", 'a,"one\n'),
    ],
)
def test_a_table_without_a_good_line_is_named(
    corpus: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(corpus, name, [])
    path.write_text(content)
    assert str(path) in error_of(corpus, capsys)


@pytest.mark.parametrize(
    ("name", "line"), [("test.txt", "{}.wav\tone"), ("test/list.csv", "{}.wav,one"), ("test/metadata.csv", "{}|one")]
)
def test_a_table_whose_files_are_all_missing(corpus: Path, name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(corpus, name, [line.format(n) for n in ("x", "y")])
    assert "'test'" in error_of(corpus, capsys)
    rows = (corpus.parent / "work" / "data" / "manifests" / "dropped.tsv").read_text().splitlines()
    assert [row.split("\t")[:2] for row in rows] == [["x", "test"], ["y", "test"]]


@pytest.mark.parametrize("name", ["train.json", "train/list.csv"])
def test_a_training_table_with_a_flaw_is_named(corpus: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "train.tsv").unlink()
    path = write(corpus, name, ["no utterance"])
    error = error_of(corpus, capsys, test="[]")
    assert str(path) in error and "is not in" not in error


def test_files_with_a_name_of_the_part_that_are_no_tables(corpus: Path) -> None:
    """Sentences and the transcript of an audio file; a table of no speech, if another one has the part."""
    for part in ("train", "test"):
        (corpus / f"{part}.txt").write_text("sentences for a language model\n")
    tone(corpus / "dev.wav", 300)
    (corpus / "dev.txt").write_text("one\ttwo\n")
    write(corpus, "train/info.csv", ["x,y"])
    found, dropped = stage_1(corpus, corpus.parent / "work", dev="[dev]", test="[test]")
    assert sum(map(len, found.values())) == 3 and not dropped


@pytest.mark.parametrize("place", ["", "test/"])
@pytest.mark.parametrize("missing", ["recordings", "supervisions"])
def test_half_of_lhotses_manifests(corpus: Path, place: str, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    recordings, supervisions, _ = cuts_of(corpus / "wav", *NAMES[:3]).decompose(verbose=False)
    (corpus / "test").mkdir()
    there = supervisions if missing == "recordings" else recordings
    other = "supervisions" if missing == "recordings" else "recordings"
    there.to_file(corpus / f"{place}own_{other}_test.jsonl.gz")
    assert f"{corpus}/{place}own_{missing}_test.jsonl.gz is missing" in error_of(corpus, capsys)


def test_a_kaldi_directory_without_wav_scp(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(corpus, "test/text", ["a one"])
    assert f"{corpus}/test/wav.scp" in error_of(corpus, capsys)


@pytest.mark.parametrize("place", ["", "deep/"])
def test_a_folder_of_audio_without_transcripts(corpus: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    tone(corpus / "test" / f"{place}x.wav", 300)
    error = error_of(corpus, capsys)
    assert f"{corpus}/test has" in error and "x.wav" in error and "data.test_parts" in error


@pytest.mark.parametrize("left", [0, 1])
def test_a_shard_without_its_cuts_is_listed(corpus: Path, left: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder = corpus / "test"
    folder.mkdir()
    cuts_of(corpus / "wav", *NAMES[: 2 + left]).to_shar(folder, {"recording": "wav"}, shard_size=2)
    (folder / "cuts.000000.jsonl.gz").unlink()
    if left:
        found, _ = stage_1(corpus, corpus.parent / "work", test="[test]")
        assert texts(found["test"]) == {"TEXT C": 240}
    else:
        assert str(folder) in error_of(corpus, capsys)
    rows = (corpus.parent / "work" / "data" / "manifests" / "dropped.tsv").read_text().splitlines()
    assert {row.split("\t")[0] for row in rows} == {f"{folder}/cuts.000000.jsonl.gz", "a", "b"}


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (['d.wav,"x; one; two; three; four, five"'], "X; ONE; TWO; THREE; FOUR, FIVE"),
        (['d.wav;"one, two, three"'], "ONE, TWO, THREE"),
        (['d.wav,"a ""b;c;d;e"", f"'], 'A "B;C;D;E", F'),
        (['d.wav,"one;', 'two;three;four;five"'], "ONE; TWO;THREE;FOUR;FIVE"),
        (["d.wav;one, two, three", "e.wav;four"], "ONE, TWO, THREE"),
        (["path;text", "d.wav;one, two"], "ONE, TWO"),
    ],
)
def test_delimiters_in_texts_do_not_count(corpus: Path, lines: list[str], text: str) -> None:
    (corpus / "train.tsv").unlink()
    tones(corpus, "d", "e")
    write(corpus, "train.csv", lines)
    found, dropped = stage_1(corpus, corpus.parent / "work")
    assert found["train"][0].text == text and not dropped
