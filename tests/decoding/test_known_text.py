"""Models that cannot write the references are refused; methods without their files are left out of `evaluate`."""

from __future__ import annotations

from pathlib import Path

from local import decode, tune
from local.common.errors import UserError
from local.common.locks import WRITER
from local.data.tokenizer import train_tokenizer
from local.decoding.known_text import check_known, compare_tokens
from tests.toy_experiment import make_experiment, toy_tokenizer, write_toy_lang

import pytest
from lhotse import CutSet
from lhotse.utils import fastcopy

TOKENIZER = toy_tokenizer()  # of the letters of ONE TWO THREE
WHERE = Path("exp/averaged.pt"), Path("data/there")


@pytest.mark.parametrize(
    ("texts", "count", "characters"),
    [
        (["ONE TWO", "ΕΝΑ ΔΥΟ"], "2 of 4", ["Δ", "Υ"]),
        (["one two"], "2 of 2", ["o", "n"]),
        (["ONE ÖNE THREE TWO"], "1 of 4", ["Ö"]),
        (["一二三四五六七八九 ONE"], "9 of 10", ["一", "九"]),
    ],
)
def test_a_model_without_the_characters_is_refused(texts: list[str], count: str, characters: list[str]) -> None:
    with pytest.raises(UserError) as e:
        check_known(texts, TOKENIZER, *WHERE)
    assert all(word in str(e.value) for word in [count, *map(str, WHERE), *characters])


def test_few_unknown_words_are_counted(capsys: pytest.CaptureFixture) -> None:
    check_known(["ONE TWO ONE TWO", "ÖNE ONE ONE ONE ONE TWO"], TOKENIZER, *WHERE)
    shown = capsys.readouterr().out
    assert "1 of 10 words" in shown and "Ö" in shown and str(WHERE[1]) in shown
    check_known(["ONE TWO", "", "   "], TOKENIZER, *WHERE)
    check_known([], TOKENIZER, *WHERE)
    assert capsys.readouterr().out == ""


def test_rare_chinese_characters_do_not_refuse_whole_sentences() -> None:
    """A text without spaces: one unknown character in every sentence of 12 is 1 of 12 words, not all of them."""
    known = "".join(map(chr, range(0x4E00, 0x4E00 + 11)))
    tokenizer = train_tokenizer([known] * 5, 30)
    check_known([known + "龍"] * 3, tokenizer, *WHERE)
    with pytest.raises(UserError, match=r"9 of 42 .*龍"):
        check_known([known + "龍龍龍"] * 3, tokenizer, *WHERE)


def test_other_tokens_of_the_data_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "cuts").mkdir()
    compare_tokens(TOKENIZER, WHERE[0], tmp_path)
    write_toy_lang(tmp_path)
    compare_tokens(TOKENIZER, WHERE[0], tmp_path)
    assert capsys.readouterr().out == ""
    compare_tokens(train_tokenizer(["ONE TWO"], 12), WHERE[0], tmp_path)
    shown = capsys.readouterr().out
    assert all(word in shown for word in (str(WHERE[0]), str(tmp_path), "lang_bpe_500"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy").mkdir()
    make_experiment(tmp_path / "toy")
    return tmp_path / "toy"


def paths(folder: Path, exp_dir: Path) -> list[str]:
    where = ["--checkpoint", folder / "averaged.pt", "--data-dir", folder / "data", "--exp-dir", exp_dir]
    return list(map(str, where))


@pytest.mark.parametrize("program", [decode, tune], ids=["decode", "tune"])
def test_decoding_and_tuning_stop_before_they_write(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, program: object
) -> None:
    manifest = folder / "data" / "cuts" / "test.jsonl.gz"
    cuts = [fastcopy(cut, supervisions=[fastcopy(cut.supervisions[0], text="ένα δύο")]) for cut in CutSet.from_file(manifest)]
    CutSet.from_cuts(cuts).to_file(manifest)
    with pytest.raises(SystemExit):
        program.main([*paths(folder, tmp_path / "exp"), "tune.blank_penalty=[0.0]"])  # type: ignore[attr-defined]
    error = capsys.readouterr().err
    assert all(word in error for word in ("8 of 8", "δ", str(folder / "averaged.pt"), str(folder / "data")))
    assert {path.name for path in (tmp_path / "exp").rglob("*")} <= {WRITER}


LM = "modified_beam_search_lm_shallow_fusion"
METHODS = f"decode.methods=[greedy_search,{LM},modified_beam_search_LODR,fast_beam_search_LG]"


def decoded(exp_dir: Path) -> set[str]:
    return {path.name for path in (exp_dir / "decode").iterdir()}


def test_methods_without_their_files_are_left_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    exp = tmp_path / "exp"
    decode.main([*paths(folder, exp), "--trained-in", str(folder), METHODS])
    shown = capsys.readouterr().out
    assert decoded(exp) == {"greedy_search", LM, "modified_beam_search_LODR"}
    graph = folder / "data" / "lang_bpe_500" / "graph" / "LG.npz"
    assert f"fast_beam_search_LG is left out: {graph}" in shown and shown.count("left out") == 1
    (folder / "lm" / "bigram.arpa").unlink()
    (folder / "lm" / "lm.pt").rename(folder / "other.pt")
    decode.main([*paths(folder, tmp_path / "two"), "--trained-in", str(folder), METHODS])
    shown = capsys.readouterr().out
    assert decoded(tmp_path / "two") == {"greedy_search"}
    assert f"{LM} is left out: {folder / 'lm' / 'lm.pt'}" in shown and "decode.lm" in shown
    decode.main([*paths(folder, tmp_path / "three"), "--trained-in", str(folder), METHODS, f"decode.lm={folder / 'other.pt'}"])
    assert decoded(tmp_path / "three") == {"greedy_search", LM}
    with pytest.raises(SystemExit):
        decode.main([*paths(folder, tmp_path / "four"), "--trained-in", str(folder), f"decode.methods=[{LM}]"])
    assert "decode.methods" in capsys.readouterr().err


def test_a_method_that_was_asked_for_is_an_error_otherwise(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        decode.main([*paths(folder, tmp_path / "exp"), METHODS])
    assert str(tmp_path / "exp" / "lm" / "lm.pt") in capsys.readouterr().err
