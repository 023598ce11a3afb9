"""What passes over random batches of several sizes take of the memory, measured without leaving a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from local.common.allocator import release_free_memory
from local.common.meter import MIB, Meter
from local.data.batch import Batch
from local.data.durations import FRAME_SECONDS
from local.training.step import Losses
from model.encoder.subsampling import MIN_FRAMES, subsampled
from model.transducer import Transducer, training_loss

import torch

FIRST, LONGEST = 5.0, 16.0  # seconds: the smallest pass measured, and the longest utterance in it
PASSES = (3, 7)  # of growing size, at least and at most
ENOUGH = 200 * MIB  # bytes between the smallest and the largest pass; or a tenth of the free memory
PATIENCE = 10.0  # seconds: no larger pass is measured after one that took longer
DRAWN = ("balance_prob", "layer_dropout")  # attributes of modules: how often they do what takes memory


@dataclass(frozen=True)
class Shape:
    """A batch of `rows` utterances alike: feature frames and tokens of each."""

    rows: int
    frames: int
    tokens: int

    @property
    def seconds(self) -> float:
        """Of audio, in all."""
        return self.rows * self.frames * FRAME_SECONDS


@dataclass(frozen=True)
class Lengths:
    """Of a corpus: its longest utterance and all of them, in seconds; the most tokens of one."""

    longest: float
    total: float
    tokens: int


@contextmanager
def without_side_effects(model: Transducer, device: torch.device) -> Iterator[None]:
    """Inside, the model trains, and what training draws now and then (balancers that act, layers bypassed) is always drawn:
    the most memory. Afterwards modes, buffers, gradients, masks and torch's random numbers are as before."""
    names = ("training", "mask", *DRAWN)
    attributes = [(m, name, getattr(m, name)) for m in model.modules() for name in names if hasattr(m, name)]
    buffers = [(b, b.clone()) for b in model.buffers()]
    grads = [(p, p.grad) for p in model.parameters()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            model.train()
            for module, name, value in attributes:
                if name in DRAWN and value > 0:
                    setattr(module, name, 1.0)
            yield
        finally:
            for module, name, value in attributes:
                setattr(module, name, value)
            for p, grad in grads:
                p.grad = grad
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def bytes_of_pass(
    shape: Shape, model: Transducer, losses_of: Callable[[Batch], Losses], simple_scale: float, device: torch.device
) -> float:
    """The most memory that a forward and backward pass over random numbers takes beyond what was in use. Within `without_side_effects`."""
    for p in model.parameters():
        p.grad = None
    release_free_memory()
    usage = Meter(device)
    with usage.of("before"):
        pass
    with usage.of("pass"):
        tokens = torch.randint(1, model.vocab_size, (shape.rows, shape.tokens))
        inputs = torch.randn(shape.rows, shape.frames, model.encoder.num_features)
        lens, token_lens = torch.full((shape.rows,), shape.frames), torch.full((shape.rows,), shape.tokens)
        losses = losses_of(Batch(inputs, lens, tokens, token_lens, ids=[""] * shape.rows))
        training_loss(losses["simple"].sum(), losses["pruned"].sum(), simple_scale, 1.0).backward()
    return (usage.peak_mib["pass"] - usage.peak_mib["before"]) * MIB


def probe(measure: Callable[[Shape], float], lengths: Lengths, free: float) -> list[tuple[Shape, float]]:
    """Measured passes: of growing size with the corpus's most tokens; at the largest size also with fewer and with more."""

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
