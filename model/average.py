"""Averages of model parameters, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


class RunningAverage:
    """The mean of a model's floating-point tensors over all batches so far, sampled every `period` batches, in float64.

    avg += (model - avg) * period / batches. Two such averages, at batches s < e, give the mean over (s, e] exactly
    (`average_between`), without keeping the models in between. Other tensors (counters) are the latest value.
    """

    def __init__(self, model: torch.nn.Module, period: int) -> None:
        self.period = period
        self.batches = 0
        self.state: State = {k: _wide(v) for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, batches: int) -> None:
        """Call after every batch; acts when `batches` (done so far, from 1) is a multiple of the period."""
        if batches % self.period != 0:
            return
        weight = self.period / batches
        for key, value in model.state_dict().items():
            average = self.state[key]
            if average.is_floating_point():
                average += (value.to(average.dtype) - average) * weight
            else:
                average.copy_(value)
        self.batches = batches

    def state_dict(self) -> dict[str, object]:
        """The average and the number of batches it covers, for a checkpoint; float64 stays float64."""
        return {"state": {k: v.clone() for k, v in self.state.items()}, "batches": self.batches, "period": self.period}

    def load_state_dict(self, saved: dict) -> None:  # type: ignore[type-arg]
        """Go on from `state_dict()`'s values; the period is kept from the saved run."""
        self.batches, self.period = saved["batches"], saved["period"]
        for key, value in saved["state"].items():
            self.state[key].copy_(value)


def _wide(value: Tensor) -> Tensor:
    return value.detach().double() if value.is_floating_point() else value.detach().clone()


def average_between(start: State, start_batches: int, end: State, end_batches: int) -> State:
    """(avg_e e - avg_s s) / (e - s): the mean over the batches (s, e], from running averages at both ends, float64.

    ValueError where the range holds no batch.
    """
    if end_batches <= start_batches:
        raise ValueError(f"no batches lie between {start_batches} and {end_batches}")
    n = end_batches - start_batches
    result: State = {}
    for key, value in end.items():
        if value.is_floating_point():
            result[key] = (value.double() * end_batches - start[key].double() * start_batches) / n
        else:
            result[key] = value.clone()
    return result


def average_plain(states: Sequence[State]) -> State:
    """The mean of several models' parameters, float64; other tensors from the last. ValueError for none."""
    if not states:
        raise ValueError("no checkpoints to average")
    result = {k: _wide(v) for k, v in states[-1].items()}
    for key, value in result.items():
        if value.is_floating_point():
            result[key] = torch.stack([s[key].double() for s in states]).mean(dim=0)
    return result
