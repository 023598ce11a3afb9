"""Stage lang: training utterances whose tokens do not give their text back are listed, others of the kind are named."""

from __future__ import annotations

from local.corpus.dropped import Dropped
from local.data.token_counts import UNUSABLE
from local.data.tokenizer import train_tokenizer
from local.prepare_lang import count_tokens

import pytest
from lhotse import MonoCut, SupervisionSegment
from lhotse.cut import Cut

LOST = {"block": "one\u2581two", "other": "on\u00fc"}
KEPT = {"plain": "one two", "special": "<blk> one <sos/eos> <unk>", "joiner": "on\u200ce tw\u200do", "fraction": "1\u20442"}


def cuts() -> list[Cut]:
    return [
        MonoCut(name, 0.0, 60.0, 0, [SupervisionSegment(name, name, 0.0, 60.0, text=text)])
        for name, text in {**LOST, **KEPT, "long": "one two " * 700 + "two"}.items()
    ]


def test_texts_that_do_not_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    long = cuts()[-1].supervisions[0].text
    tokenizer = train_tokenizer([*KEPT.values(), long] * 3, 100)
    dropped: list[Dropped] = []
    counts = count_tokens(cuts(), "train", True, tokenizer, dropped)
    assert [name for name, count in counts.items() if count == UNUSABLE] == [*LOST, "long"]  # the last has too many tokens
    kind = "characters outside the model"
    assert dropped[:2] == [Dropped("block", "train", kind, "\u2581"), Dropped("other", "train", kind, "\u00fc")]
    assert "tokens" in dropped[2].kind and "frames" in dropped[2].kind and len(dropped) == 3
    counts = count_tokens(cuts(), "dev", False, tokenizer, dropped)
    assert min(counts.values()) > 0 and len(dropped) == 3
    named = capsys.readouterr().out
    assert "block (\u2581)" in named and "other (\u00fc)" in named and not any(name in named for name in (*KEPT, "long"))
