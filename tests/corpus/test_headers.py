"""The columns of tables: a header in another language, in another order, or none."""

from __future__ import annotations

from pathlib import Path

from local.common.errors import UserError
from local.corpus.dropped import Dropped
from local.corpus.tables import read_table
from tests.corpus.stage_one import tones

import pytest


def read(folder: Path, name: str, *lines: str) -> tuple[list[tuple[str, str | None, str | None]], list[Dropped]]:
    """Return (id, text, speaker) of the table's utterances, whose files are a.wav to d.wav, and what was left out."""
    tones(folder, *"abcd")
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    dropped: list[Dropped] = []
    return [(s.id, s.text, s.speaker) for _, s in read_table(folder / name, "train", dropped)], dropped


@pytest.mark.parametrize(
    ("header", "row", "text", "speaker"),
    [
        ("Datei;Satz", "{}.wav;eins zwei", "eins zwei", None),
        ("文件;文本", "{}.wav;一 二", "一 二", None),
        ("Satz;Datei", "eins zwei;{}.wav", "eins zwei", None),
        ("Datei;Satz;Person", "{}.wav;eins zwei;anna", "eins zwei", "anna"),
        ("Datei;Person;Satz", "{}.wav;anna;eins zwei", "eins zwei", "anna"),
        ("audio;satz", "{}.wav;eins zwei", "eins zwei", None),
        ("Datei;Alter;sentence;Person", "{}.wav;30;eins zwei;anna", "eins zwei", None),
    ],
)
def test_a_header_of_unknown_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], header: str, row: str, text: str, speaker: str | None
) -> None:
    found, dropped = read(tmp_path, "t.csv", header, *(row.format(name) for name in "abc"))
    assert found == [(name, text, speaker) for name in "abc"]
    assert [d.id for d in dropped] == [f"{tmp_path}/t.csv:1"] and "header" in dropped[0].kind
    out = capsys.readouterr().out
    assert header.split(";")[0] in out and "path" in out and "text" in out


@pytest.mark.parametrize("first", ["gone.wav", "clips/gone", "gone-17"])
def test_a_missing_file_in_the_first_line_is_no_header(tmp_path: Path, first: str) -> None:
    found, dropped = read(tmp_path, "t.tsv", f"{first}\tone", "a.wav\ttwo", "b.wav\tthree")
    assert [text for _, text, _ in found] == ["one", "two", "three"] and not dropped


def test_text_before_path_without_a_header(tmp_path: Path) -> None:
    found, _ = read(tmp_path, "t.tsv", "one two\ta.wav", "three\tb.wav")
    assert found == [("a", "one two", None), ("b", "three", None)]


@pytest.mark.parametrize("lines", [("Person;Datei;Satz", "x;a.wav;one", "x;b.wav;two"), ("x;a.wav;one", "x;b.wav;two")])
def test_columns_that_cannot_be_known_are_an_error(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"t.csv:1: .*path, text, speaker"):
        read(tmp_path, "t.csv", *lines)


def test_a_table_in_the_usual_order_is_taken_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, dropped = read(tmp_path, "t.tsv", "a.wav\tyes\tAnna Smith", "b.wav\tno\tBen Jones", "c.wav\ttext\t")
    assert found == [("a", "yes", "Anna Smith"), ("b", "no", "Ben Jones"), ("c", "text", None)]
    assert not dropped and capsys.readouterr().out == ""


def test_speakers_before_texts_without_a_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, dropped = read(tmp_path, "t.tsv", "a.wav\tanna\tone two three four", "b.wav\tben\tthree", "c.wav\tanna\tfour")
    assert found == [("a", "one two three four", "anna"), ("b", "three", "ben"), ("c", "four", "anna")]
    assert not dropped and "2 speaker, 3 text" in capsys.readouterr().out


def test_single_words_before_names_are_texts(tmp_path: Path) -> None:
    lines = ["a.wav\tyes\tAnna Smith", "b.wav\tno\tBen Jones", "c.wav\tyes\tCarl van Dam"]
    assert [text for _, text, _ in read(tmp_path, "t.tsv", *lines)[0]] == ["yes", "no", "yes"]


def test_times_in_a_table_are_segments(tmp_path: Path) -> None:
    tones(tmp_path, "a")
    (tmp_path / "t.tsv").write_text("path\ttext\tstart\tend\na.wav\tone\t0.1\t0.3\na.wav\ttwo\t0.3\t0.5\na.wav\tx\t0.3\tsoon\n")
    dropped: list[Dropped] = []
    pairs = read_table(tmp_path / "t.tsv", "train", dropped)
    assert [(s.text, s.start, pytest.approx(s.duration)) for _, s in pairs] == [("one", 0.1, 0.2), ("two", 0.3, 0.2)]
    assert pairs[0][0] is pairs[1][0] and [d.id[-2:] for d in dropped] == [":4"]
