"""Words of a hypothesis with their times and confidences.

A transducer emits a token once, somewhere within its word. So these times alone do not tell where a word begins and ends.
The rule here uses the audio as well. It is the same for decoded words and for those of a given transcript (local/align.py):

1. Two words meet before the later one's first token: `SHARE` of the way back to the earlier one's last token, `LEAD` seconds
   at most. The first word begins `LEAD` seconds before its first token, the last one ends `TRAIL` seconds after its last.
2. The boundary then moves to a quiet frame, within `REACH` seconds and between the two tokens: to the frame with the least
   level + `FAR` * (distance in seconds)^2. The level is the mean of the log-mel features over channels and `SMOOTH` frames,
   scaled such that the utterance's noise has 0 and its speech 1.
3. Frames at a word's ends whose level is below `QUIET` are a pause and do not belong to the word. Neither do frames more than
   `LONGEST_TRAIL` seconds after its last token.

The constants were chosen on the voices of corpus tiny's dev set, whose word times eSpeak NG reports (docs/alignment.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from local.common.scripts import IDEOGRAPH, parts
from local.data.durations import FRAME_SECONDS
from local.data.tokenizer import SILENT, SPACE, Tokenizer
from model.search import Hypothesis

import numpy as np
import torch

Word = dict[str, Any]  # as `timed_words` returns them
TOKEN_SECONDS = 4 * FRAME_SECONDS  # per frame of the encoder's output
LEAD, SHARE, TRAIL, LONGEST_TRAIL = 0.3, 0.3, 0.5, 1.0
REACH, FAR, QUIET, SMOOTH = 0.15, 20.0, 0.2, 5
NOISE, SPEECH = 0.05, 0.9  # quantiles of the level that are taken for noise and for speech
LEAST = 2  # frames that a word has at least


class Spelled(NamedTuple):
    """A word and the places of its tokens: `letters` of those that spell it, `begin` of the first one or of a space before.

    joined: no space is before it, as before most Chinese and Japanese characters.
    """

    text: str
    begin: int
    letters: list[int]
    joined: bool


def timed_words(hypothesis: Hypothesis, tokenizer: Tokenizer, level: np.ndarray, partial: bool = False) -> list[Word]:
    """Return the words of `Tokenizer.decode` in order, as {"word", "start", "end", "confidence", "emitted"}.

    A Chinese or Japanese character is a word; one without a space before it has "joined": true, too.
    level: (T,), by `level_of`. start, end: seconds by the rule of this module; a word ends after its start and before the next
    one starts. partial: as for `Tokenizer.decode`.
    confidence: the product of its tokens' probabilities. emitted: seconds at which its last token came.
    """
    words = spelled(hypothesis.tokens, tokenizer, partial)
    times = [TOKEN_SECONDS * time for time in hypothesis.times]
    spans = word_spans([(times[word.begin], times[word.letters[-1]]) for word in words], level)
    return [
        {
            "word": word.text,
            "start": start,
            "end": end,
            "confidence": rounded(math.prod(hypothesis.confidences[place] for place in word.letters)),
            "emitted": round(times[word.letters[-1]], 3),
            **({"joined": True} if word.joined else {}),
        }
        for word, (start, end) in zip(words, spans, strict=True)
    ]


def timed_tokens(hypothesis: Hypothesis, tokenizer: Tokenizer, words: Sequence[Word]) -> list[Word]:
    """Return the tokens of `words`, made by `timed_words`, as {"token", "start", "end", "confidence"}; they fill their words.

    Within a word tokens meet where words without a pause would, whatever the level.
    """
    found = []
    for word, span in zip(spelled(hypothesis.tokens, tokenizer), words, strict=True):
        places = [place for place in range(word.begin, word.letters[-1] + 1) if hypothesis.tokens[place] not in SILENT]
        times = [TOKEN_SECONDS * hypothesis.times[place] for place in places]
        inner = [later - SHARE * (later - earlier) for earlier, later in zip(times, times[1:], strict=False)]
        edges = increasing([span["start"], *inner, span["end"]], span["start"], span["end"], FRAME_SECONDS)
        for place, start, end in zip(places, edges, edges[1:], strict=False):
            text, confidence = tokenizer.tokens[hypothesis.tokens[place]], rounded(hypothesis.confidences[place])
            found.append({"token": text, "start": round(start, 3), "end": round(end, 3), "confidence": confidence})
    return found


def spelled(tokens: Sequence[int], tokenizer: Tokenizer, partial: bool = False) -> list[Spelled]:
    """Return the words that tokens spell, as `Tokenizer.decode` does, and each Chinese or Japanese character as a word."""
    words: list[Spelled] = []
    begin: int | None = None  # place of the last token with a space, where the next word begins
    within = False
    unfinished: list[int] = []  # tokens of bytes, of a character that is not yet complete
    for place, (token, added) in enumerate(zip(tokens, tokenizer.pieces(tokens, partial), strict=True)):
        if not added:
            unfinished += [] if token in SILENT else [place]
            continue
        for number, piece in enumerate(added.split(SPACE)):
            if number:
                within, begin = False, place
            for part in parts(piece):
                letters, unfinished = [*unfinished, place], []
                if within and not IDEOGRAPH.match(part) and not IDEOGRAPH.match(words[-1].text):
                    words[-1] = words[-1]._replace(text=words[-1].text + part, letters=[*words[-1].letters, *letters])
                else:
                    words.append(Spelled(part, letters[0] if begin is None else begin, letters, within))
                    within, begin = True, None
    return words


def level_of(features: torch.Tensor, floor: torch.Tensor | None = None) -> np.ndarray:
    """Return the level (T,) of features (T, F), lifted to a feature floor (F,) if there is one."""
    lifted = features if floor is None else torch.maximum(features, floor.to(features.device))
    return lifted.mean(dim=1).double().cpu().numpy()


def levels_of(x: torch.Tensor, x_lens: torch.Tensor, floor: torch.Tensor | None) -> list[np.ndarray]:
    """Return `level_of` of each utterance of a batch x (N, T, F) of x_lens (N,) frames."""
    return [level_of(features[:length], floor) for features, length in zip(x, x_lens.tolist(), strict=True)]


def word_spans(emitted: Sequence[tuple[float, float]], level: np.ndarray) -> list[tuple[float, float]]:
    """Return start and end of words in seconds, by the rule of this module.

    emitted: of each word, the seconds at which its first and last token came; not decreasing. level: (T,), by `level_of`.
    """
    if not emitted or not len(level):
        return [(first, round(max(last, first + LEAST * FRAME_SECONDS), 3)) for first, last in emitted]
    window = np.pad(level, SMOOTH // 2, mode="edge")
    smooth = np.convolve(window, np.full(SMOOTH, 1 / SMOOTH), "valid")
    noise, speech = np.quantile(smooth, (NOISE, SPEECH))
    level = (smooth - noise) / max(float(speech - noise), 1e-3)

    def quietest(expected: float, first: float, last: float) -> int:
        """Return the boundary near the `expected` one, within `first` and `last`; all in seconds."""
        low, high = (min(max(round(seconds / FRAME_SECONDS), 0), len(level)) for seconds in (first, max(first, last)))
        frames = np.arange(low, high + 1)
        cost = np.maximum(level[np.minimum(frames, len(level) - 1)], 0) + FAR * (FRAME_SECONDS * frames - expected) ** 2
        return low + int(cost.argmin())

    begin, end = emitted[0][0] - LEAD, emitted[-1][1] + TRAIL
    edges = [quietest(begin, begin - 2 * REACH, min(begin + 2 * REACH, emitted[0][0]))]
    for (_, last), (first, _) in zip(emitted, emitted[1:], strict=False):
        middle = first - min(LEAD, SHARE * (first - last))
        edges.append(quietest(middle, max(middle - REACH, last), min(middle + REACH, first)))
    edges.append(quietest(end, max(end - 2 * REACH, emitted[-1][1]), end + 2 * REACH))
    bounds = increasing(edges, 0, len(level), LEAST)
    spans = []
    for first, last, (_, token) in zip(bounds, bounds[1:], emitted, strict=False):
        latest = max(first + LEAST, (token + LONGEST_TRAIL) / FRAME_SECONDS)
        spans.append(without_pauses(first, min(last, latest), level))
    return [(round(FRAME_SECONDS * first, 3), round(FRAME_SECONDS * last, 3)) for first, last in spans]


def without_pauses(first: float, last: float, level: np.ndarray) -> tuple[float, float]:
    """Return the frames of a word without the quiet ones at both ends; all of them if none is loud."""
    begin = math.ceil(first)  # words share a frame if they are more than there is room for
    loud = np.flatnonzero(level[begin : int(last)] > QUIET)
    return (begin + int(loud[0]), begin + int(loud[-1]) + 1) if len(loud) else (first, last)


def increasing(values: Sequence[float], low: float, high: float, least: float) -> list[float]:
    """Return values from `low` to `high` that grow by at least `least` each, or by as much as there is room for."""
    steps = min(least, (high - low) / max(len(values) - 1, 1)) * np.arange(len(values))
    found: list[float] = (np.clip(np.maximum.accumulate(values - steps), low, high - steps[-1]) + steps).tolist()
    return found


def one_after_another(words: Sequence[Word]) -> list[Word]:
    """Return the words of joined windows, whose times may cross, with times such that each starts and ends after the last."""
    found: list[Word] = []
    for word in words:
        start = word["start"]
        if found:
            start = max(start, round(found[-1]["start"] + LEAST * FRAME_SECONDS, 3))
            found[-1]["end"] = min(found[-1]["end"], start)
        found.append({**word, "start": start, "end": max(word["end"], round(start + LEAST * FRAME_SECONDS, 3))})
    return found


def shifted(words: Sequence[Word], seconds: float) -> list[Word]:
    """Return the words `seconds` later."""
    return [{**word, **{key: round(word[key] + seconds, 3) for key in ("start", "end", "emitted")}} for word in words]


def rounded(probability: float) -> float:
    """Return a probability with the four decimals of result files; 0 if it is not finite."""
    return round(probability, 4) if math.isfinite(probability) else 0.0
