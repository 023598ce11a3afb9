"""An LSTM with a projection, for the CPU: torch's own runs such a layer as separate small operations under autograd.

Here everything that does not wait for the frame before is one matrix product over all frames: the input's share of the
gates, and in the backward pass the gradients of all weights. What is left in the loop over frames is the recurrent
product and a handful of in-place element-wise operations.

With gates i, f, o (sigmoid) and g (tanh), r the projection (Sak et al., 2014; identity where there is none):

    a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh;   c_t = f c_{t-1} + i g;   m_t = o tanh(c_t);   h_t = W_hr m_t

Backward, with d the gradient of the loss by what follows it:

    dm = W_hr' dh;   dc += dm o (1 - tanh(c)^2);   da_o = dm tanh(c) o (1 - o)
    da_i = dc g i (1 - i);   da_f = dc c_{t-1} f (1 - f);   da_g = dc i (1 - g^2);   dc_{t-1} = dc f;   dh_{t-1} = W_hh' da
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Saved = tuple[Tensor, ...]


def _gate_order(weight: Tensor) -> Tensor:
    """Rows i, f, g, o of torch's layout as i, f, o, g, so that the three sigmoids lie side by side; its own inverse."""
    i, f, third, fourth = weight.chunk(4)
    return torch.cat([i, f, fourth, third])


def lstm_frames(x: Tensor, h0: Tensor, c0: Tensor, params: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Saved]:
    """The forward pass: x (T, N, C), h0 (N, P), c0 (N, H) -> out (T, N, P) and (gates, c, m) of all frames.

    params: w_ih (4H, C), w_hh (4H, P), b_ih, b_hh (4H,) with gates in the order i, f, o, g and, with a projection,
    w_hr (P, H). Matrix products run in `dtype`; everything else, and the results, in x's type.
    gates (T, N, 4H) after their non-linearities, c (T + 1, N, H) with c0 first, m (T, N, H).
    """
    t_max, n, _ = x.shape
    w_ih, w_hh, b_ih, b_hh = params[:4]
    hidden = w_hh.size(0) // 4
    w_hr = params[4] if len(params) > 4 else None
    low = dtype != x.dtype
    gates = torch.matmul(x.to(dtype), w_ih.to(dtype).t()).to(x.dtype).add_(b_ih + b_hh)
    recurrent = w_hh.to(dtype).t().contiguous()
    projection = None if w_hr is None else w_hr.to(dtype).t().contiguous()
    c = x.new_empty(t_max + 1, n, hidden)
    c[0] = c0
    m = x.new_empty(t_max, n, hidden)
    out = x.new_empty(t_max, n, w_hh.size(1)) if projection is not None else m
    tanh_c = x.new_empty(n, hidden)
    h = h0.to(dtype)
    sigmoids, tangents = gates[:, :, : 3 * hidden].unbind(0), gates[:, :, 3 * hidden :].unbind(0)
    i_f_o = gates.view(t_max, n, 4, hidden).unbind(2)
    i_all, f_all, o_all = (gate.unbind(0) for gate in i_f_o[:3])
    frames, cells, memory, outputs = gates.unbind(0), c.unbind(0), m.unbind(0), out.unbind(0)
    for t in range(t_max):
        if low:
            frames[t].add_(torch.mm(h, recurrent))
        else:
            frames[t].addmm_(h, recurrent)
        sigmoids[t].sigmoid_()
        tangents[t].tanh_()
        torch.mul(f_all[t], cells[t], out=cells[t + 1])
        cells[t + 1].addcmul_(i_all[t], tangents[t])
        torch.tanh(cells[t + 1], out=tanh_c)
        torch.mul(o_all[t], tanh_c, out=memory[t])
        if projection is None:
            h = memory[t].to(dtype)
        elif low:
            h = torch.mm(memory[t].to(dtype), projection)
            outputs[t].copy_(h)
        else:
            h = torch.mm(memory[t], projection, out=outputs[t])
    return out, (gates, c, m)


def lstm_frames_backward(
    grad_out: Tensor, grad_h: Tensor, grad_c: Tensor, saved: Saved, w_hh: Tensor, w_hr: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward pass through time; gradients by the gates' inputs, by all h_t, by h0 and by c0.

    grad_out (T, N, P), grad_h (N, P) and grad_c (N, H) of the last states; saved: from `lstm_frames`.
    """
    gates, c, _ = saved
    t_max, n, hidden = gates.size(0), gates.size(1), c.size(2)
    i, f, o, g = gates.view(t_max, n, 4, hidden).unbind(2)
    tanh_c = torch.tanh(c[1:])
    by_cell = torch.addcmul(o, o, tanh_c.square(), value=-1.0).unbind(0)  # o (1 - tanh(c)^2)
    slopes = torch.empty_like(gates).view(t_max, n, 4, hidden)  # of each gate's input: by dc, for o by dm
    slopes[:, :, 0] = g * torch.addcmul(i, i, i, value=-1.0)
    slopes[:, :, 1] = c[:-1] * torch.addcmul(f, f, f, value=-1.0)
    slopes[:, :, 2] = tanh_c * torch.addcmul(o, o, o, value=-1.0)
    slopes[:, :, 3] = torch.addcmul(i, i, g.square(), value=-1.0)
    grad_gates = slopes  # overwritten frame by frame
    flat = slopes.view(t_max, n, 4 * hidden).unbind(0)
    first_two, third, fourth = slopes[:, :, :2].unbind(0), slopes[:, :, 2].unbind(0), slopes[:, :, 3].unbind(0)
    forget = f.unbind(0)
    low = dtype != gates.dtype
    back = w_hh.to(dtype)
    project_back = None if w_hr is None else w_hr.to(dtype)
    grad_hs = grad_out.clone()
    rows = grad_hs.unbind(0)
    rows[-1].add_(grad_h)
    dc = grad_c.clone()
    dc_pair = dc.unsqueeze(1)
    dm = rows[-1]
    dh0 = torch.zeros_like(grad_h)
    for t in range(t_max - 1, -1, -1):
        if project_back is None:
            dm = rows[t]
        else:
            dm = torch.mm(rows[t].to(dtype), project_back)
            dm = dm.to(gates.dtype) if low else dm
        dc.addcmul_(dm, by_cell[t])
        third[t].mul_(dm)
        first_two[t].mul_(dc_pair)
        fourth[t].mul_(dc)
        dc.mul_(forget[t])
        before = rows[t - 1] if t > 0 else dh0
        if low:
            before.add_(torch.mm(flat[t].to(dtype), back))
        else:
            before.addmm_(flat[t], back)
    return grad_gates.view(t_max, n, 4 * hidden), grad_hs, dh0, dc


class _LstmCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h0: Tensor, c0: Tensor, dtype: torch.dtype, *params: Tensor) -> Saved:
        ordered = [_gate_order(p) for p in params[:4]] + list(params[4:])
        out, saved = lstm_frames(x, h0, c0, ordered, dtype)
        ctx.save_for_backward(x, h0, out, *saved, *ordered)
        ctx.dtype = dtype
        return out, out[-1].clone(), saved[1][-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, h0, out, gates, c, m, *ordered = ctx.saved_tensors
        dtype = ctx.dtype
        w_ih, w_hh = ordered[:2]
        w_hr = ordered[4] if len(ordered) > 4 else None
        grad_out, grad_h, grad_c = grads
        grad_gates, grad_hs, dh0, dc0 = lstm_frames_backward(grad_out, grad_h, grad_c, (gates, c, m), w_hh, w_hr, dtype)
        by_row = grad_gates.flatten(0, 1)
        low = by_row.to(dtype)
        previous = torch.cat([h0.unsqueeze(0), out[:-1]]).flatten(0, 1).to(dtype)
        by_bias = _gate_order(by_row.sum(0))
        by_params = [
            _gate_order(torch.mm(low.t(), x.flatten(0, 1).to(dtype)).to(x.dtype)),
            _gate_order(torch.mm(low.t(), previous).to(x.dtype)),
            by_bias,
            by_bias,
        ]
        if w_hr is not None:
            by_params.append(torch.mm(grad_hs.flatten(0, 1).to(dtype).t(), m.flatten(0, 1).to(dtype)).to(x.dtype))
        dx = torch.mm(low, w_ih.to(dtype)).to(x.dtype).view_as(x) if ctx.needs_input_grad[0] else None
        return (dx, dh0, dc0, None, *by_params)


def lstm_cpu(x: Tensor, h0: Tensor, c0: Tensor, params: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer over x (T, N, C) from h0 (N, P), c0 (N, H) -> out (T, N, P), h (N, P), c (N, H).

    params: in torch's order and gate order: w_ih, w_hh, b_ih, b_hh[, w_hr]; gradients flow into them, x, h0 and c0.
    dtype: of the matrix products (bfloat16 under autocast, else x's own).
    """
    if torch.is_grad_enabled() and any(p.requires_grad for p in [x, h0, c0, *params]):
        return _LstmCpu.apply(x, h0, c0, dtype, *params)
    ordered = [_gate_order(p) for p in params[:4]] + list(params[4:])
    out, saved = lstm_frames(x, h0, c0, ordered, dtype)
    return out, out[-1], saved[1][-1]
