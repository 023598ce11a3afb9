"""Measure whether the gradient explodes in the LSTMs of an encoder: by layer, by sequence, and by frame.

The gradient goes back through time by the transposed Jacobians of the states (h, c). If their product grows by a rate r (nats
per frame), the gradient of an early frame is exp(r T) times that of a late one T frames on. A sequence has one number: the
rms of the gradient that the LSTM passes to its input, which is what the gradient filter compares with the batch's median.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from model.layers.lstm import lstm_frames
from model.layers.scaled import ScaledRNN
from model.transducer import Transducer
from studies.norms import sequence_rms

import torch
from torch import Tensor, nn

TRANSIENT = 10  # frames next to the last one, in which a random direction turns into the one that grows most


class Growth(NamedTuple):
    """How each layer's Jacobians change the gradient of N sequences on its way back, in nats; (layers, N)."""

    rate: Tensor  # per frame, the mean over the sequence
    gain: Tensor  # largest sum over consecutive frames, at least 0


class LayerGradients(NamedTuple):
    """The rms of each sequence's gradient at every LSTM's output and input, (layers, N); the input's without the residual."""

    at_output: Tensor
    at_input: Tensor


class Watch:
    """Keeps each LSTM's input and the gradients at its input and output, for one forward and backward pass."""

    def __init__(self, layers: int) -> None:
        self.inputs: list[Tensor] = [torch.zeros(0)] * layers
        self.outputs: list[Tensor] = [torch.zeros(0)] * layers

    def gradients(self, lens: Tensor) -> LayerGradients:
        """Return the gradients of the last pass; lens (N,): valid frames of the encoder's output."""

        def rms(kept: list[Tensor]) -> Tensor:
            return torch.stack([sequence_rms(_gradient(x), lens) for x in kept])

        return LayerGradients(rms(self.outputs), rms(self.inputs))


def lstms(model: Transducer) -> list[ScaledRNN]:
    """Return the encoder's recurrent layers, the lowest first."""
    found = [layer.get_submodule("lstm") for layer in model.encoder.encoder.layers.children()]
    return [module for module in found if isinstance(module, ScaledRNN)]


@contextmanager
def watched(model: Transducer) -> Iterator[Watch]:
    """Watch the LSTMs of every pass inside; the gradient filter, if there is one, acts after what is seen here."""
    modules = lstms(model)
    watch, hooks = Watch(len(modules)), []

    def before(number: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0].view_as(args[0])  # a view that only the LSTM uses
        if x.requires_grad:
            x.retain_grad()
        watch.inputs[number] = x
        return (x, *args[1:])

    def after(number: int, module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        if output[0].requires_grad:
            output[0].retain_grad()
        watch.outputs[number] = output[0]

    for number, module in enumerate(modules):
        hooks.append(module.register_forward_pre_hook(partial(before, number)))
        hooks.append(module.register_forward_hook(partial(after, number)))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


class _States(NamedTuple):
    """What a step back through time needs of L layers: gates (T, L, N, 4H) after their non-linearities, c (T + 1, L, N, H)."""

    gates: Tensor
    c: Tensor
    w_hh: Tensor  # (L, 4H, P)
    w_hr: Tensor  # (L, P, H); the identity without a projection


@torch.no_grad()
def growth(modules: list[ScaledRNN], inputs: list[Tensor], seed: int = 0) -> Growth:
    """Return the growth (layers, N) of the gradient back over the frames of each layer's input x (T, N, C).

    A random gradient of the last states goes back frame by frame and is scaled to norm 1 after each; the logarithms of its
    norms are the rates (the method of Benettin et al., 1980, for the largest Lyapunov exponent). The loss of the frames in
    between is left out. modules: of mode `lstm`, with their inputs, on the CPU.
    """
    states = _states(modules, inputs)
    size, (layers, n, hidden) = states.w_hh.size(2), states.c.shape[1:]
    generator = torch.Generator().manual_seed(seed)
    d_h, d_c = (torch.randn(layers, n, width, generator=generator).to(states.c) for width in (size, hidden))
    d_h, d_c = _scaled(d_h, d_c)[:2]
    logs = []
    for t in range(len(states.gates) - 1, -1, -1):
        d_h, d_c = back(states, t, d_h, d_c)
        d_h, d_c, norm = _scaled(d_h, d_c)
        logs.append(norm.log())
    kept = torch.stack(logs[min(TRANSIENT, len(logs) // 2) :]).double()
    return Growth(kept.mean(dim=0), _largest_sum(kept))


def _scaled(d_h: Tensor, d_c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a gradient of the states scaled to norm 1, and its norm (L, N)."""
    norm = (d_h.square().sum(2) + d_c.square().sum(2)).sqrt().clamp(min=1e-30)
    return d_h / norm[..., None], d_c / norm[..., None], norm


def back(states: _States, t: int, d_h: Tensor, d_c: Tensor) -> tuple[Tensor, Tensor]:
    """Take gradients of the states after frame t, d_h (L, N, P) and d_c (L, N, H), to before it, as in model.layers.lstm."""
    i, f, g, o = states.gates[t].chunk(4, dim=2)
    tanh_c = states.c[t + 1].tanh()
    d_m = torch.bmm(d_h, states.w_hr)
    d_c = d_c + d_m * o * (1 - tanh_c.square())
    by_cell = [d_c * g * i * (1 - i), d_c * states.c[t] * f * (1 - f), d_c * i * (1 - g.square())]
    return torch.bmm(torch.cat([*by_cell, d_m * tanh_c * o * (1 - o)], dim=2), states.w_hh), d_c * f


def _states(modules: list[ScaledRNN], inputs: list[Tensor]) -> _States:
    found = []
    for lstm, x in zip(modules, inputs, strict=True):
        w_ih, w_hh, b_ih, b_hh, *projection = lstm.scaled_parameters()
        h0, c0 = (x.new_zeros(x.size(1), width) for width in (w_hh.size(1), lstm.hidden_size))
        _, gates, c, _ = lstm_frames(x, h0, c0, [w_ih, w_hh, *projection], b_ih + b_hh)
        found.append((gates, c, w_hh, projection[0] if projection else torch.eye(lstm.hidden_size).to(x)))
    of_gates, of_c, of_hh, of_hr = (list(tensors) for tensors in zip(*found, strict=True))
    return _States(torch.stack(of_gates, 1), torch.stack(of_c, 1), torch.stack(of_hh), torch.stack(of_hr))


def _largest_sum(x: Tensor) -> Tensor:
    """Return the largest sum over consecutive entries of the first axis of x, at least 0 (Kadane's algorithm)."""
    best = here = torch.zeros_like(x[0])
    for row in x:
        here = (here + row).clamp(min=0)
        best = torch.maximum(best, here)
    return best


@torch.no_grad()
def largest_singular_values(model: Transducer) -> list[float]:
    """Return the largest singular value of each layer's recurrent matrix in use (4H, P); inf for one that is not finite."""
    matrices = [lstm.scaled_parameters()[1].double() for lstm in lstms(model)]
    return [float(torch.linalg.matrix_norm(w, 2)) if torch.isfinite(w).all() else math.inf for w in matrices]


def _gradient(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad
