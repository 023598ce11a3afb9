"""An LSTM in NumPy with its backward pass derived by hand: one step, through time, projection, gradient filter.

It is simple on purpose: `model/layers/` is checked against it, and it is checked against finite differences. Hochreiter and
Schmidhuber (1997) describe the cell, Gers et al. (2000) the forget gate, Sak et al. (2014) the projection, Werbos (1990) the
backward pass through time. All arrays are float64; N sequences, T frames, C inputs, H cells, P outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from local.common.html_page import Page
from local.config.schema import Config
from model.layers.gradient_filter import TINY, GradientFilter
from model.layers.scaled import ScaledRNN
from studies.short_training import write_csv

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
Gradients = dict[str, Array]
Layer = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

FORWARD = """\
a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh        (4H rows: i, f, g, o)
i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);     g = tanh(a_g)
c_t = f c_{t-1} + i g
m_t = o tanh(c_t)
h_t = W_hr m_t                                     (without projection h_t = m_t)"""

BACKWARD = """\
Given dh = dL/dh_t and dc = dL/dc_t (from frame t + 1), for one sequence:
dm    = W_hr' dh                                   dW_hr += dh m_t'
dc   += dm o (1 - tanh(c_t)^2)
da_i  = dc g i (1 - i)                             since sigmoid' = s (1 - s)
da_f  = dc c_{t-1} f (1 - f)
da_g  = dc i (1 - g^2)                             since tanh' = 1 - tanh^2
da_o  = dm tanh(c_t) o (1 - o)
dx_t  = W_ih' da      dh_{t-1} = W_hh' da      dc_{t-1} = f dc
dW_ih += da x_t'      dW_hh += da h_{t-1}'     db_ih += da,  db_hh += da

Through time: from t = T down to 1, with dh = dL/dh_t of the loss at frame t itself + dh_t from frame t + 1;
gradients of parameters are sums over frames and sequences."""

FILTER = """\
g (T, N, C) is the gradient at the LSTM's input, after the backward pass above:
n_b       = sqrt(mean of g_b^2 over frames and channels)              for each sequence b
cutoff    = threshold * median(n)                                     (of an even number, the lower of the two middle ones)
inverse_b = (cutoff + n_b) / cutoff
g_b      /= inverse_b                                                 near 1 for most, n_b / cutoff for an outlier
dW, db   /= mean(inverse)                                             for all parameters of this LSTM"""


class Params(NamedTuple):
    """Parameters in torch's order and gate order (i, f, g, o), or their gradients; w_hr is None without projection."""

    w_ih: Array  # (4H, C)
    w_hh: Array  # (4H, P)
    b_ih: Array  # (4H,)
    b_hh: Array  # (4H,)
    w_hr: Array | None  # (P, H)


class Step(NamedTuple):
    """The values of one frame's forward pass that its backward pass needs."""

    x: Array  # (N, C)
    h: Array  # (N, P), of the frame before
    c: Array  # (N, H), of the frame before
    i: Array  # (N, H) each from here on
    f: Array
    g: Array
    o: Array
    tanh_c: Array


def sigmoid(a: Array) -> Array:
    """Return 1 / (1 + exp(-a)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * a))


def step_forward(x: Array, h: Array, c: Array, p: Params) -> tuple[Array, Array, Step]:
    """Compute one frame as in FORWARD: x (N, C), h (N, P), c (N, H) -> the next h and c, and the saved values."""
    i, f, g, o = np.split(x @ p.w_ih.T + p.b_ih + h @ p.w_hh.T + p.b_hh, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    next_c = f * c + i * g
    tanh_c = np.tanh(next_c)
    m = o * tanh_c
    next_h = m if p.w_hr is None else m @ p.w_hr.T
    return next_h, next_c, Step(x, h, c, i, f, g, o, tanh_c)


def step_backward(dh: Array, dc: Array, step: Step, p: Params) -> tuple[Array, Array, Array, Params]:
    """Compute the gradients of x (N, C), the previous h and c, and the parameters from those of h and c; see BACKWARD."""
    x, h, c, i, f, g, o, tanh_c = step
    dm = dh if p.w_hr is None else dh @ p.w_hr
    dw_hr = None if p.w_hr is None else dh.T @ (o * tanh_c)
    dc = dc + dm * o * (1 - tanh_c**2)
    da = np.concatenate([dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dm * tanh_c * o * (1 - o)], axis=1)
    db = da.sum(axis=0)
    return da @ p.w_ih, da @ p.w_hh, dc * f, Params(da.T @ x, da.T @ h, db, db, dw_hr)


def forward(x: Array, h0: Array, c0: Array, p: Params) -> tuple[Array, Array, Array, list[Step]]:
    """Compute all frames: x (T, N, C), h0 (N, P), c0 (N, H) -> out (T, N, P), the last h and c, and the saved values."""
    h, c, out, steps = h0, c0, [], []
    for frame in x:
        h, c, step = step_forward(frame, h, c, p)
        out.append(h)
        steps.append(step)
    return np.stack(out), h, c, steps


def backward(dout: Array, dh: Array, dc: Array, steps: list[Step], p: Params) -> tuple[Array, Array, Array, Params]:
    """Compute the gradients of x, h0, c0 and the parameters from those of out (T, N, P) and the last h and c."""
    dx, total = [], Params(*(None if v is None else np.zeros_like(v) for v in p))  # type: ignore[arg-type]
    for at_frame, step in zip(dout[::-1], steps[::-1], strict=True):
        dx_t, dh, dc, grads = step_backward(dh + at_frame, dc, step, p)
        dx.append(dx_t)
        for value, grad in zip(total, grads, strict=True):
            if value is not None and grad is not None:
                value += grad
    return np.stack(dx[::-1]), dh, dc, total


def gradient_filter(gradients: Gradients, threshold: float) -> tuple[Gradients, Array]:
    """Damp the gradients of x (T, N, C) and of the parameters, but not those of h0 and c0; see FILTER.

    Return the gradients and the mask (N,), 1 / inverse.
    """
    n = np.sqrt(np.mean(gradients["x"] ** 2, axis=(0, 2)))
    cutoff = threshold * np.sort(n)[(len(n) - 1) // 2]
    inverse = (cutoff + n) / (cutoff + TINY)
    mask = 1 / (inverse + TINY)
    factors = {"x": mask[None, :, None], "h0": 1.0, "c0": 1.0}
    return {k: g * factors.get(k, 1 / (inverse.mean() + TINY)) for k, g in gradients.items()}, mask


class Problem(NamedTuple):
    """A layer, its input and the weights of its loss: sum(out dout) + sum(h dh) + sum(c dc), with h, c the last states."""

    x: Array
    h0: Array
    c0: Array
    p: Params
    dout: Array
    dh: Array
    dc: Array


def draw_problem(sizes: tuple[int, int, int, int, int], seed: int, outlier: float = 1.0) -> Problem:
    """Draw random values for sizes (T, N, C, H, P); P = H: no projection. outlier: factor of the loss of sequence 0."""
    t, n, c, h, p = sizes
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape)

    w_hr = None if p == h else normal(p, h) * h**-0.5
    params = Params(normal(4 * h, c) * c**-0.5, normal(4 * h, p) * p**-0.5, normal(4 * h), normal(4 * h), w_hr)
    problem = Problem(normal(t, n, c), normal(n, p), normal(n, h), params, normal(t, n, p), normal(n, p), normal(n, h))
    for weights in (problem.dout[:, 0], problem.dh[0], problem.dc[0]):
        weights *= outlier
    return problem


def loss(problem: Problem) -> float:
    """Return the loss of a problem."""
    out, h, c, _ = forward(problem.x, problem.h0, problem.c0, problem.p)
    return float((out * problem.dout).sum() + (h * problem.dh).sum() + (c * problem.dc).sum())


def _named(dx: Array, dh0: Array, dc0: Array, grads: Params) -> Gradients:
    return {"x": dx, "h0": dh0, "c0": dc0} | {k: g for k, g in grads._asdict().items() if g is not None}


def by_hand(problem: Problem, threshold: float | None = None) -> Gradients:
    """Return all gradients of the loss by the backward pass of this file, filtered if there is a threshold."""
    *_, steps = forward(problem.x, problem.h0, problem.c0, problem.p)
    found = _named(*backward(problem.dout, problem.dh, problem.dc, steps, problem.p))
    return found if threshold is None else gradient_filter(found, threshold)[0]


def derivative(function: Callable[[], float], values: Array, width: float = 1e-3) -> Array:
    """Return d function / d values by central differences of fourth order (error ~ width^4); function() reads `values`."""
    result = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        at = []
        for shift in (1, -1, 2, -2):
            values[index] = kept + shift * width
            at.append(function())
        values[index] = kept
        result[index] = (8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * width)
    return result


def by_differences(problem: Problem, threshold: float | None = None) -> Gradients:
    """Return all gradients by finite differences of the loss. The filter is not a derivative; it is applied to them."""
    values = _named(problem.x, problem.h0, problem.c0, problem.p)
    found = {name: derivative(lambda: loss(problem), value) for name, value in values.items()}
    return found if threshold is None else gradient_filter(found, threshold)[0]


def _by_autograd(problem: Problem, params: Sequence[Tensor], layer: Layer) -> Gradients:
    """Return all gradients by autograd through layer(x, h0 (1, N, P), c0 (1, N, H)) -> out, h, c, which uses `params`."""
    leaves = [torch.from_numpy(v).requires_grad_() for v in (problem.x, problem.h0, problem.c0)]
    results = layer(leaves[0], leaves[1][None], leaves[2][None])
    if any(r.dtype != torch.float64 for r in results):
        raise TypeError("the layer under test does not compute in float64")
    weights = [torch.from_numpy(v) for v in (problem.dout, problem.dh[None], problem.dc[None])]
    found = torch.autograd.grad(results, [*leaves, *params], weights)
    names = ("x", "h0", "c0", *Params._fields)[: len(found)]
    return {name: g.numpy() for name, g in zip(names, found, strict=True)}


def by_ours(problem: Problem, threshold: float | None = None) -> Gradients:
    """Return all gradients by autograd through the recogniser's `ScaledRNN` and `GradientFilter`, in float64."""
    rnn = ScaledRNN("lstm", problem.x.shape[2], problem.c0.shape[1], problem.h0.shape[1]).double()
    for name, value in zip(rnn.names, problem.p, strict=False):
        getattr(rnn, name).data.copy_(torch.from_numpy(value) / getattr(rnn, name + "_scale").exp())
    params = rnn.scaled_parameters()

    def layer(x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        filtered = (x, params) if threshold is None else GradientFilter(threshold)(x, params)
        return rnn(filtered[0], h0, c0, filtered[1])

    return _by_autograd(problem, params, layer)


def by_torch(problem: Problem) -> Gradients:
    """Return all gradients by autograd through torch's `nn.LSTM`, in float64."""
    width, hidden = problem.h0.shape[1], problem.c0.shape[1]
    lstm = nn.LSTM(problem.x.shape[2], hidden, proj_size=0 if width == hidden else width).double()
    params = list(lstm.parameters())
    for param, value in zip(params, problem.p, strict=False):
        param.data.copy_(torch.from_numpy(value))

    def layer(x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, (h, c) = lstm(x, (h0, c0))
        return out, h, c

    return _by_autograd(problem, params, layer)


def relative_difference(found: Gradients, expected: Gradients) -> float:
    """Return the largest max |found - expected| / max |expected| over all tensors; 0 / 0 counts as 0."""
    worst = 0.0
    for name in expected.keys() | found.keys():
        size = float(np.abs(expected[name]).max())
        worst = max(worst, float(np.abs(found[name] - expected[name]).max()) / (size or 1.0))
    return worst


# Name, sizes (T, N, C, H, P), factor of the loss of sequence 0, threshold of the filter
CASES: tuple[tuple[str, tuple[int, int, int, int, int], float, float | None], ...] = (
    ("one step", (1, 4, 5, 8, 8), 1.0, None),
    ("through time", (12, 4, 5, 8, 8), 1.0, None),
    ("through time, projection", (12, 4, 5, 8, 3), 1.0, None),
    ("through time, projection, gradient filter", (12, 4, 5, 8, 3), 1000.0, 25.0),
)


def section(page: Page, cfg: Config, data_dir: Path) -> None:
    """Add to the page the formulas and the differences between this file, finite differences, our layer and torch's."""
    page.heading("An LSTM with its backward pass by hand")
    page.text("Forward pass, with gates i, f, o, cell input g, cells c, projection W_hr; products of vectors are element-wise:")
    page.formula(FORWARD)
    page.text("Backward pass by the chain rule; L is the loss, ' the transpose (da x' is an outer product):")
    page.formula(BACKWARD)
    page.text("Gradient filter, computed from the gradient of each sequence at the input of one LSTM:")
    page.formula(FILTER)
    rows = []
    for name, sizes, outlier, threshold in CASES:
        problem = draw_problem(sizes, cfg.train.seed, outlier)
        found = by_hand(problem, threshold)
        others = {"finite differences": by_differences(problem, threshold), "ours": by_ours(problem, threshold)}
        if threshold is None:
            others["torch.nn.LSTM"] = by_torch(problem)
        measured = {other: f"{relative_difference(found, gradients):.1e}" for other, gradients in others.items()}
        rows.append({"case": name, "T N C H P": " ".join(map(str, sizes)), "torch.nn.LSTM": "has no filter", **measured})
    page.text(
        "The table compares the gradients of these formulas in NumPy with finite differences of the loss (fourth order), with "
        "autograd through the recogniser's layer and filter, and with autograd through torch's LSTM, on random values in "
        "float64. It shows the largest max |difference| / max |gradient| over the input, the first states and all parameters. "
        "In the case with the filter, the loss of one sequence is 1000 times larger, so that the filter damps it."
    )
    columns = ["case", "T N C H P", "finite differences", "ours", "torch.nn.LSTM"]
    table = [[row[column] for column in columns] for row in rows]
    page.table(columns, table)
    write_csv(page.folder / "numpy_lstm.csv", [dict(zip(columns, row, strict=True)) for row in table])
