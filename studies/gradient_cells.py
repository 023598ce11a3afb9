"""Recurrent cells in float64 with any non-linearity, and the norms of their gradients over time and over depth.

S random networks (seeds) run in parallel. Hochreiter (1991) and Bengio, Simard and Frasconi (1994) showed how gradients
vanish and explode, Pascanu, Mikolov and Bengio (2013) the bounds. Gers et al. (2000) introduced the forget gate, Jozefowicz
et al. (2015) its bias of 1, Cho et al. (2014) the GRU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
INPUT_GAIN = 0.5  # of W_x in the study over time, of W_h in the study over depth
TRANSIENT = 10  # number of steps next to the loss that the growth per step excludes


@dataclass(frozen=True)
class Setting:
    """One kind of random layer. gain: sqrt(number of units) times the standard deviation of the weights."""

    cell: str
    activation: str
    gain: float
    forget_bias: float = 0.0


@dataclass(frozen=True)
class Size:
    """Size of the study. back: steps back from the loss; before: steps before these; depth_seeds: networks over depth."""

    hidden: int = 64
    seeds: int = 20
    back: int = 100
    before: int = 20
    layers: int = 16
    steps: int = 10
    depth_seeds: int = 10


class Layer(NamedTuple):
    """Weights of S networks: w_x, w_h (S, H, G H), the G gates in torch's order, and bias (G H,)."""

    w_x: Tensor
    w_h: Tensor
    bias: Tensor


def draw_layer(setting: Setting, seeds: int, h: int, generator: torch.Generator, gain_x: float, gain_h: float) -> Layer:
    """Draw `seeds` layers of h units: normal weights with standard deviation gain / sqrt(h), biases 0 except forget_bias."""
    shape = (seeds, h, GATES[setting.cell] * h)
    w_x, w_h = (torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(h) for _ in range(2))
    bias = torch.zeros(shape[2], dtype=torch.float64)
    if setting.cell == "lstm":
        bias[h : 2 * h] = setting.forget_bias
    return Layer(w_x * gain_x, w_h * gain_h, bias)


def step(setting: Setting, from_x: Tensor, h: Tensor, c: Tensor, w_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute one step of S networks from from_x = W_x x + b (S, 1, G H) and h, c (S, 1, H).

    Return h, c and the gate of the previous state: the forget gate for lstm, z for gru, c (without meaning) for rnn.
    """
    phi, from_h = ACTIVATIONS[setting.activation], h @ w_h
    if setting.cell == "rnn":
        return phi(from_x + from_h), c, c
    width = h.size(-1)
    if setting.cell == "gru":
        r, z = torch.sigmoid((from_x + from_h)[..., : 2 * width]).chunk(2, dim=-1)
        n = phi(from_x[..., 2 * width :] + r * from_h[..., 2 * width :])
        return (1 - z) * n + z * h, c, z
    i, f, g, o = (from_x + from_h).chunk(4, dim=-1)
    forget = torch.sigmoid(f)
    c = forget * c + torch.sigmoid(i) * phi(g)
    return torch.sigmoid(o) * phi(c), c, forget


def run_layer(setting: Setting, layer: Layer, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Run S networks over x (T, S, 1, H) from states of 0; return T tensors (S, 1, H) each of h, c and the gate of `step`."""
    from_x = x @ layer.w_x + layer.bias
    h = c = torch.zeros_like(x[0])
    hs, cs, gates = [], [], []
    for frame in from_x:
        h, c, forget = step(setting, frame, h, c, layer.w_h)
        hs.append(h)
        cs.append(c)
        gates.append(forget)
    return hs, cs, gates


class OverTime(NamedTuple):
    """Norms by steps back, (S, back + 1) each; by_c and by_gates are (S, 0) for rnn and gru."""

    by_h: Tensor  # |dL/dh|
    by_c: Tensor  # |dL/dc|
    by_gates: Tensor  # |dL/dc|, only the path through the forget gates


def draw_time(setting: Setting, size: Size, seed: int) -> tuple[Layer, Tensor, Tensor]:
    """Draw a layer, its input x (T, S, 1, H) and the loss's direction v (S, 1, H) of norm 1.

    A seed gives all settings of a cell the same random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    layer = draw_layer(setting, size.seeds, size.hidden, generator, INPUT_GAIN, setting.gain)
    shape = (size.before + size.back, size.seeds, 1, size.hidden)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    v = torch.randn(shape[1:], generator=generator, dtype=torch.float64)
    return layer, x, v / v.norm(dim=-1, keepdim=True)


def over_time(setting: Setting, size: Size, seed: int) -> OverTime:
    """Return the norms of the gradient of L = v . h_T with respect to the states 0 to `back` steps before T."""
    layer, x, v = draw_time(setting, size, seed)
    hs, cs, gates = (values[-size.back - 1 :] for values in run_layer(setting, layer, x.requires_grad_()))
    lstm = setting.cell == "lstm"
    found = torch.autograd.grad((hs[-1] * v).sum(), hs + (cs if lstm else []))
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in found], dim=1).flip(1)  # the last step first
    if not lstm:
        return OverTime(norms, norms[:, :0], norms[:, :0])
    product = [found[-1]]
    for gate in gates[:0:-1]:
        product.append(product[-1] * gate.detach())
    by_gates = torch.stack([g.flatten(1).norm(dim=1) for g in product], dim=1)
    return OverTime(norms[:, size.back + 1 :], norms[:, : size.back + 1], by_gates)


def growth(norms: Tensor) -> Tensor:
    """Return the factor (S,) by which norms (S, K + 1) grow per step back, a geometric mean over the steps after TRANSIENT.

    If the gradient is 0 at TRANSIENT (all ReLUs inactive), the mean is over all steps. If it is 0 at the end, so is the
    factor.
    """
    last = norms.size(1) - 1
    start = torch.where(norms[:, min(TRANSIENT, last // 2)] > 0, min(TRANSIENT, last // 2), 0)
    first = norms.gather(1, start[:, None])[:, 0]
    return (norms[:, last] / first) ** (1 / (last - start).to(norms.dtype))


def over_depth(setting: Setting, size: Size, seed: int) -> Tensor:
    """Return |dL/dh^(l)| (S, layers) of L = sum over t of v_t . h_t^(top), top layer first, divided by the top layer's.

    h^(l) is all outputs of layer l. The setting's gain is that of W_x, between layers; W_h has INPUT_GAIN.
    """
    generator = torch.Generator().manual_seed(seed)
    seeds, h = size.depth_seeds, size.hidden
    x = torch.randn(size.steps, seeds, 1, h, generator=generator, dtype=torch.float64).requires_grad_()
    outputs = []
    for _ in range(size.layers):
        layer = draw_layer(setting, seeds, h, generator, setting.gain, INPUT_GAIN)
        x = torch.stack(run_layer(setting, layer, x)[0])
        outputs.append(x)
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((x * v).sum(), outputs[::-1])
    norms = torch.stack([g.transpose(0, 1).flatten(1).norm(dim=1) for g in found], dim=1)
    return norms / norms[:, :1]
