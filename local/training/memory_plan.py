"""train.max_duration=auto: how many seconds of audio fit into the memory at once.

A plane is laid through what a few passes were measured to take:

    bytes = base + per_second * S + per_token * S * U

of a pass over S seconds of audio, padding counted, whose longest transcript has U tokens. The encoder's activations grow
with S, the lattices of the losses with S * U. `base` is what a pass takes whatever its size, the gradient above all.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from local.common.allocator import release_free_memory
from local.common.errors import UserError
from local.common.meter import Meter
from local.common.processes import Processes
from local.config.schema import AUTO, Config
from local.data.batch import Batch
from local.data.datamodule import AsrDataModule
from local.training.free_memory import free_bytes
from local.training.memory_probe import Lengths, Shape, bytes_of_pass, probe, without_side_effects
from local.training.step import Losses
from model.transducer import Transducer

import numpy as np
import torch

SHARE = 0.8  # of the free memory; the rest is for the loader, fragments, and what the plane does not tell
KEPT = 12  # bytes a parameter, of what comes later: two states of the optimiser, a gradient that passes are added to
SAMPLE = 100_000  # utterances whose lengths are looked at
MB = 1e6


@dataclass(frozen=True)
class Plane:
    """The fitted bytes, bytes a second, bytes a second and token; and the largest error, as a share of what was measured."""

    base: float
    per_second: float
    per_token: float
    error: float = 0.0

    def predict(self, seconds: float, tokens: int) -> float:
        """Bytes of a pass over `seconds` of audio, padding counted, with `tokens` in its longest transcript."""
        return self.base + seconds * (self.per_second + self.per_token * tokens)


def fit_plane(passes: Sequence[tuple[Shape, float]]) -> Plane:
    """Least squares over measured passes (shape, bytes), no coefficient below 0.

    The best such fit is a plain one by the columns whose coefficients are above 0, so all seven choices are tried.
    """
    columns = np.array([[1.0, s.seconds, s.seconds * s.tokens] for s, _ in passes])
    columns_max, measured = columns.max(axis=0), np.array([b for _, b in passes])
    best, least = np.zeros(3), np.inf
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in (1, 2, 3)):
        at = list(chosen)
        found = np.zeros(3)
        found[at] = np.linalg.lstsq(columns[:, at] / columns_max[at], measured, rcond=None)[0] / columns_max[at]
        squares = float(np.square(columns @ found - measured).sum())
        if (found >= 0).all() and squares < least:
            best, least = found, squares
    errors = np.abs(columns @ best - measured) / np.maximum(measured, 1.0)
    base, per_second, per_token = best.tolist()
    return Plane(base, per_second, per_token, float(errors.max()))


def plan(plane: Plane, lengths: Lengths, room: float, most: float) -> float:
    """The most seconds of a pass whose worst batch, one with the transcript of most tokens, takes no more than `room` bytes.

    A round number, but no more than `most`, and no less than the longest utterance, since that is the least there is.
    """
    each = plane.per_second + plane.per_token * lengths.tokens
    seconds = (room - plane.base) / each if each > 0 else most
    return max(min(round_down(seconds), most), float(math.ceil(lengths.longest)))


def round_down(number: float) -> float:
    """To two digits; 0 for what is below."""
    if number <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{math.floor(number / unit) * unit:.1e}")


def choose_max_duration(
    cfg: Config,
    saved: dict[str, Any],
    data: AsrDataModule,
    model: Transducer,
    losses_of: Callable[[Batch], Losses],
    processes: Processes,
    device: torch.device,
) -> float:
    """What train.max_duration stands for. All processes call it and get the same number of seconds.

    A number is itself. `auto` is what `saved`, the checkpoint that training goes on from, was trained with if it had
    `auto` too; else it is planned now. `losses_of` is to be the most costly there is: all losses, monitored.
    """
    if cfg.train.max_duration != AUTO:
        return float(cfg.train.max_duration)
    if saved and saved["config"]["train"]["max_duration"] == AUTO:
        return float(saved["progress"]["max_duration"])
    if not Meter(device).tells_peaks():
        raise UserError("key 'train.max_duration' is auto: this system does not tell what a pass takes; give a number")
    found = data.train_lengths(SAMPLE)
    if not found:
        raise UserError(f"{data.data_dir}: the training parts hold no utterance")
    lengths = Lengths(max(d for d, _ in found), sum(d for d, _ in found), max(u for _, u in found))
    sharing = 1 if device.type == "cuda" else processes.local_size
    with without_side_effects(model, device):
        scale = cfg.loss.simple_scale
        passes = probe(
            lambda shape: bytes_of_pass(shape, model, losses_of, scale, device), lengths, free_bytes(device) / sharing
        )
    release_free_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    plane = fit_plane(passes)
    processes.gather(None)  # until nobody's probes are in the memory any more
    free = free_bytes(device) / sharing
    room = SHARE * free - KEPT * sum(p.numel() for p in model.parameters())
    own = plan(plane, lengths, room, cfg.train.batch_seconds or lengths.total)
    seconds = min(processes.gather(own))
    if processes.rank == 0:
        tell(plane, len(passes), free, seconds)
        if plane.predict(seconds, lengths.tokens) > room:
            print(f"warning: the longest utterance ({lengths.longest:.1f} s) may not fit into the memory", file=sys.stderr)
        if cfg.train.batch_seconds == 0:
            why = "steps are as large as the memory bears, and results depend on it; train.batch_seconds fixes them"
            print(f"warning: train.max_duration is auto without train.batch_seconds: {why}", file=sys.stderr)
    return seconds


def tell(plane: Plane, count: int, free: float, seconds: float) -> None:
    """The plan in a line."""
    print(
        f"memory: a pass takes {plane.base / MB:.0f} MB + {plane.per_second / MB:.3g} MB per second "
        f"+ {plane.per_token / MB:.2g} MB per second and token (within {plane.error:.0%} of {count} measured); "
        f"{free / MB:,.0f} MB are free: train.max_duration is {seconds:g}"
    )
