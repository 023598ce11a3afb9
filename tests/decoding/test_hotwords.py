"""Lists of hotwords: empty, long, with the same phrase again and again, with impossible boosts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from local.common.errors import UserError
from local.decoding.resources import LARGEST_BOOST, Resources, read_hotwords
from model.search.scorers import HotwordScorer, hotwords
from tests.toy_experiment import toy_tokenizer

import pytest
import torch

TOKENIZER = toy_tokenizer()


def read(path: Path, text: str) -> list[tuple[list[int], float]]:
    path.write_text(text, encoding="utf-8")
    return read_hotwords(path, 2.0, TOKENIZER, str.strip)


@pytest.mark.parametrize("text", ["", "\n", " \n\t\n\u3000\n", "\t5\n"])
def test_blanks_are_no_phrases(tmp_path: Path, text: str) -> None:
    assert read(tmp_path / "hotwords", text) == []


def test_repeated_phrases_count_once(tmp_path: Path) -> None:
    found = read(tmp_path / "hotwords", "ONE TWO\t1\n" + "ONE TWO\n" * 20_000 + "ONE TWO\t3\n")
    assert len(found) == 20_002
    scorer = HotwordScorer(found, TOKENIZER.vocab_size)
    assert len(scorer.goto) == len(found[0][0]) + 1
    assert float(scorer.value.max()) == 3.0


@pytest.mark.parametrize("boost", ["1e308", "-1e308", "inf", "nan", str(LARGEST_BOOST * 1.01), "many"])
def test_boosts_have_bounds(tmp_path: Path, boost: str) -> None:
    with pytest.raises(UserError, match=rf"hotwords:2: .*{boost}"):
        read(tmp_path / "hotwords", f"ONE\nTWO\t{boost}\n")


def test_the_largest_boost_gives_finite_scores(tmp_path: Path) -> None:
    scorer = HotwordScorer(read(tmp_path / "hotwords", f"ONE\t{LARGEST_BOOST}\n"), TOKENIZER.vocab_size)
    assert bool(torch.isfinite(scorer.score(scorer.initial(1))).all())


def test_unknown_tokens_are_named_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hotwords:2: .*Q"):
        read(tmp_path / "hotwords", "ONE\nQQ\n" + "TWO\n" * 1000)


def test_too_many_phrases_are_one_line_before_they_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotwords, "LARGEST_TABLE", 100)
    path = tmp_path / "hotwords"
    path.write_text("ONE TWO THREE ONE TWO THREE ONE TWO THREE\n")
    resources = Resources(torch.nn.Linear(1, 1), TOKENIZER, torch.device("cpu"), tmp_path, clean=str.strip)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"hotwords: 1 phrases"):
        resources.hotwords(SimpleNamespace(hotwords=str(path), hotwords_boost=1.0))  # type: ignore[arg-type]
