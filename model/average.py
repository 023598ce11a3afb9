"""Averages of model parameters, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


class RunningAverage:
    """The mean of a model's floating-point tensors over all batches so far, sampled every `period` batches, in float64.

    avg += (model - avg) * period / batches. Two such averages, after s < e batches, give the mean over (s, e] exactly
    (`average_between`); the models in between are not needed. Other tensors (counters) have their latest value.
    """

    def __init__(self, model: torch.nn.Module, period: int) -> None:
        """Start from the weights of `model`; period: batches."""
        self.period = period
        self.batches = 0
        self.state: State = {k: _wide(v) for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, batches: int) -> None:
        """Add the weights if `batches`, those done so far, is a multiple of the period; call this after every batch."""
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
        """Return the average in float64 and the number of its batches, for a checkpoint."""
        return {"state": {k: v.clone() for k, v in self.state.items()}, "batches": self.batches, "period": self.period}

    def load_state_dict(self, saved: dict) -> None:  # type: ignore[type-arg]
        """Resume from the values of `state_dict`; the period is that of the saved run."""
        self.batches, self.period = saved["batches"], saved["period"]
        for key, value in saved["state"].items():
            self.state[key].copy_(value)


def _wide(value: Tensor) -> Tensor:
    return value.detach().double() if value.is_floating_point() else value.detach().clone()


def average_between(start: State, start_batches: int, end: State, end_batches: int) -> State:
    """Return the mean over the batches (s, e], (avg_e e - avg_s s) / (e - s), in float64; ValueError if it has no batch."""
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
    """Return the mean of the parameters in float64 and other tensors of the last model; ValueError if there is no model."""
    if not states:
        raise ValueError("no checkpoints to average")
    result = {k: _wide(v) for k, v in states[-1].items()}
    for key, value in result.items():
        if value.is_floating_point():
            result[key] = torch.stack([s[key].double() for s in states]).mean(dim=0)
    return result
