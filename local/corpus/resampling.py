"""Resampling at any ratio of rates. Importing this makes it the resampler of lhotse's transforms (Resample, Speed, ...).

lhotse's resampler makes a table of a filter for each phase. Usual rates have few phases, but from 22051 Hz to 16000 Hz there
are 16000, of 22051 numbers each: 14 GB. Such ratios go to soxr, which has no such table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from lhotse.augmentation import torchaudio as lhotse_transforms
from lhotse.augmentation.resample import Resample
from torch import Tensor

LARGEST_TABLE = 1 << 20  # numbers; 11025 Hz to 16000 Hz needs 0.3 million
FILTER_WIDTH, ROLLOFF = 6, 0.99  # lhotse's defaults


def table_size(source: int, target: int) -> int:
    """Return how many numbers lhotse's table has, from `source` to `target` Hz."""
    common = math.gcd(source, target)
    old, new = source // common, target // common
    return new * (old + 2 * math.ceil(FILTER_WIDTH * old / (min(old, new) * ROLLOFF)))


@lru_cache(maxsize=64)
def resampler(source: int, target: int) -> Callable[[Tensor], Tensor]:
    """Return a function that resamples (C, S) float32 from `source` to `target` Hz, to ceil(S * target / source) samples."""
    source, target = int(source), int(target)
    return Resample(source, target) if table_size(source, target) <= LARGEST_TABLE else SoxResampler(source, target)


class SoxResampler:
    """soxr in high quality, with the number of samples that lhotse's resampler gives."""

    def __init__(self, source: int, target: int) -> None:
        """Resample from `source` to `target` Hz."""
        self.source, self.target = source, target

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return the samples (C, S) at the other rate."""
        import soxr  # here, as few corpora need it

        samples = waveform.numpy()
        length = -(-samples.shape[-1] * self.target // self.source)
        found = soxr.resample(np.ascontiguousarray(samples.T), self.source, self.target).T[:, :length]
        return torch.from_numpy(np.pad(found, ((0, 0), (0, length - found.shape[1]))))


lhotse_transforms.get_or_create_resampler = resampler
