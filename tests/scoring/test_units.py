"""Error rates by words or characters: chosen by the script of the references, and the same in all that scores."""

from __future__ import annotations

import json
from pathlib import Path

from local.scoring.align import Unit, Utterance, score, symbol_delays, unit_of, units, word_errors
from local.scoring.comparison import compare
from local.scoring.error_report import error_report
from local.scoring.hypotheses import read_hypotheses
from local.wer import main
from tests.toy_experiment import levenshtein

import pytest
from hypothesis import given
from hypothesis import strategies as st

# Three sentences with a wrong character each: 3 of 14 characters, 3 of 3 words.
CHINESE = [("a", "我爱北京", "我爱背京"), ("b", "今天天气好", "今天天七好"), ("c", "他们去学校", "他门去学校")]
HEBREW = [("a", "שלום עולם", "שלום עולה"), ("b", "בוקר טוב", "בוקר טוב")]
texts = st.lists(st.text("我爱AB", min_size=1, max_size=3), max_size=4).map(" ".join)


def write(exp: Path, name: str, rows: list[tuple[str, str, str]], method: str = "greedy_search") -> None:
    path = exp / "decode" / method / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, "ref": r, "hyp": h}) + "\n" for i, r, h in rows), encoding="utf-8")


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_characters_agree_with_levenshtein(pairs: list[tuple[str, str]]) -> None:
    """Blanks do not count."""
    result = score([Utterance(str(i), r, h) for i, (r, h) in enumerate(pairs)], "char")
    plain = [(r.replace(" ", ""), h.replace(" ", "")) for r, h in pairs]
    assert result.errors == result.char_errors == sum(levenshtein(r, h) for r, h in plain)
    assert result.words == sum(len(r) for r, _ in plain) and result.rate == "CER"
    assert result.errors == sum(word_errors(r, h, "char") for r, h in pairs)
    assert result.wer == result.cer


@pytest.mark.parametrize(
    ("refs", "wanted", "unit"),
    [
        (["我爱北京"], "auto", "char"),
        (["我 爱 北京"], "auto", "char"),
        (["สวัสดีครับ"], "auto", "char"),
        (["안녕하세요 저는"], "auto", "word"),
        (["שלום עולם"], "auto", "word"),
        (["ONE TWO", "北京"], "auto", "word"),
        (["我爱北京"], "word", "word"),
        (["ÜBER ALLES"], "char", "char"),
        ([], "auto", "word"),
    ],
)
def test_the_unit(refs: list[str], wanted: str, unit: Unit) -> None:
    assert unit_of(refs, wanted) == unit  # type: ignore[arg-type]


def test_the_table_says_which_unit_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "mandarin", CHINESE)
    write(tmp_path, "hebrew", HEBREW)
    main(["--exp-dir", str(tmp_path)])
    shown = capsys.readouterr().out
    by_words, by_characters = (block for block in shown.split("\n\n")[:2])
    assert "WER %" in by_words and "hebrew" in by_words and "mandarin" not in by_words
    assert "| CER %" in by_characters and "WER" not in by_characters and "characters" in by_characters
    table = json.loads((tmp_path / "wer.json").read_text())
    (cer,), (wer,) = table["mandarin"].values(), table["hebrew"].values()
    assert (cer["unit"], cer["sub"], cer["words"], cer["wer"]) == ("char", 3, 14, round(300 / 14, 4)) and cer["cer"] == cer[
        "wer"
    ]
    assert (wer["unit"], wer["sub"], wer["words"], wer["wer"]) == ("word", 1, 4, 25.0)
    report = (tmp_path / "errors" / "mandarin.greedy_search.txt").read_text()
    assert "CER 21.43 %" in report and "我 爱 (北->背) 京" in report and "WER" not in report


@pytest.mark.parametrize(("unit", "rate", "words"), [("word", 100.0, 3), ("char", 100 * 3 / 14, 14)])
def test_a_unit_that_is_asked_for(tmp_path: Path, unit: str, rate: float, words: int) -> None:
    write(tmp_path, "mandarin", CHINESE)
    main(["--exp-dir", str(tmp_path), "--unit", unit])
    row = json.loads((tmp_path / "wer.json").read_text())["mandarin"]["greedy_search"]
    assert (row["unit"], row["wer"], row["words"]) == (unit, round(rate, 4), words)


def test_two_experiments_are_compared_by_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By words both are 100 % wrong and equal."""
    write(tmp_path / "a", "mandarin", CHINESE)
    write(tmp_path / "b", "mandarin", [(i, ref, "错" * len(ref)) for i, ref, _ in CHINESE])
    main(["--exp-dir", str(tmp_path / "a"), "--compare", str(tmp_path / "b")])
    assert "21.43 %" in (line := capsys.readouterr().out.splitlines()[-1]) and "100.00 %" in line and "a is better" in line
    ours, theirs = (score([Utterance(i, r, h) for i, r, h in rows], "char") for rows in (CHINESE, [*CHINESE[:1], *HEBREW[1:]]))
    common = compare("x", "m", ours, theirs)
    assert (common.first.unit, common.first.words, common.alone) == ("char", 4, 3)
    rows = [Utterance(i, r, h) for i, r, h in CHINESE]
    older = compare("x", "m", score(rows, "char"), score(rows, "word"))  # the second scored before there were units
    assert older.better == 0 and older.second.words == 14


def test_an_oracle_chooses_by_characters(tmp_path: Path) -> None:
    """By words both entries are wrong, and the first would be taken."""
    path = tmp_path / "fast_beam_search_nbest_oracle" / "test.jsonl"
    path.parent.mkdir()
    row = {"id": "a", "ref": "我爱北京", "hyp": "x", "nbest": [{"hyp": "错错错错"}, {"hyp": "我爱背京"}]}
    path.write_text(json.dumps(row) + "\n")
    assert read_hypotheses(path)[0].hyp == "我爱背京" and read_hypotheses(path, "word")[0].hyp == "错错错错"


def test_delays_and_reports_of_characters() -> None:
    result = score([Utterance("u", "我爱 你", "我爱你", (0.5, 0.9, 1.3))], "char")
    assert symbol_delays(result, {"u": [("我", 0.0, 0.4), ("爱", 0.4, 0.8), ("你", 0.8, 1.2)]}) == pytest.approx([0.1] * 3)
    assert units("我 爱", "char") == ["我", "爱"] and units("我 爱你", "word") == ["我", "爱你"]
    assert "1 utterances, 3 characters" in error_report("x", result)
