"""The feature floor: per channel, the quietest that the training data have. Features below it are lifted to it.

A microphone that is switched off and a client that pads its audio give samples that are exactly zero. Their features lie far
below those of any room, and a model that was trained on recordings alone answers them with words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.data.batch import Batch

import torch
from torch import Tensor

KEY = "feature_floor"  # of checkpoints
UTTERANCES = 500  # of the training data, at most
MOST = 100.0  # nats, of either sign
QUANTILE = 0.05  # of the utterances' minima: a few damaged utterances do not matter


def floor_of(features: Iterable[Tensor]) -> Tensor | None:
    """Return the floor (F,), float32, of utterances' features, each (T, F); None if there is no frame."""
    minima = [matrix.amin(0) for matrix in features if len(matrix)]
    return torch.stack(minima).float().quantile(QUANTILE, 0) if minima else None


def utterances_of(batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Yield the features (T, F) of each utterance without padding."""
    for batch in batches:
        for matrix, length in zip(batch.inputs, batch.input_lens.tolist(), strict=True):
            yield matrix[:length]


def saved_floor(content: dict[str, Any], num_channels: int, where: Path) -> Tensor | None:
    """Return the floor (F,) of a checkpoint's content, None if it has none. Raises `UserError` naming the file and the key."""
    value = content.get(KEY)
    if value is None:
        return None
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != (num_channels,):
        raise UserError(f"{where}: '{KEY}' must be a tensor of {num_channels} floating-point numbers, one per feature channel")
    floor = value.float()
    if not (floor.abs() <= MOST).all():
        raise UserError(f"{where}: '{KEY}' contains NaN or values beyond {MOST:g}, which no log-energy of speech has")
    return floor
