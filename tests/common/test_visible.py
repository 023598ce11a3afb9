"""Foreign text that goes out: shown on the terminal, in Markdown and in tables, and obeyed nowhere."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.csv_table import write_table
from local.common.errors import UserError, first_of, one_line
from local.common.progress import Progress
from local.common.visible import cell, encodable, markdown, quoted, shortened, unquoted, visible
from local.corpus.dropped import Dropped, read_dropped, report_dropped, write_dropped
from local.data.token_counts import read_token_counts, write_token_counts
from tests.conftest import ROOT

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

HOSTILE = "a\x1b]0;owned\x07\x1b[2Jb\x9b31m\u202etxt.exe\u2066\r\n\tc\x7f\udcff\u2028"
SHOWN = r"a\x1b]0;owned\x07\x1b[2Jb\x9b31m\u202etxt.exe\u2066\r\n\tc\x7f\udcff\u2028"
LETTERS = "Größe Ж 音 नमस्ते می\u200cخواهم 👩\u200d🚀 -- $x$ <b>"
FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "@SUM(A1)", "-2+3", "'=1+1", "=\t1")


def test_what_has_no_glyph_is_escaped_and_letters_stay() -> None:
    assert visible(HOSTILE) == SHOWN and visible(LETTERS) == LETTERS
    assert visible("\n\t\x1b", keep="\n\t") == "\n\t\\x1b"
    assert first_of([HOSTILE, "b"]) == f"{SHOWN}, b"
    assert one_line("bad\n id \x1b[2J") == r"bad id \x1b[2J"


@given(st.text())
@example("\ud800")
def test_visible_text_can_be_printed_on_one_line(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert len(f"{shown}.".splitlines()) == 1 and "\x1b" not in shown and visible(shown) == shown


@given(st.text(st.characters(codec="utf-8")))
def test_labels_are_short(text: str) -> None:
    assert len(shortened(text)) <= 60


@program
def hostile_program(argv: list[str]) -> None:
    """Print foreign text in each of the ways that programs have."""
    if argv == ["error"]:
        raise UserError(f"utterance {HOSTILE}")
    if argv == ["file"]:
        Path("no-such-folder\x1b[2J/x").read_text()
    if argv == ["argument"]:
        make_parser("doc", conf=False).parse_args(["--\x1b[2J"])
    print(f"part {HOSTILE}\n{LETTERS}")
    print(f"warning: {HOSTILE}", file=sys.stderr)


@pytest.mark.parametrize("way", ["print", "error", "file", "argument"])
def test_no_program_sends_control_characters(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Through `program`, which all of them have: what is printed, errors, names of files, argparse's own messages."""
    if way == "print":
        hostile_program([way])
    else:
        with pytest.raises(SystemExit):
            hostile_program([way])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\x9b" not in out + err and "\u202e" not in out + err and r"\x1b" in out + err
    if way == "print":
        assert LETTERS in out and r"\udcff" in out


def test_a_terminal_without_the_letters_gets_them_escaped() -> None:
    code = "from local.common.cli import program\n@program\ndef main(): print('caf\\u00e9 \\u0416')\nmain()"
    environment = {"PYTHONIOENCODING": "latin-1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout.decode("latin-1").rstrip() == "café \\u0416"


def test_a_bar_draws_while_its_title_is_only_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("local.common.progress._terminal", lambda: terminal)
    with Progress(2, "audio of \x1b[2J", "files") as bar:
        bar.update(1)
    assert "\x1b[2J" not in terminal.getvalue() and r"\x1b[2J" in terminal.getvalue() and "\r" in terminal.getvalue()


def test_markdown_shows_markup_as_text() -> None:
    assert markdown("a|b\n`c` <script>") == r"a\|b\\n\`c\` \<script\>"
    assert markdown("[x](y) *b* _i_ $m$ ~s~ &lt;") == r"\[x\](y) \*b\* \_i\_ \$m\$ \~s\~ \&lt;"
    assert markdown("modified_beam_search 12.5 - ü") == "modified_beam_search 12.5 - ü"


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_quoted_in_every_table(tmp_path: Path, text: str) -> None:
    assert cell(text)[0] == "'" and unquoted(quoted(text)) == text
    write_table(tmp_path / "a.tsv", ["id", "number"], [{"id": text, "number": -1.5}, {"id": "none"}], "\t")
    with (tmp_path / "a.tsv").open(newline="") as file:
        _, row, other = csv.reader(file, delimiter="\t")
    assert row == [cell(text), "-1.5"] and other == ["none", ""]
    dropped = [Dropped(text, "tr\tain", f"{text}: why\n", "\x1b")]
    write_dropped(tmp_path / "dropped.tsv", dropped)
    assert (tmp_path / "dropped.tsv").read_bytes().startswith(cell(text).encode() + b"\ttr\\tain\t'")
    found = read_dropped(tmp_path / "dropped.tsv", "")
    assert found[0].id == visible(text)
    write_dropped(tmp_path / "again.tsv", found)  # as stage 2 does with what stage 1 dropped
    assert (tmp_path / "again.tsv").read_bytes() == (tmp_path / "dropped.tsv").read_bytes()
    write_token_counts({text: 3}, tmp_path / "counts.tsv")
    assert (tmp_path / "counts.tsv").read_text()[0] == "'" and read_token_counts(tmp_path / "counts.tsv") == {text: 3}


@pytest.mark.parametrize("text", ["-1.5", "+2", "-inf", "1-2", "-", "", "'a", "a=b"])
def test_numbers_and_other_texts_are_not_quoted(text: str) -> None:
    assert cell(text) == text == unquoted(text)


@given(st.text(st.sampled_from("'=+@-1a.e")))
def test_quoting_can_be_undone(text: str) -> None:
    assert unquoted(quoted(text)) == text


def test_dropped_utterances_are_named_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report_dropped([Dropped("a\x1b[2J\nforged: line", "train", "kind", "\u202e")], "dropped.tsv")
    first, _ = capsys.readouterr().out.splitlines()
    assert r"\x1b[2J\nforged: line, train, kind: \u202e" in first


def test_half_characters_are_found() -> None:
    for value in ("\ud800", {"\udfff": 1}, [{"a": "x\ud83d"}]):
        with pytest.raises(ValueError, match="ud800|udfff|ud83d"):
            encodable(value, json.dumps(value))
    for value in ({"a": ["ü", 1, None]}, "\U0001f600", "a\\ud800"):
        assert encodable(json.loads(text := json.dumps(value)), text) == value
