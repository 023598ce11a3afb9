"""How much memory passes over random batches of several sizes take."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass

from local.common.allocator import release_free_memory
from local.common.meter import MIB, Meter
from local.config.schema import Config
from local.data.batch import Batch
from local.data.durations import FRAME_SECONDS
from local.training.losses import forward_losses
from model.build import build_model
from model.encoder.subsampling import MIN_FRAMES, subsampled
from model.transducer import Transducer, training_loss

import torch

FIRST, LONGEST = 5.0, 16.0  # seconds: the smallest pass measured, and the longest utterance in it
PASSES = (3, 7)  # of growing size, at least and at most
ENOUGH = 200 * MIB  # bytes between the smallest and the largest pass; or a tenth of the free memory
PATIENCE = 10.0  # seconds: no larger pass is measured after one that took longer


@dataclass(frozen=True)
class Shape:
    """A batch of `rows` utterances with equally many feature frames and tokens."""

    rows: int
    frames: int
    tokens: int

    @property
    def seconds(self) -> float:
        """Return the seconds of audio of all rows."""
        return self.rows * self.frames * FRAME_SECONDS


@dataclass(frozen=True)
class Lengths:
    """The longest utterance of a corpus and all of them, in seconds, and the most tokens of one."""

    longest: float
    total: float
    tokens: int


class PassMeter:
    """Measures passes on a model of its own, so that the trained one and torch's random numbers stay as they are."""

    def __init__(self, cfg: Config, vocab_size: int, device: torch.device) -> None:
        """Build the model of `cfg`. Every balancer acts and every layer is bypassed, which takes the most memory."""
        self.cfg, self.device = deepcopy(cfg), device
        encoder = self.cfg.model.encoder
        encoder.balance_prob, encoder.layer_dropout = float(encoder.balance_prob > 0), float(encoder.layer_dropout > 0)
        with self._own_random_numbers():
            self.model: Transducer = build_model(self.cfg, vocab_size).to(device).train()

    def __call__(self, shape: Shape) -> float:
        """Return the most bytes that a forward and backward pass over random numbers takes beyond what was in use."""
        self.model.zero_grad(set_to_none=True)
        release_free_memory()
        usage = Meter(self.device)
        with usage.of("before"):
            pass
        with self._own_random_numbers(), usage.of("pass"):
            tokens = torch.randint(1, self.model.vocab_size, (shape.rows, shape.tokens))
            inputs = torch.randn(shape.rows, shape.frames, self.model.encoder.num_features)
            lens, token_lens = torch.full((shape.rows,), shape.frames), torch.full((shape.rows,), shape.tokens)
            batch = Batch(inputs, lens, tokens, token_lens, ids=[""] * shape.rows)
            losses = forward_losses(self.model, batch, warmup=2.0, precision=self.cfg.train.precision, monitor=True)
            training_loss(losses.simple.sum(), losses.pruned.sum(), self.cfg.loss.simple_scale, 1.0).backward()
        return (usage.peak_mib["pass"] - usage.peak_mib["before"]) * MIB

    def _own_random_numbers(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])


def probe(measure: Callable[[Shape], float], lengths: Lengths, free: float) -> list[tuple[Shape, float]]:
    """Return passes and their bytes, as `measure` gives them.

    Passes of growing size have the most tokens of the corpus. At the largest size, passes with fewer and with more follow.
    free: bytes.
    """

    def shape(seconds: float, tokens: int) -> Shape:
        length = min(lengths.longest, seconds, LONGEST)
        frames = max(round(length / FRAME_SECONDS), MIN_FRAMES)
        return Shape(max(1, round(seconds / length)), frames, max(1, min(tokens, subsampled(frames))))

    measure(shape(FIRST, lengths.tokens))  # compiles, chooses kernels, makes work spaces: not counted
    passes: list[tuple[Shape, float]] = []
    seconds, took = FIRST / 2, 0.0
    while len(passes) < PASSES[0] or (
        len(passes) < PASSES[1] and passes[-1][1] - passes[0][1] < min(ENOUGH, free / 10) and took < PATIENCE
    ):
        seconds, start = 2 * seconds, time.perf_counter()
        passes.append((shape(seconds, lengths.tokens), measure(shape(seconds, lengths.tokens))))
        took = time.perf_counter() - start
    last = passes[-1][0]
    others = (shape(seconds, last.tokens // 4), shape(seconds, 2 * last.tokens + 2))
    return passes + [(other, measure(other)) for other in others if other != last]
