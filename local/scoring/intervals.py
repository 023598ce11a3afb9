"""How sure a WER is: its 95 % interval, and whether a difference is more than chance. Both are over utterances. No files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

REPLICATIONS = 10_000
SEED = 0
FEW = 5  # utterances with an error, or without: fewer show too little of what other speech would bring
Z = 1.959964  # of the normal distribution: 95 % are within
MOST_NUMBERS = 4_000_000  # that are in memory at once
MOST_ERRORS = 200_000  # of the exact test; sums of so many have a normal distribution


def wer_interval(errors: Sequence[int], words: Sequence[int]) -> tuple[float, float] | None:
    """Return the 95 % interval of a WER in percent: percentiles of a bootstrap over utterances. None without words.

    M. Bisani, H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004. With fewer
    than `FEW` utterances with an error, or without one, the interval also spans Wilson's of the words: resampling no error
    brings none. The interval always holds the WER.

    Args:
        errors: of each utterance.
        words: of each utterance's reference; may be 0.
    """
    total = sum(words)
    if not total:
        return None
    wer, wrong = 100.0 * sum(errors) / total, np.count_nonzero(errors)
    ends = np.percentile(resampled_rates(errors, words), (2.5, 97.5)).tolist()
    if min(wrong, len(errors) - wrong) < FEW:
        ends += wilson(min(sum(errors) / total, 1.0), total)
    ends = [wer, *(100 * end for end in ends)]
    return min(ends), max(ends)


def resampled_rates(errors: Sequence[int], words: Sequence[int]) -> np.ndarray:
    """Return the error rates of `REPLICATIONS` sets of as many utterances, drawn with replacement.

    Sets without a word are left out. Utterances with equal errors and words are alike: how often each kind is drawn has a
    multinomial distribution, which is faster to draw from than single utterances.
    """
    kinds, counts = np.unique(np.stack([errors, words], axis=1), axis=0, return_counts=True)
    generator, rates = np.random.default_rng(SEED), []
    step = max(1, MOST_NUMBERS // len(kinds))
    for start in range(0, REPLICATIONS, step):
        size = min(step, REPLICATIONS - start)
        drawn = generator.multinomial(len(errors), counts / len(errors), size=size) @ kinds  # (size, 2)
        rates.append(drawn[drawn[:, 1] > 0, 0] / drawn[drawn[:, 1] > 0, 1])
    return np.concatenate(rates)


def wilson(rate: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a probability, of which `rate` was seen in `count` independent trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927. For no error in n
    words its upper end is 3.84 / (n + 3.84).
    """
    centre = (rate + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(rate * (1 - rate) / count + Z * Z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def chance(differences: Sequence[int]) -> float:
    """Return P, two-sided: how probable so large a sum of differences is if both systems are equally good.

    The exact paired permutation test: equally good systems could be exchanged in any utterance, so each difference has either
    sign with probability 1/2. P is the share of all 2^n choices of signs whose sum is as far from 0, or farther.
    E. J. G. Pitman, "Significance tests which may be applied to samples from any populations", 1937. The distribution of the
    sum is the Fourier transform of its characteristic function, the product of cos(w d).

    Args:
        differences: of each utterance, the errors of one system minus those of the other.
    """
    sizes, counts = np.unique(np.abs(np.asarray([d for d in differences if d], dtype=np.int64)), return_counts=True)
    most, seen = int(sizes @ counts), abs(sum(differences))
    if not seen:
        return 1.0
    if most > MOST_ERRORS:
        return math.erfc(seen / math.sqrt(2 * float(sizes**2 @ counts)))
    length = 2 * most + 1  # sums from -most to most; negative ones are at the end
    angles = 2 * np.pi / length * np.arange(most + 1)
    transform = np.ones(most + 1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        transform *= np.cos(angles * size) ** count
    share = np.fft.irfft(transform, n=length)[seen : most + 1].sum()
    return float(np.clip(2 * share, 0.0, 1.0))
