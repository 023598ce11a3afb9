"""The losses of a batch: one forward pass in the precision of the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from local.data.batch import Batch
from model.transducer import Transducer

import torch
from torch import Tensor

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Losses(NamedTuple):
    """The losses of N utterances, each (N,); of `simple`, `pruned`, `ctc` and `consistency` also their sums."""

    simple: Tensor  # nats, the loss without the joiner
    pruned: Tensor  # nats, the loss within the pruning bounds
    outside: Tensor | None  # share of the simple lattice's posterior mass outside these bounds; None if not monitored
    ctc: Tensor | None = None  # nats, the loss of the CTC head; None without one
    consistency: Tensor | None = None  # nats, between two copies of each utterance; None with one copy
    sharpness: Tensor | None = None  # each token's largest probability in one frame, summed over tokens; None if not asked

    def detach(self) -> Losses:
        """Return the losses without their graph."""
        return self._each(Tensor.detach)

    def finite(self) -> Tensor:
        """Return whether all losses of an utterance are finite, bool (N,)."""
        found = [loss for loss in (self.simple, self.pruned, self.ctc, self.consistency) if loss is not None]
        return torch.stack(found).isfinite().all(dim=0)

    def summed(self) -> Losses:
        """Return the sums over the utterances, scalars."""
        return self._each(Tensor.sum)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Losses:
        optional = [None if value is None else change(value) for value in self[2:]]
        return Losses(change(self.simple), change(self.pruned), *optional)


def forward_losses(
    model: Transducer,
    batch: Batch,
    *,
    warmup: float,
    precision: str = "float32",
    monitor: bool = False,
    sharpness: bool = False,
) -> Losses:
    """Return the losses of `batch`, in float32, on the device of `model`.

    warmup: batches done / batches of the warm-up. precision: float32, bf16 or fp16, as train.precision. monitor, sharpness:
    compute `outside`, `sharpness`.
    """
    device = next(model.parameters()).device
    batch = batch.to(device)
    dtype = AUTOCAST_TYPES.get(precision, torch.bfloat16)
    with torch.autocast(device.type, dtype=dtype, enabled=precision != "float32"):
        found = model(
            batch.inputs,
            batch.input_lens,
            batch.tokens,
            batch.token_lens,
            warmup=warmup,
            monitor=monitor,
            second=batch.second,
            sharpness=sharpness,
        )
    return Losses(found["simple"], found["pruned"], *(found.get(name) for name in Losses._fields[2:]))
