"""The RNN-T loss of the true joiner within a band, from the joiner's projections to the loss in one operation.

Tiles of lattice nodes go through tanh, the output matrix and log-softmax; of each node only the log-probabilities of its
token and of blank are kept. The backward pass computes a tile's logits anew and turns the occupations straight into
gradients of the two projections, the output matrix and the bias: for a node with token occupation x, blank occupation y,
token k and blank b,

    d loss / d logits = (x + y) softmax(logits) - x e_k - y e_b.

So memory does not depend on the number of classes beyond the output matrix and one tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.loss.lattice import band_recursion
from model.loss.simple import delay_bonus

# Numbers in a tile's logits (or hidden units, if these are more): large enough for an efficient matrix product, small
# enough for the caches of a CPU, and for the memory to be the same whatever the number of classes.
TILE_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 24}


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of matrix products under autocast, None outside it."""
    if device == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    if device == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return None


class _Nodes:
    """The lattice nodes of a band that are computed, as flat lists over nodes.

    On the CPU those of padded frames and beyond an utterance's last token are left out, which a GPU could not do without
    waiting for the lengths.
    """

    def __init__(self, tokens: Tensor, ranges: Tensor, boundary: Tensor, blank: int) -> None:
        n, t_max, s = ranges.shape
        u_max = tokens.shape[1]
        u = ranges.clamp(max=u_max)
        utterance = torch.arange(n, device=ranges.device).view(n, 1, 1)
        self.dec = (utterance * (u_max + 1) + u).flatten()
        self.token = torch.nn.functional.pad(tokens, (0, 1), value=blank).flatten()[self.dec]
        self.enc = torch.arange(n * t_max, device=ranges.device).repeat_interleave(s)
        frame = torch.arange(t_max, device=ranges.device).view(1, t_max, 1)
        self.real = ((frame < boundary[:, 3].view(n, 1, 1)) & (ranges <= boundary[:, 2].view(n, 1, 1))).flatten()

    def tiles(self, size: int, chosen: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Lists of at most `size` nodes: their places in the band, in enc, in dec, and their tokens."""
        if chosen is None or chosen.device.type != "cpu":
            nodes = torch.arange(len(self.enc), device=self.enc.device)
        else:
            nodes = chosen.nonzero().squeeze(1)
        for places in nodes.split(size):
            yield places, self.enc[places], self.dec[places], self.token[places]


class PrunedLoss(torch.autograd.Function):
    """See `LossBackend.pruned_loss`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        enc: Tensor,
        dec: Tensor,
        weight: Tensor,
        bias: Tensor,
        tokens: Tensor,
        ranges: Tensor,
        boundary: Tensor,
        options: tuple[int, float, bool],
    ) -> Tensor:
        blank, delay_penalty, keep = options
        device = enc.device.type
        exact = torch.float64 if enc.dtype == torch.float64 else torch.float32
        product = autocast_dtype(device) or enc.dtype
        nodes = _Nodes(tokens, ranges, boundary, blank)
        n, t_max, s = ranges.shape
        px = torch.zeros(n * t_max * s, dtype=exact, device=enc.device)
        py = torch.zeros_like(px)
        with _no_autocast(device):
            w, b = weight.to(product), bias.to(product)
            for places, at_enc, at_dec, token in nodes.tiles(_tile_size(device, weight), nodes.real):
                hidden = _hidden(enc, dec, at_enc, at_dec).to(product)
                log_p = torch.log_softmax(torch.addmm(b, hidden, w.t()), 1, dtype=exact)
                px[places] = log_p.gather(1, token.unsqueeze(1)).squeeze(1)
                py[places] = log_p[:, blank]
            px, py = px.view(n, t_max, s), py.view(n, t_max, s)
            if delay_penalty != 0:
                px += delay_bonus(boundary, t_max, delay_penalty, exact).unsqueeze(2)
            starts = ranges[:, :, 0].contiguous()
            total, px_occ, py_occ = band_recursion(px, py, starts, boundary, occupation=keep)
        if keep:
            ctx.save_for_backward(enc, dec, weight, bias, tokens, ranges, boundary, px_occ, py_occ)
            ctx.blank, ctx.product = blank, product
        return -total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        enc, dec, weight, bias, tokens, ranges, boundary, px_occ, py_occ = ctx.saved_tensors
        device, exact, product = enc.device.type, px_occ.dtype, ctx.product
        n, t_max, _ = ranges.shape
        # a loss scale would overflow half precision: it is taken out and put back at the end
        scale = grad.detach().abs().amax().to(exact).clamp(min=torch.finfo(exact).tiny)
        per_utterance = (grad.to(exact) / scale).view(n, 1, 1)
        x = (px_occ[:, :t_max] * per_utterance).flatten()
        y = (py_occ * per_utterance).flatten()
        both = x + y
        nodes = _Nodes(tokens, ranges, boundary, ctx.blank)
        d_enc = torch.zeros(n * t_max, enc.shape[2], dtype=exact, device=enc.device)
        d_dec = torch.zeros(dec.shape[0] * dec.shape[1], dec.shape[2], dtype=exact, device=enc.device)
        d_weight = torch.zeros(weight.shape, dtype=exact, device=enc.device)
        d_bias = torch.zeros(bias.shape, dtype=exact, device=enc.device)
        with _no_autocast(device):
            w, b = weight.to(product), bias.to(product)
            for places, at_enc, at_dec, token in nodes.tiles(_tile_size(device, weight), both != 0):
                hidden = _hidden(enc, dec, at_enc, at_dec)
                h = hidden.to(product)
                d_logits = torch.softmax(torch.addmm(b, h, w.t()), 1, dtype=exact)
                d_logits.mul_(both[places].unsqueeze(1))
                d_logits.scatter_add_(1, token.unsqueeze(1), -x[places].unsqueeze(1))
                d_logits[:, ctx.blank] -= y[places]
                d_bias += d_logits.sum(0)
                g = d_logits.to(product)
                if product == exact:
                    d_weight.addmm_(g.t(), h)
                else:
                    d_weight += torch.mm(g.t(), h)
                d_hidden = torch.mm(g, w).to(exact)
                hidden = hidden.to(exact)
                d_hidden.sub_(hidden.square_().mul_(d_hidden))  # tanh' = 1 - tanh^2
                d_enc.index_add_(0, at_enc, d_hidden)
                d_dec.index_add_(0, at_dec, d_hidden)
        grads = [
            d.mul_(scale).view_as(like).to(like.dtype)
            for d, like in ((d_enc, enc), (d_dec, dec), (d_weight, weight), (d_bias, bias))
        ]
        return (*grads, None, None, None, None)


def _hidden(enc: Tensor, dec: Tensor, at_enc: Tensor, at_dec: Tensor) -> Tensor:
    """tanh(enc + dec) of the listed nodes, (nodes, J)."""
    rows = dec.reshape(-1, dec.shape[2]).index_select(0, at_dec)
    return rows.add_(enc.reshape(-1, enc.shape[2]).index_select(0, at_enc)).tanh_()


def _tile_size(device: str, weight: Tensor) -> int:
    return max(64, TILE_NUMBERS.get(device, 1 << 22) // max(weight.shape))


def _no_autocast(device: str) -> AbstractContextManager[None]:
    """Casts are written out here, so that the same products are made in the forward and in the backward pass."""
    return torch.autocast(device_type=device, enabled=False)
