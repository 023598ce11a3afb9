"""An LSTM with a projection, for the CPU: torch's own runs such a layer as separate small operations under autograd.

Here everything that does not depend on the frame before is one matrix product over all frames: the input's share of the
gates, and in the backward pass the gradients of all weights. The rest is a loop over frames, compiled for float32.
Gates are i, f, o (sigmoid) and g (tanh); W_hr is the projection (Sak et al., 2014; the identity without a projection):
    a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh;   c_t = f c_{t-1} + i g;   m_t = o tanh(c_t);   h_t = W_hr m_t
Backward, with dz for the gradient of the loss by z:
    dm = W_hr' dh;   dc += dm o (1 - tanh(c)^2);   da_o = dm tanh(c) o (1 - o)
    da_i = dc g i (1 - i);   da_f = dc c_{t-1} f (1 - f);   da_g = dc i (1 - g^2);   dc_{t-1} = dc f;   dh_{t-1} = W_hh' da
Large matrix products are made in `dtype`, and all weights are rounded to it; gates, cells and sums have x's own type.
"""

from __future__ import annotations

from typing import Any

from model.kernels import compiles
from model.kernels.matmul import mm

import torch
from torch import Tensor

Saved = tuple[Tensor, ...]


def forward(
    by_x: Tensor, bias: Tensor, gates: Tensor, c: Tensor, m: Tensor, h: Tensor, w_hh: Tensor, w_hr: Tensor | None
) -> None:
    """Loop over frames: fill gates (T, N, 4H) after their non-linearities, c[1:], m (T, N, H) and h[1:].

    by_x (T, N, 4H): the input's share of the gates i, f, g, o. bias (4H,). c (T + 1, N, H) and h (T + 1, N, P) begin with
    the states before the first frame. w_hh (4H, P), w_hr (P, H) or None.
    """
    for t in range(by_x.size(0)):
        i, f, g, o = (by_x[t] + torch.mm(h[t], w_hh.t()) + bias).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        gates[t] = torch.cat([i, f, g, o], 1)
        c[t + 1] = f * c[t] + i * g
        m[t] = o * c[t + 1].tanh()
        h[t + 1] = m[t] if w_hr is None else torch.mm(m[t], w_hr.t())


def backward(
    gates: Tensor, c: Tensor, d_h: Tensor, d_c: Tensor, w_hh: Tensor, w_hr: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loop back over frames: return the gradients by the gates' inputs (T, N, 4H), by h0 (N, P) and by the bias (4H,).

    d_h (T, N, P): the gradient by the outputs; the gradient through later frames is added to it. d_c (N, H): the gradient
    by the last cells; it becomes the gradient by c0.
    """
    d_gates, d_h0 = torch.empty_like(gates), torch.zeros_like(d_h[0])
    for t in range(gates.size(0) - 1, -1, -1):
        i, f, g, o = gates[t].chunk(4, 1)
        tanh_c = c[t + 1].tanh()
        d_m = d_h[t] if w_hr is None else torch.mm(d_h[t], w_hr)
        d_c += d_m * o * (1 - tanh_c.square())
        by_cell = [d_c * g * i * (1 - i), d_c * c[t] * f * (1 - f), d_c * i * (1 - g.square())]
        d_gates[t] = torch.cat([*by_cell, d_m * tanh_c * o * (1 - o)], 1)
        d_c *= f
        before = d_h[t - 1] if t > 0 else d_h0
        before += torch.mm(d_gates[t], w_hh)
    return d_gates, d_h0, d_gates.sum((0, 1))


def lstm_frames(
    x: Tensor, h0: Tensor, c0: Tensor, weights: list[Tensor], bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the forward pass: x (T, N, C) and weights (w_ih, w_hh[, w_hr]) of one type -> h, gates, c, m as in `forward`.

    h0 (N, P), c0 (N, H) and bias (4H,) have the type of the results.
    """
    t_max, n, _ = x.shape
    w_ih, w_hh = weights[:2]
    by_x = mm(x.flatten(0, 1), w_ih.t()).view(t_max, n, -1)
    gates = torch.empty_like(by_x, dtype=bias.dtype)
    c, h = bias.new_empty(t_max + 1, n, c0.size(1)), bias.new_empty(t_max + 1, n, h0.size(1))
    c[0], h[0] = c0, h0
    m = bias.new_empty(t_max, n, c0.size(1))
    if bias.dtype == torch.float32 and compiles(x):
        from model.kernels.lstm import forward as compiled_forward

        compiled_forward(by_x, bias, gates, c, m, h, w_hh, weights[2] if len(weights) > 2 else None)
    else:
        w_hh, w_hr = w_hh.to(bias.dtype), weights[2].to(bias.dtype) if len(weights) > 2 else None
        forward(by_x.to(bias.dtype), bias, gates, c, m, h, w_hh, w_hr)
    return h, gates, c, m


class _LstmCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h0: Tensor, c0: Tensor, dtype: torch.dtype, *params: Tensor) -> Saved:
        low = x.to(dtype)
        weights = [w.to(dtype) for w in (params[0], params[1], *params[4:])]
        h, gates, c, m = lstm_frames(low, h0, c0, weights, params[2] + params[3])
        ctx.save_for_backward(low, h[:-1].to(dtype), gates, c, m.to(dtype), *weights)
        return h[1:], h[-1].clone(), c[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, h, gates, c, m, w_ih, w_hh, *projection = ctx.saved_tensors
        w_hr = projection[0] if projection else None
        exact, dtype = gates.dtype, x.dtype
        d_h, d_h_last, d_c = (g.clone(memory_format=torch.contiguous_format) for g in grads)
        d_h[-1] += d_h_last
        if exact == torch.float32 and compiles(x):
            from model.kernels.lstm import backward as compiled_backward

            d_gates, d_h0, d_bias = compiled_backward(gates, c, d_h, d_c, w_hh, w_hr)
        else:
            wide = None if w_hr is None else w_hr.to(exact)
            d_gates, d_h0, d_bias = backward(gates, c, d_h, d_c, w_hh.to(exact), wide)
        rows = d_gates.flatten(0, 1).to(dtype)
        by_params = [mm(rows.t(), x.flatten(0, 1)), mm(rows.t(), h.flatten(0, 1)), d_bias, d_bias]
        if w_hr is not None:
            by_params.append(mm(d_h.flatten(0, 1).to(dtype).t(), m.flatten(0, 1)))
        d_x = mm(rows, w_ih).view_as(x).to(exact) if ctx.needs_input_grad[0] else None
        return (d_x, d_h0, d_c, None, *(g.to(exact) for g in by_params))


def lstm_cpu(x: Tensor, h0: Tensor, c0: Tensor, params: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Run one LSTM layer over x (T, N, C) from h0 (N, P), c0 (N, H) -> out (T, N, P), h (N, P), c (N, H).

    params: w_ih, w_hh, b_ih, b_hh[, w_hr] with gates in torch's order; gradients flow into them, x, h0 and c0.
    dtype: the type of the matrix products (bfloat16 under autocast, else x's own).
    """
    if torch.is_grad_enabled() and any(p.requires_grad for p in [x, h0, c0, *params]):
        return _LstmCpu.apply(x, h0, c0, dtype, *params)
    weights = [w.to(dtype) for w in (params[0], params[1], *params[4:])]
    h, _, c, _ = lstm_frames(x.to(dtype), h0, c0, weights, params[2] + params[3])
    return h[1:], h[-1], c[-1]
