"""train.max_duration=auto: how many seconds of audio fit into the memory at once.

A plane is fitted to the measured bytes of a few passes:

    bytes = base + per_second * S + per_token * S * U

A pass covers S seconds of audio, padding counted; its longest transcript has U tokens. The encoder's activations grow with
S, the lattices of the losses with S * U. `base` does not depend on the size; most of it is the gradient.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from local.common.allocator import release_free_memory
from local.common.errors import UserError
from local.common.meter import Meter
from local.common.processes import Processes
from local.config.schema import AUTO, Config
from local.data.datamodule import AsrDataModule
from local.training.free_memory import free_bytes
from local.training.memory_probe import Lengths, PassMeter, Shape, probe

import numpy as np
import torch

SHARE = 0.8  # of the free memory; the rest is for the loader, fragments, and errors of the plane
LATER_BYTES = 12  # per parameter, taken after the plan: two states of the optimiser, a gradient that passes are added to
SAMPLE = 100_000  # utterances whose lengths are read
MB = 1e6


@dataclass(frozen=True)
class Plane:
    """The fitted bytes, bytes per second, bytes per second and token; and the largest error, relative to the measured bytes."""

    base: float
    per_second: float
    per_token: float
    error: float = 0.0

    def predict(self, seconds: float, tokens: int) -> float:
        """Return the bytes of a pass over `seconds` of audio, padding counted, with `tokens` in its longest transcript."""
        return self.base + seconds * (self.per_second + self.per_token * tokens)


def fit_plane(passes: Sequence[tuple[Shape, float]]) -> Plane:
    """Fit measured passes (shape, bytes) by least squares with no coefficient below 0.

    The best such fit is the plain one on the columns with positive coefficients, so all seven choices are tried.
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
    """Return the most seconds of a pass that takes at most `room` bytes with the longest transcript.

    The number is rounded down, is at most `most`, and at least the longest utterance, as no pass can be shorter.
    """
    each = plane.per_second + plane.per_token * lengths.tokens
    seconds = (room - plane.base) / each if each > 0 else most
    return max(min(round_down(seconds), most), float(math.ceil(lengths.longest)))


def round_down(number: float) -> float:
    """Return `number` rounded down to two digits; 0 for negative numbers."""
    if number <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{math.floor(number / unit) * unit:.1e}")


def choose_max_duration(
    cfg: Config, saved: dict[str, Any], data: AsrDataModule, processes: Processes, device: torch.device
) -> float:
    """Return the seconds that train.max_duration stands for. All processes must call this and get the same number.

    A number stands for itself. If both the configuration and the checkpoint `saved` say `auto`, the number in the
    checkpoint is kept. Otherwise the number is planned now. Raises `UserError` if the memory of a pass cannot be measured
    or the corpus is empty.
    """
    if cfg.train.max_duration != AUTO:
        return float(cfg.train.max_duration)
    if saved and saved["config"]["train"]["max_duration"] == AUTO:
        return float(saved["progress"]["max_duration"])
    if not Meter(device).tells_peaks():
        raise UserError("key 'train.max_duration': 'auto' needs Linux or a GPU, to measure the memory of a pass; set a number")
    found = data.train_lengths(SAMPLE)
    if not found:
        raise UserError(f"{data.data_dir}: the training parts hold no utterance")
    lengths = Lengths(max(d for d, _ in found), sum(d for d, _ in found), max(u for _, u in found))
    sharing = 1 if device.type == "cuda" else processes.local_size
    meter = PassMeter(cfg, data.tokenizer.vocab_size, device)
    parameters = sum(p.numel() for p in meter.model.parameters())
    passes = probe(meter, lengths, free_bytes(device) / sharing)
    del meter
    release_free_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    plane = fit_plane(passes)
    processes.gather(None)  # wait until no process holds memory of its probes
    free = free_bytes(device) / sharing
    room = SHARE * free - LATER_BYTES * parameters
    own = plan(plane, lengths, room, cfg.train.batch_seconds or lengths.total)
    seconds = min(processes.gather(own))
    if processes.rank == 0:
        print_plan(plane, len(passes), free, seconds)
        if plane.predict(seconds, lengths.tokens) > room:
            print(f"warning: the longest utterance ({lengths.longest:.1f} s) may not fit into the memory", file=sys.stderr)
        if cfg.train.batch_seconds == 0:
            why = "the size of a step, and so the result, depends on the free memory; set train.batch_seconds to fix it"
            print(f"warning: train.max_duration is auto without train.batch_seconds: {why}", file=sys.stderr)
    return seconds


def print_plan(plane: Plane, count: int, free: float, seconds: float) -> None:
    """Print the plan in one line; count: passes measured."""
    print(
        f"memory: a pass takes {plane.base / MB:.0f} MB + {plane.per_second / MB:.3g} MB per second "
        f"+ {plane.per_token / MB:.2g} MB per second and token (within {plane.error:.0%} of {count} measured); "
        f"{free / MB:,.0f} MB are free: train.max_duration is {seconds:g}"
    )
