"""Scoring: counts against an independent Levenshtein distance, intervals, output files, earlier settings, bad input."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

from local.artifacts.decoded_sets import find_sets
from local.common.errors import UserError
from local.common.visible import visible
from local.scoring.align import Utterance, repetitions, score, symbol_delays
from local.scoring.error_report import error_report
from local.scoring.hypotheses import read_hypotheses, read_sets
from local.scoring.speech import Speech, read_speech
from local.wer import main
from tests.conftest import ROOT
from tests.toy_experiment import levenshtein

import pytest
from hypothesis import given
from hypothesis import strategies as st

KEYS = {"wer", "sub", "del", "ins", "words", "ci95", "rtf"}

texts = st.lists(st.sampled_from(["a", "b", "*", "ü", "->"]), max_size=8).map(" ".join)
sets = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


def decoded(exp: Path) -> dict[str, dict[str, list[Utterance]]]:
    return read_sets(exp, find_sets(exp)[0])


def write(exp: Path, method: str, rows: list[tuple[str, str, str]], name: str = "test") -> Path:
    path = exp / "decode" / method / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, "ref": r, "hyp": h}) + "\n" for i, r, h in rows), encoding="utf-8")
    return path


@given(sets)
def test_counts_agree_with_levenshtein(pairs: list[tuple[str, str]]) -> None:
    result = score([Utterance(str(i), r, h) for i, (r, h) in enumerate(pairs)])
    assert result.errors == sum(levenshtein(r.split(), h.split()) for r, h in pairs)
    assert result.char_errors == sum(levenshtein(r, h) for r, h in pairs)
    assert result.words == sum(len(r.split()) for r, _ in pairs)
    assert result.words - result.dels + result.ins == sum(len(h.split()) for _, h in pairs)
    assert result.correct.total() + result.sub + result.dels == result.words
    assert result.wrong_utterances == sum(r != h for r, h in pairs)


@given(sets)
def test_interval_holds_the_rate(pairs: list[tuple[str, str]]) -> None:
    result = score([Utterance(str(i), r, h) for i, (r, h) in enumerate(pairs)])
    if result.words == 0:
        assert result.wer is None and result.ci95 is None
    else:
        assert result.wer is not None and result.ci95 is not None
        assert 0 <= result.ci95[0] <= result.wer <= result.ci95[1]


def test_symbol_delay_by_hand() -> None:
    utterances = [
        Utterance("a", "one two three", "one oh three", (0.5, 0.9, 1.3)),  # 0.1 and -0.2; "two" was not recognised
        Utterance("b", "four", "so four", (0.1, 0.7)),  # 0.4 behind an insertion
        Utterance("c", "five six", "six", (2.0,)),  # 1.0 behind a deletion
        Utterance("d", "seven", "seven", (9.0,)),  # no alignment
        Utterance("e", "eight", "eight", (9.0,)),  # the alignment is of another text
        Utterance("f", "nine", "nine"),  # no times
    ]
    spoken = {
        "a": [("one", 0.0, 0.4), ("two", 0.4, 1.0), ("three", 1.2, 1.5)],
        "b": [("four", 0.0, 0.3)],
        "c": [("five", 0.0, 0.5), ("six", 0.5, 1.0)],
        "e": [("eighty", 0.0, 0.0)],
        "f": [("nine", 0.0, 0.0)],
    }
    assert symbol_delays(score(utterances), spoken) == pytest.approx([0.1, -0.2, 0.4, 1.0])
    assert symbol_delays(score(utterances), {}) == []


def test_costs_delay_oracle_plot_and_perplexity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cuts = tmp_path / "data" / "cuts"
    cuts.mkdir(parents=True)
    supervision = {"id": "u", "alignment": {"word": [["one", 0.25, 0.5, None], ["two", 1.0, 0.5, None]]}}
    with gzip.open(cuts / "test.jsonl.gz", "wt") as f:
        f.write(json.dumps({"id": "u", "duration": 2.0, "supervisions": [supervision]}) + "\n")
    words = [{"word": w, "start": 0.0, "end": 0.1, "emitted": e} for w, e in (("one", 0.8), ("two", 1.7))]
    for method in ("greedy_search", "fast_beam_search_nbest_oracle"):
        path = write(tmp_path, method, [])
        path.write_text(json.dumps({"id": "u", "ref": "one two", "hyp": "one two", "words": words}) + "\n")
        stats = {"seconds": 1.0, "audio_seconds": 50.0, "peak_memory_mib": 123.4}
        path.with_name("test.stats.json").write_text(json.dumps(stats))
    (tmp_path / "lm").mkdir()
    found = {"dev": {"perplexity": {"per_token": 4.321, "per_word": 6.789}}}
    (tmp_path / "lm" / "perplexity.json").write_text(json.dumps(found))
    main(["--exp-dir", str(tmp_path), "--data-dir", str(tmp_path / "data")])
    rows = json.loads((tmp_path / "wer.json").read_text())["test"]
    assert list(rows) == ["greedy_search", "fast_beam_search_nbest_oracle"]
    assert [r["oracle"] for r in rows.values()] == [False, True]
    for r in rows.values():  # 0.05 and 0.2 s late
        assert (r["symbol_delay"], r["peak_memory_mib"], r["rtf"]) == (0.125, 123.4, 0.02)
    shown = capsys.readouterr().out
    assert "perplexity of dev 4.32 per token, 6.79 per word" in shown
    lines = shown.splitlines()
    assert lines[2].endswith("|        123 |      125 |") and lines[0].endswith("| memory MiB | delay ms |")
    assert "oracle \\* |" in lines[3] and "greedy_search    " in lines[2] and any("bound" in line for line in lines[4:])
    assert (tmp_path / "wer.png").read_bytes().startswith(b"\x89PNG")
    for path in tmp_path.glob("decode/*/*.stats.json"):
        path.unlink()
    main(["--exp-dir", str(tmp_path)])
    assert not (tmp_path / "wer.png").exists() and capsys.readouterr().out.count("|          - |        - |") == 2


def test_files_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("u2", "one two three", "one two three"), ("u1", "four five", "four fife oh")]
    perfect = [(i, r, r) for i, r, _ in rows]
    for method, hyps in (("zz", rows), ("fast_beam_search", perfect), ("greedy_search", rows)):
        write(tmp_path, method, hyps)
    write(tmp_path, "greedy_search", [("d", "one", "")], name="dev")
    stats = tmp_path / "decode" / "zz" / "test.stats.json"
    stats.write_text(json.dumps({"seconds": 3.0, "audio_seconds": 60.0, "threads": 2, "device": "cpu"}))
    main(["--exp-dir", str(tmp_path)])

    results = json.loads((tmp_path / "wer.json").read_text())
    assert list(results) == ["dev", "test"] and list(results["test"]) == ["greedy_search", "fast_beam_search", "zz"]
    for methods in results.values():
        for row in methods.values():
            assert KEYS <= row.keys()
            assert row["ci95"][0] <= row["wer"] <= row["ci95"][1]
    greedy = results["test"]["greedy_search"]
    assert (greedy["wer"], greedy["sub"], greedy["ins"], greedy["del"], greedy["words"]) == (40.0, 1, 1, 0, 5)
    assert greedy["rtf"] is None and results["test"]["zz"]["rtf"] == 0.05
    assert results["dev"]["greedy_search"]["wer"] == 100.0
    assert results["test"]["fast_beam_search"]["ci95"] == [0.0, 43.4482]  # Wilson's for 5 words

    assert (tmp_path / "wer.md").read_text() == capsys.readouterr().out
    lines = (tmp_path / "wer.md").read_text().splitlines()
    assert len({len(line) for line in lines[: 2 + 4]}) == 1 and not any(line.startswith("|") for line in lines[6:])
    assert lines[0].split()[1] == "set" and "40.00" in lines[3] and "0.0500" in lines[5]
    errors = (tmp_path / "errors" / "test.greedy_search.txt").read_text()
    assert "five -> fife" in errors
    *_, wrong, right, same = errors.splitlines()
    assert wrong.startswith("u1: four (") and (right, same) == ("    fast_beam_search: four five", "    zz: =")
    assert "u2:" not in errors
    assert "d: (one->*)" in (tmp_path / "errors" / "dev.greedy_search.txt").read_text()


@pytest.mark.parametrize(
    ("ref", "hyp", "repeated", "lost"),
    [
        ("no no yes", "no yes", 1, 1),
        ("no no no", "no", 2, 2),
        ("no no", "", 1, 1),  # one is not a repetition
        ("no no yes yes", "no yes yes", 2, 1),
        ("no no", "yes no", 1, 0),  # substituted
        ("no no", "no yes no", 1, 0),  # an insertion between them
        ("no yes no", "no no", 0, 0),
        ("", "no no", 0, 0),
    ],
)
def test_deleted_repetitions(ref: str, hyp: str, repeated: int, lost: int) -> None:
    found = score([Utterance("a", ref, hyp), Utterance("b", "no", "no")])
    assert (found.repeated, found.repeated_lost) == repetitions(found.alignments[0]) == (repeated, lost)
    line = [line for line in error_report("set test", found).splitlines() if line.startswith("repeated words")]
    assert [re.findall("[0-9]+", text) for text in line] == (
        [[str(lost), str(repeated), str(found.errors)]] if repeated else []
    )


def test_an_error_report_tells_whose_audio_it_is() -> None:
    found = score([Utterance("a", "one", "two"), Utterance("b", "one", "one"), Utterance("c", "one", "")])
    speech = {
        "a": Speech("a", "ann", 1.5, Path("/x/a.wav"), 2.25, 1),
        "b": Speech("b", "bob", 1.0, Path("/x/b.wav"), 0.0, 0),
        "c": Speech("c", "", 3.0, None, 0.0, 0),
    }
    lines = error_report("set test", found, {}, speech).splitlines()
    assert lines[-4:] == [
        "a: (one->two)",
        "    speaker ann, 1.50 s, /x/a.wav from 2.25 s channel 2",
        "c: (one->*)",
        "    3.00 s",
    ]


def write_made(
    exp: Path, folder: str, method: str, hyp: str, label: str, date: str, name: str = "test", **options: float
) -> None:
    """Write a set of one utterance, "one two", with stats that say what made it."""
    path = exp / folder / method / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"id": "u", "ref": "one two", "hyp": hyp}) + "\n", encoding="utf-8")
    made_by = {"checkpoint": "exp/averaged.pt", "average": f"running: {label}", "label": label, "weights": label}
    made_by |= {"options": options, "commit": "0123abc", "date": f"2026-11-{date}:30.123+00:00"}
    stats = {"seconds": 1.0, "audio_seconds": 50.0, "made_by": made_by}
    path.with_name(f"{name}.stats.json").write_text(json.dumps(stats), encoding="utf-8")


def test_results_of_other_settings_stand_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = "epoch-7-avg-3", "epoch-7-avg-4"
    write_made(tmp_path, "decode", "greedy_search", "one two", new, "28T11:00", beam=1)
    write_made(tmp_path, "decode", "modified_beam_search", "one", new, "28T12:00", beam=4, lm_scale=0.3)
    write_made(tmp_path, "decode", "fast_beam_search", "two", old, "27T10:00", name="dev")
    moved = f"decode_earlier/{old}"
    write_made(tmp_path, moved, "modified_beam_search", "two one", old, "26T10:00", beam=8, lm_scale=0.3)
    write(tmp_path, "zz", [("u", "one two", "one two")])  # an older version did not say what made a set
    (tmp_path / "errors").mkdir()
    for name in ("dev.fast_beam_search.txt", "test.greedy_search.txt"):
        (tmp_path / "errors" / name).write_text("of other settings")
    (tmp_path / "errors" / "notes.txt").write_text("mine")
    main(["--exp-dir", str(tmp_path)])

    results = json.loads((tmp_path / "wer.json").read_text())
    found = {name: {method: row["wer"] for method, row in rows.items()} for name, rows in results.items()}
    assert found == {"test": {"greedy_search": 0.0, "modified_beam_search": 50.0, "zz": 0.0}}
    reports = {f"test.{method}.txt" for method in found["test"]}
    assert {path.name for path in (tmp_path / "errors").iterdir()} == {"notes.txt", *reports}
    assert "0 substitutions" in (tmp_path / "errors" / "test.greedy_search.txt").read_text()

    first, blank, head, *_ = lines = capsys.readouterr().out.splitlines()
    assert all(text in first for text in (new, "0123abc", "2026-11-28 12:00")) and blank == "" and "set" in head
    below = lines[lines.index("Earlier settings") + 2 :]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in below]
    assert cells[2:] == [
        ["dev", "fast_beam_search", "50.00", old, "-", "2026-11-27 10:00"],
        ["test", "modified_beam_search", "100.00", old, "beam=8", "2026-11-26 10:00"],
    ]
    assert (tmp_path / "wer.md").read_text().splitlines() == lines


def test_an_oracle_takes_the_entry_with_the_fewest_errors(tmp_path: Path) -> None:
    entries = [{"hyp": hyp, "words": [{"end": 1.0 + i}]} for i, hyp in enumerate(("x", "one", "two", "one one"))]
    row = {"id": "u", "ref": "one two", "hyp": "x", "words": [], "nbest": entries}
    for method, hyp, ends in (("fast_beam_search_nbest_oracle", "one", (2.0,)), ("fast_beam_search", "x", ())):
        path = write(tmp_path, method, [])
        path.write_text(json.dumps(row))
        assert read_hypotheses(path) == [Utterance("u", "one two", hyp, ends)]
    path = write(tmp_path, "fast_beam_search_nbest_oracle", [])
    for bad in ([], "one", [{"hyp": 1}], [3]):
        path.write_text(json.dumps({**row, "nbest": bad}))
        with pytest.raises(UserError, match="oracle/test.jsonl:1: .*nbest"):
            read_hypotheses(path)


def test_compare_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for exp, hyp in (("a", "x"), ("b", "one"), ("c", "x")):
        write(tmp_path / exp, "greedy_search", [(f"u{i}", "one", hyp) for i in range(8)])
    others = [str(tmp_path / exp) for exp in "ac"]
    main(["--exp-dir", str(tmp_path / "b"), "--compare", *others])
    lines = capsys.readouterr().out.splitlines()[-2:]
    for line, other in zip(lines, others, strict=True):  # 2 of 2^8 choices of signs
        texts = (
            "test greedy_search: ",
            f"{other} 100.00 %;",
            f": {tmp_path}/b 0.00 %, ",
            f"; {tmp_path}/b is better",
            " significant (P = 0.008)",
        )
        assert all(text in line for text in texts) and "not significant" not in line
    write(tmp_path / "d", "greedy_search", [("v", "one", "one")])
    for exp in ("d", "e"):
        write(tmp_path / "e", "zz", [("u0", "one", "one")])
        with pytest.raises(SystemExit):
            main(["--exp-dir", str(tmp_path / "b"), "--compare", str(tmp_path / exp)])
        assert f"{tmp_path}/{exp}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"id": "b", "ref": "x"', "test.jsonl:2: "),
        ("[1]", "test.jsonl:2: "),
        ('{"id": "b", "ref": "x"}', "test.jsonl:2: .*'hyp'"),
        ('{"id": "b", "ref": "x", "hyp": ["x"]}', "test.jsonl:2: .*'hyp'"),
        ('{"id": "a", "ref": "x", "hyp": "x"}', "test.jsonl:2: utterance a .*line 1"),
        (b'{"id": "\xff"}', "test.jsonl:2: not UTF-8"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str | bytes, named: str) -> None:
    path = write(tmp_path, "greedy_search", [("a", "x", "x")])
    with path.open("ab") as f:
        f.write(line.encode() if isinstance(line, str) else line)
    with pytest.raises(UserError, match=named):
        read_hypotheses(path)


@pytest.mark.parametrize(
    "stats",
    [
        '{"seconds": 1}',
        "{",
        '{"seconds": "x", "audio_seconds": 1}',
        "[]",
        '{"seconds": 1, "audio_seconds": 1, "peak_memory_mib": "much"}',
        '{"seconds": 1, "audio_seconds": 1, "made_by": {"label": 3}}',
        '{"seconds": 1, "audio_seconds": 1, "made_by": []}',
    ],
)
def test_bad_stats_are_named(tmp_path: Path, stats: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "greedy_search", [("a", "x", "x")])
    path.with_name("test.stats.json").write_text(stats)
    with pytest.raises(SystemExit):
        main(["--exp-dir", str(tmp_path)])
    assert "test.stats.json" in capsys.readouterr().err


def test_nothing_decoded_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/decode"):
        decoded(tmp_path)
    path = write(tmp_path, "greedy_search", [])
    with pytest.raises(UserError, match="greedy_search/test.jsonl"):
        read_hypotheses(path)


def test_methods_must_agree_on_utterances(tmp_path: Path) -> None:
    rows = [(f"u{i}", "a", "a") for i in range(6)]
    write(tmp_path, "greedy_search", rows)
    write(tmp_path, "fast_beam_search", rows[:1])
    lacking = r"fast_beam_search/test\.jsonl.*\bu1\b.*\bu2\b.*\bu3\b.*\b2\b.*greedy_search"
    with pytest.raises(UserError, match=lacking):
        decoded(tmp_path)
    write(tmp_path, "fast_beam_search", [*rows, ("extra", "a", "a")])
    with pytest.raises(UserError, match=r"greedy_search/test.jsonl lacks extra, which fast_beam_search has"):
        decoded(tmp_path)
    write(tmp_path, "fast_beam_search", [(i, "other", h) for i, _, h in rows])
    with pytest.raises(UserError, match="u0 in set test"):
        decoded(tmp_path)


def test_sets_are_checked_against_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cuts = tmp_path / "data" / "cuts"
    cuts.mkdir(parents=True)
    with gzip.open(cuts / "test.jsonl.gz", "wt") as f:
        for i in ("u1", "u2"):
            f.write(json.dumps({"id": f"{i}-cut", "duration": 2.0, "supervisions": [{"id": i}]}) + "\n")
    argv = ["--exp-dir", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    path = write(tmp_path, "greedy_search", [("u1", "a", "a")])
    main(argv)
    assert "set test: 1 utterances were not decoded: u2-cut" in capsys.readouterr().err
    path.rename(path.with_name("tset.jsonl"))
    with pytest.raises(SystemExit):
        main(argv)
    assert "set 'tset' is not a part of" in capsys.readouterr().err


def test_runs_as_a_program_without_torch(tmp_path: Path) -> None:
    write(tmp_path, "greedy_search", [("u", "a", "b")])
    code = "import runpy, sys; sys.modules['torch'] = None\n"
    code += "del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
    command = [sys.executable, "-c", code, str(ROOT / "local" / "wer.py"), "--exp-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "100.00" in done.stdout, done.stderr


HOSTILE = ["$\\frac{$", "a|b", "`<script>alert(1)</script>", "=1+1", "\x1b[2J\u202e", "é音"]


def rendered(row: str) -> list[str]:
    """Return the cells of a row of a Markdown table as they are shown."""
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", row)[1:-1]
    return [re.sub(r"\\([\\`*\[\]<>|~&$_])", r"\1", cell.strip()) for cell in cells]


def test_foreign_text_is_not_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of sets and methods, ids, words and what the stats say: formulas, table cells, HTML, escape characters."""
    names = [name.replace("/", "") for name in HOSTILE]
    for name in names:
        rows = [(f"{name}\n{i}", f"one {word}", f"{word} {name}") for i, word in enumerate(HOSTILE)]
        path = write(tmp_path, name, rows, name)
        now = {"label": HOSTILE[0], "average": name, "commit": name, "date": "2026-11-28T12:00", "options": {}, "weights": ""}
        made_by = {**now, "label": name, "date": "2026", "options": {name: name}} if "é" in name else now
        stats = {"seconds": 1.0, "audio_seconds": 50.0, "made_by": made_by}
        path.with_name(f"{name}.stats.json").write_text(json.dumps(stats), encoding="utf-8")
    main(["--exp-dir", str(tmp_path)])
    text = (tmp_path / "wer.md").read_text(encoding="utf-8")
    out, err = capsys.readouterr()
    assert out == text and "\x1b" not in out + err and "\u202e" not in out + err
    rows = [line for line in text.splitlines() if line.startswith("|")]
    heads = [i for i, row in enumerate(rows) if row.startswith("|--")]
    for start, end in zip(heads, [*(i - 1 for i in heads[1:]), len(rows)], strict=True):
        assert {len(rendered(row)) for row in rows[start + 1 : end]} == {len(rows[start].strip("|").split("|"))}
    shown = {tuple(rendered(row)[:2]) for row in rows}
    assert {(visible(name), visible(name)) for name in names} <= shown and "<script" not in text.replace("\\<", "")
    assert (tmp_path / "wer.png").read_bytes().startswith(b"\x89PNG")
    for path in (tmp_path / "errors").iterdir():
        report = path.read_text(encoding="utf-8")
        assert "\x1b" not in report and "\u202e" not in report and not re.search("^=", report, re.MULTILINE)
        assert re.search(r"\\n\d: ", report)


def test_half_a_character_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "greedy_search", [("a", "x", "x"), ("b", "y \ud800", "y")])
    with pytest.raises(SystemExit):
        main(["--exp-dir", str(tmp_path)])
    assert f"{path}:2: " in (line := capsys.readouterr().err) and r"\ud800" in line and line.count("\n") == 1
    path = write(tmp_path, "greedy_search", [("a", "x", "x")])
    cuts = tmp_path / "data" / "cuts" / "test.jsonl.gz"
    cuts.parent.mkdir(parents=True)
    with gzip.open(cuts, "wt") as file:
        file.write('{"id": "a\\ud800"}\n')
    with pytest.raises(SystemExit):
        main(["--exp-dir", str(tmp_path), "--data-dir", str(tmp_path / "data")])
    assert f"{cuts}:1: " in capsys.readouterr().err


def test_speech_of_a_cut(tmp_path: Path) -> None:
    supervision = {"id": "u", "speaker": "ann", "alignment": {"word": [["one", 2.75, 0.5, None]]}}
    sources = [{"type": "file", "channels": [0, 1], "source": "/x/a.wav"}]
    whole = {"id": "u", "start": 2.5, "duration": 1.5, "channel": 1, "supervisions": [supervision]}
    shar = {"id": "v", "start": 0, "duration": 1, "recording": {"sources": [{"type": "shar", "channels": [0], "source": ""}]}}
    (path := tmp_path / "cuts" / "test.jsonl.gz").parent.mkdir()
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in ({**whole, "recording": {"sources": sources}}, shar))
    assert read_speech(tmp_path, "test") == {
        "u": Speech("u", "ann", 1.5, Path("/x/a.wav"), 2.5, 1, (("one", 0.25, 0.75),)),
        "v": Speech("v", "", 1.0, None, 0.0, 0),
    }


@pytest.mark.parametrize("time", ["1" + "0" * 400, "NaN", "Infinity", '"x"', "null"])
def test_times_that_are_no_numbers_are_named(tmp_path: Path, time: str) -> None:
    cuts = tmp_path / "cuts" / "test.jsonl.gz"
    cuts.parent.mkdir()
    with gzip.open(cuts, "wt") as file:
        alignment = f'{{"word": [["one", {time}, 1, null]]}}'
        file.write(f'{{"id": "u", "duration": 2.0, "supervisions": [{{"id": "u", "alignment": {alignment}}}]}}\n')
    with pytest.raises(UserError, match="test.jsonl.gz:1: "):
        read_speech(tmp_path, "test")
