"""train.max_duration=auto: how many seconds of audio fit into the memory at once.

A plane is fitted to the measured bytes of a few passes over random batches:

    bytes = base + per_second * S + per_token * S * U

A pass covers S seconds of audio, padding and second copies (loss.cr_scale) counted; its longest transcript has U tokens. The
encoder's activations grow with S, the lattices of the losses with S * U. `base` does not depend on the size; most of it is
the gradient.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from local.common.allocator import release_free_memory
from local.common.errors import UserError
from local.common.meter import MIB, Meter, free_bytes
from local.common.processes import Processes
from local.config.schema import AUTO, Config
from local.data.batch import Batch
from local.data.datamodule import AsrDataModule
from local.data.durations import FRAME_SECONDS
from local.training.losses import forward_losses
from model.build import build_model
from model.encoder.subsampling import MIN_FRAMES, subsampled
from model.transducer import Transducer, training_loss

import numpy as np
import torch

SHARE = 0.8  # of the free memory; the rest is for the loader, fragments, and errors of the plane
LATER_BYTES = 12  # per parameter, taken after the plan: two states of the optimiser, a gradient that passes are added to
SAMPLE = 100_000  # utterances whose lengths are read
MB = 1e6
FIRST, LONGEST = 5.0, 16.0  # seconds: the smallest pass measured, and the longest utterance in it
PASSES = (3, 7)  # of growing size, at least and at most
ENOUGH = 200 * MIB  # bytes between the smallest and the largest pass; or a tenth of the free memory
PATIENCE = 10.0  # seconds: no larger pass is measured after one that took longer


@dataclass(frozen=True)
class Shape:
    """A batch of `rows` utterances with equally many feature frames and tokens, each in `copies` copies."""

    rows: int
    frames: int
    tokens: int
    copies: int = 1

    @property
    def seconds(self) -> float:
        """Return the seconds of audio of all copies of all rows."""
        return self.copies * self.rows * self.frames * FRAME_SECONDS


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


class PassMeter:
    """Measures passes on a model of its own, so that the trained one and torch's random numbers stay as they are."""

    def __init__(self, cfg: Config, vocab_size: int, device: torch.device) -> None:
        """Build the model of `cfg`. Every balancer acts and every layer is bypassed, which takes the most memory."""
        self.cfg, self.device = deepcopy(cfg), device
        self.devices = [device] if device.type == "cuda" else []  # whose random numbers are kept, besides the CPU's
        encoder = self.cfg.model.encoder
        encoder.balance_prob, encoder.layer_dropout = float(encoder.balance_prob > 0), float(encoder.layer_dropout > 0)
        with torch.random.fork_rng(self.devices):
            self.model: Transducer = build_model(self.cfg, vocab_size).to(device).train()

    def __call__(self, shape: Shape) -> float:
        """Return the most bytes that a forward and backward pass over random numbers takes beyond what was in use."""
        self.model.zero_grad(set_to_none=True)
        release_free_memory()
        usage = Meter(self.device)
        before = usage.in_use()
        with torch.random.fork_rng(self.devices), usage.of("pass"):
            tokens = torch.randint(1, self.model.vocab_size, (shape.rows, shape.tokens))
            inputs = torch.randn(shape.rows, shape.frames, self.model.encoder.num_features)
            lens, token_lens = torch.full((shape.rows,), shape.frames), torch.full((shape.rows,), shape.tokens)
            second = torch.randn_like(inputs) if shape.copies > 1 else None
            batch = Batch(inputs, lens, tokens, token_lens, ids=[""] * shape.rows, second=second)
            losses = forward_losses(self.model, batch, warmup=2.0, precision=self.cfg.train.precision, monitor=True)
            training_loss(losses.summed(), self.cfg.loss, 1.0).backward()
        return (usage.peak_mib["pass"] - before) * MIB


def probe(
    measure: Callable[[Shape], float], longest: float, tokens: int, free: float, copies: int = 1
) -> list[tuple[Shape, float]]:
    """Return passes and their bytes, as `measure` gives them. free: bytes. copies: of each utterance.

    Passes of growing size have `tokens` tokens, the most of the corpus, whose longest utterance has `longest` seconds. At
    the largest size, passes with fewer and with more tokens follow.
    """

    def shape(seconds: float, tokens: int) -> Shape:
        length = min(longest, seconds / copies, LONGEST)
        frames = max(round(length / FRAME_SECONDS), MIN_FRAMES)
        return Shape(max(1, round(seconds / copies / length)), frames, max(1, min(tokens, subsampled(frames))), copies)

    measure(shape(FIRST, tokens))  # compiles, chooses kernels, makes work spaces: not counted
    passes: list[tuple[Shape, float]] = []
    for seconds in (FIRST * 2**i for i in range(PASSES[1])):
        largest, start = shape(seconds, tokens), time.perf_counter()
        passes.append((largest, measure(largest)))
        took, grown = time.perf_counter() - start, passes[-1][1] - passes[0][1]
        if len(passes) >= PASSES[0] and (grown >= min(ENOUGH, free / 10) or took >= PATIENCE):
            break
    others = (shape(seconds, largest.tokens // 4), shape(seconds, 2 * largest.tokens + 2))
    return passes + [(other, measure(other)) for other in others if other != largest]


def fit_plane(passes: Sequence[tuple[Shape, float]]) -> Plane:
    """Fit (shape, bytes) by least squares with no coefficient below 0: the best plain fit on any choice of columns."""
    columns = np.array([[1.0, s.seconds, s.seconds * s.tokens] for s, _ in passes])
    columns_max, measured = columns.max(axis=0), np.array([b for _, b in passes])
    best, least = np.zeros(3), np.inf
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in (1, 2, 3)):
        at, found = list(chosen), np.zeros(3)
        found[at] = np.linalg.lstsq(columns[:, at] / columns_max[at], measured, rcond=None)[0] / columns_max[at]
        squares = float(np.square(columns @ found - measured).sum())
        if (found >= 0).all() and squares < least:
            best, least = found, squares
    errors = np.abs(columns @ best - measured) / np.maximum(measured, 1.0)
    base, per_second, per_token = best.tolist()
    return Plane(base, per_second, per_token, float(errors.max()))


def plan(plane: Plane, longest: float, tokens: int, room: float, most: float) -> float:
    """Return the most seconds (rounded down, `longest` to `most`) of a pass that fits `room` bytes with `tokens` tokens."""
    each = plane.per_second + plane.per_token * tokens
    seconds = (room - plane.base) / each if each > 0 else most
    return max(min(round_down(seconds), most), float(math.ceil(longest)))


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

    If configuration and `saved` both say `auto`, the checkpoint's number is kept; otherwise `auto` is planned now. Raises
    `UserError` if the memory of a pass cannot be measured or the corpus is empty.
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
    seconds, counts = zip(*found, strict=True)
    copies = cfg.loss.copies
    longest, tokens = max(seconds), max(counts)
    sharing = 1 if device.type == "cuda" else processes.local_size
    meter = PassMeter(cfg, data.tokenizer.vocab_size, device)
    parameters = sum(p.numel() for p in meter.model.parameters())
    passes = probe(meter, longest, tokens, free_bytes(device) / sharing, copies)
    del meter
    release_free_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    plane = fit_plane(passes)
    processes.gather(None)  # wait until no process holds memory of its probes
    free = free_bytes(device) / sharing
    room = SHARE * free - LATER_BYTES * parameters
    own = plan(plane, copies * longest, tokens, room, most=cfg.train.batch_seconds or copies * sum(seconds))
    chosen = min(processes.gather(own))
    if processes.rank == 0:
        print(
            f"memory: a pass takes {plane.base / MB:.0f} MB + {plane.per_second / MB:.3g} MB per second "
            f"+ {plane.per_token / MB:.2g} MB per second and token (within {plane.error:.0%} of {len(passes)} measured); "
            f"{free / MB:,.0f} MB are free: train.max_duration is {chosen:g}"
        )
        if plane.predict(chosen, tokens) > room:
            print(f"warning: the longest utterance ({longest:.1f} s) may not fit into the memory", file=sys.stderr)
        if cfg.train.batch_seconds == 0:
            why = "the size of a step, and so the result, depends on the free memory; set train.batch_seconds to fix it"
            print(f"warning: train.max_duration is auto without train.batch_seconds: {why}", file=sys.stderr)
    return chosen
