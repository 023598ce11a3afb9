"""Words of a hypothesis with their times and confidences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from local.data.durations import FRAME_SECONDS
from local.data.tokenizer import BLANK_ID, SOS_EOS_ID, SPACE, Tokenizer
from model.search import Hypothesis

Word = dict[str, Any]  # as `timed_words` returns them
TOKEN_SECONDS = 4 * FRAME_SECONDS  # per frame of the encoder's output


def timed_words(hypothesis: Hypothesis, tokenizer: Tokenizer) -> list[Word]:
    """Return the words of `Tokenizer.decode` in order, as {"word", "start", "end", "confidence"}.

    start, end: seconds at which the word's first and last token came. confidence: the product of its tokens' probabilities.
    """
    words: list[Word] = []
    open_word = False
    for token, time, confidence in zip(hypothesis.tokens, hypothesis.times, hypothesis.confidences, strict=True):
        pieces = [] if token in (BLANK_ID, SOS_EOS_ID) else tokenizer.tokens[token].split(SPACE)
        seconds = round(TOKEN_SECONDS * time, 3)
        for place, piece in enumerate(pieces):
            open_word = open_word and place == 0
            if piece and not open_word:
                words.append({"word": "", "start": seconds, "end": seconds, "confidence": 1.0})
                open_word = True
            if piece:
                words[-1]["word"] += piece
                words[-1]["end"] = seconds
                words[-1]["confidence"] *= confidence
    for word in words:
        word["confidence"] = rounded(word["confidence"])
    return words


def shifted(words: Sequence[Word], seconds: float) -> list[Word]:
    """Return the words `seconds` later."""
    return [{**w, "start": round(w["start"] + seconds, 3), "end": round(w["end"] + seconds, 3)} for w in words]


def rounded(probability: float) -> float:
    """Return a probability with the four decimals of result files; 0 if it is not finite."""
    return round(probability, 4) if math.isfinite(probability) else 0.0
