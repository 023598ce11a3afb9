"""The report's section on word confidences: is a word of confidence 0.8 right in 80 % of all cases?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local.common.html_page import Page, new_figure
from local.common.visible import shortened
from local.reporting.curves import COLOURS, GREY, WIDTH, finish
from local.reporting.experiment import Experiment
from local.reporting.glossary import short
from local.reporting.overview import add_table
from local.scoring.align import EPS, Score, units
from local.scoring.hypotheses import is_oracle

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS, LEAST = 10, 20  # bins at most; words in a bin at least
NEAREST = 5e-5  # to 0 and 1: result files have four decimals, so 1.0000 stands for 0.99995 and more
THRESHOLDS = (0.5, 0.7, 0.9)
MOST_DRAWN = 6  # sets in a drawing each


@dataclass(frozen=True)
class Words:
    """Recognised words: their confidences (0 to 1), and whether each is right (it is aligned with the same word)."""

    confidence: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.confidence)


def words_of(score: Score, rows: Mapping[str, Mapping[str, Any]]) -> Words:
    """Return the recognised words of one set and method; rows: the lines of the decoded set by id.

    Utterances without confidences, or whose words are not those of the hypothesis, are left out.
    """
    confidence: list[float] = []
    right: list[bool] = []
    for utterance, pairs in zip(score.utterances, score.alignments, strict=True):
        found = confidences(rows.get(utterance.id, {}), units(utterance.hyp, score.unit))
        if found:
            confidence += found
            right += [ref == hyp for ref, hyp in pairs if hyp != EPS]
    return Words(np.array(confidence, dtype=float), np.array(right, dtype=bool))


def confidences(row: Mapping[str, Any], hyp: Sequence[str]) -> list[float]:
    """Return the confidence of each word of a hypothesis; [] if the row does not have all of them."""
    try:
        words = [(word["word"], float(word["confidence"])) for word in row["words"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return []
    fine = all(0 <= confidence <= 1 for _, confidence in words)  # false for NaN
    return [confidence for _, confidence in words] if fine and [word for word, _ in words] == list(hyp) else []


def binned(words: Words, bins: int = BINS) -> list[tuple[float, float, int]]:
    """Return mean confidence, share of right words and number of words for bins of about equal numbers of words.

    Words of the same confidence are in the same bin, so there may be fewer bins.
    """
    order = np.argsort(words.confidence, kind="stable")
    confidence, right = words.confidence[order], words.right[order]
    count = max(1, min(bins, len(words) // LEAST))
    wanted = [len(words) * i // count for i in range(1, count)]
    ends = sorted({int(np.searchsorted(confidence, confidence[end - 1], "right")) for end in wanted} | {len(words)})
    found = []
    for start, end in zip([0, *ends], ends, strict=False):
        if end > start:
            found.append((float(confidence[start:end].mean()), float(right[start:end].mean()), end - start))
    return found


def calibration_error(words: Words) -> float | None:
    """Return the expected calibration error: the mean distance, weighted by words, between confidence and share of right words.

    M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015; with
    the bins of `binned`. Returns None without words.
    """
    if not len(words):
        return None
    return sum(n * abs(confidence - right) for confidence, right, n in binned(words)) / len(words)


def cross_entropy(words: Words) -> float | None:
    """Return the normalised cross entropy (NCE) of NIST: 1 for perfect confidences, 0 for the same one for all words.

    NCE = (H - E) / H. H is the entropy of "right or wrong" if only the share of right words is known; E is the cross entropy
    of the confidences. Below 0, the confidences say less than this share alone. It is in NIST's sclite; see M. Siu, H. Gish,
    F. Richardson, "Improved estimation, evaluation and applications of confidence measures for speech recognition", Eurospeech
    1997. Returns None if all words are right or all are wrong: then H is 0.
    """
    n, good = len(words), int(words.right.sum())
    if good in (0, n):
        return None
    c = np.clip(words.confidence, NEAREST, 1 - NEAREST)
    crossed = -float(np.log2(c[words.right]).sum() + np.log2(1 - c[~words.right]).sum())
    entropy = -good * math.log2(good / n) - (n - good) * math.log2(1 - good / n)
    return (entropy - crossed) / entropy


def caught(words: Words, threshold: float) -> tuple[int, int]:
    """Return the number of words with a confidence below the threshold, and how many of these are wrong."""
    below = words.confidence < threshold
    return int(below.sum()), int((below & ~words.right).sum())


def add_calibration(page: Page, experiment: Experiment) -> None:
    """Add how well confidences tell right words from wrong ones, by set and method without oracles."""
    found = {
        name: {
            method: words
            for method, score in methods.items()
            if not is_oracle(method) and len(words := words_of(score, experiment.rows.get(name, {}).get(method, {})))
        }
        for name, methods in experiment.scores.items()
    }
    found = {name: methods for name, methods in found.items() if methods}
    page.section("Confidences", "confidences")
    if not found:
        page.text("The decoded sets have no word confidences; local/decode.py writes them.")
        return
    page.text(
        "A word's confidence is the product of the probabilities of its tokens. It is well calibrated if words of confidence "
        "0.8 are right in 80 % of all cases."
    )
    for name, methods in list(found.items())[:MOST_DRAWN]:
        page.drawing(
            diagram(name, methods),
            f"Set {name}: words are sorted by confidence into bins of equal numbers; each point is a bin. Healthy: the points "
            "lie near the dotted line. Below it the model is overconfident, above it underconfident. Small bins vary much.",
        )
    add_table(page, ("set", "method", "words", "wrong", "mean confidence", "calibration error", "NCE"), summary(found))
    page.note(
        "calibration error: the mean distance between confidence and share of right words, 0 is best. NCE: normalised cross "
        "entropy, 1 is best; 0 means that the confidences say no more than the share of right words alone, below 0 they say "
        "less. Both are inexact if few words are wrong. Deleted words have no confidence and do not count."
    )
    page.text("Words whose confidence is below a threshold, and how many of the wrong words are among them.")
    add_table(page, ("set", "method", *(f"below {t}" for t in THRESHOLDS)), catches(found))


def summary(found: Mapping[str, Mapping[str, Words]]) -> Iterator[list[str]]:
    """Yield a row for each set and method."""
    for name, methods in found.items():
        for method, words in methods.items():
            error, nce = calibration_error(words), cross_entropy(words)
            numbers = [f"{words.confidence.mean():.4f}", *("-" if x is None else f"{x:.4f}" for x in (error, nce))]
            yield [name, method, str(len(words)), str(int((~words.right).sum())), *numbers]


def catches(found: Mapping[str, Mapping[str, Words]]) -> Iterator[list[str]]:
    """Yield a row for each set and method, with a cell for each threshold."""
    for name, methods in found.items():
        for method, words in methods.items():
            wrong = int((~words.right).sum())
            cells = [caught(words, threshold) for threshold in THRESHOLDS]
            yield [name, method, *(f"{below} words, {hit} of {wrong} wrong".replace(" ", "\u00a0") for below, hit in cells)]


def diagram(name: str, methods: Mapping[str, Words]) -> Figure:
    """Draw the share of right words against the confidence, a line for each method."""
    figure = new_figure(4.4, WIDTH)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    for i, (method, words) in enumerate(methods.items()):
        confidence, right, _ = zip(*binned(words), strict=True)
        label = shortened(short(method), 30)
        axes.plot(confidence, right, marker="o", markersize=4, linewidth=1, color=COLOURS[i % len(COLOURS)], label=label)
    low = min(0.95, *(min(b[:2]) for words in methods.values() for b in binned(words)))
    axes.set(xlabel="mean confidence", ylabel="share of right words", xlim=(low - 0.02, 1.01), ylim=(low - 0.02, 1.01))
    finish(axes)
    return figure
