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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.loss.autocast import exact_dtype, no_autocast
from model.loss.lattice import band_recursion
from model.loss.simple import delay_bonus

# Numbers in a tile's logits (or hidden units, if these are more): large enough for an efficient matrix product, small
# enough for the caches of a CPU, and for the memory to be the same whatever the number of classes.
TILE_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 24}


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
    @no_autocast
    def forward(  # type: ignore[override]
        ctx: Any,
        enc: Tensor,
        dec: Tensor,
        weight: Tensor,
        bias: Tensor,
        tokens: Tensor,
        ranges: Tensor,
        boundary: Tensor,
        options: tuple[int, float, torch.dtype, bool],
    ) -> Tensor:
        blank, delay_penalty, product, keep = options
        exact = exact_dtype(enc)
        n, t_max, s = ranges.shape
        nodes = _Nodes(tokens, ranges, boundary, blank)
        joiner = _Joiner(enc, dec, weight, bias, product)
        px = torch.zeros(n * t_max * s, dtype=exact, device=enc.device)
        py = torch.zeros_like(px)
        for places, at_enc, at_dec, token in nodes.tiles(_tile_size(weight), nodes.real):
            logits = joiner.logits(joiner.hidden(at_enc, at_dec))
            log_p = torch.log_softmax(logits, 1, dtype=exact)
            px[places] = log_p.gather(1, token.unsqueeze(1)).squeeze(1)
            py[places] = log_p[:, blank]
        px, py = px.view(n, t_max, s), py.view(n, t_max, s)
        if delay_penalty != 0:
            px += delay_bonus(boundary, t_max, delay_penalty, exact).unsqueeze(2)
        total, px_occ, py_occ = band_recursion(px, py, ranges[:, :, 0].contiguous(), boundary, occupation=keep)
        if keep:
            ctx.save_for_backward(enc, dec, weight, bias, tokens, ranges, boundary, px_occ, py_occ)
            ctx.blank, ctx.product = blank, product
        return -total

    @staticmethod
    @once_differentiable
    @no_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        enc, dec, weight, bias, tokens, ranges, boundary, px_occ, py_occ = ctx.saved_tensors
        exact, product = px_occ.dtype, ctx.product
        n, t_max, _ = ranges.shape
        grad = grad.to(exact)
        scale = torch.ones((), dtype=exact, device=grad.device)
        if product == torch.float16:  # a loss scale would overflow: it is taken out here and put back at the end
            scale = grad.abs().amax().clamp(min=torch.finfo(exact).tiny)
        per_utterance = (grad / scale).view(n, 1, 1)
        x, y = (px_occ[:, :t_max] * per_utterance).flatten(), (py_occ * per_utterance).flatten()
        both = x + y
        nodes = _Nodes(tokens, ranges, boundary, ctx.blank)
        joiner = _Joiner(enc, dec, weight, bias, product)
        d_enc, d_dec, d_weight, d_bias = (torch.zeros_like(p, dtype=exact) for p in (enc, dec, weight, bias))
        for places, at_enc, at_dec, token in nodes.tiles(_tile_size(weight), both != 0):
            hidden = joiner.hidden(at_enc, at_dec)
            d_logits = torch.softmax(joiner.logits(hidden), 1, dtype=exact)
            d_logits.mul_(both[places].unsqueeze(1))
            d_logits.scatter_add_(1, token.unsqueeze(1), -x[places].unsqueeze(1))
            d_logits[:, ctx.blank] -= y[places]
            d_bias += d_logits.sum(0)
            d_hidden = joiner.backward(hidden, d_logits, d_weight)
            d_enc.view(-1, d_enc.shape[2]).index_add_(0, at_enc, d_hidden)
            d_dec.view(-1, d_dec.shape[2]).index_add_(0, at_dec, d_hidden)
        grads = ((d_enc, enc), (d_dec, dec), (d_weight, weight), (d_bias, bias))
        return (*(d.mul_(scale).to(like.dtype) for d, like in grads), None, None, None, None)


class _Joiner:
    """tanh and output matrix on lists of nodes, with the matrix products in the dtype that autocast wants."""

    def __init__(self, enc: Tensor, dec: Tensor, weight: Tensor, bias: Tensor, product: torch.dtype) -> None:
        self.enc, self.dec = enc.reshape(-1, enc.shape[2]), dec.reshape(-1, dec.shape[2])
        self.weight, self.bias = weight.to(product), bias.to(product)

    def hidden(self, at_enc: Tensor, at_dec: Tensor) -> Tensor:
        """tanh(enc + dec) of the listed nodes, (nodes, J)."""
        total = self.dec.index_select(0, at_dec).add_(self.enc.index_select(0, at_enc))
        if total.device.type != "cpu":
            return total.tanh_()
        return total.mul_(2).sigmoid_().mul_(2).sub_(1)  # the same; torch's tanh on the CPU takes five times as long

    def logits(self, hidden: Tensor) -> Tensor:
        """(nodes, J) -> (nodes, C)"""
        return torch.addmm(self.bias, hidden.to(self.weight.dtype), self.weight.t())

    def backward(self, hidden: Tensor, d_logits: Tensor, d_weight: Tensor) -> Tensor:
        """Add to `d_weight` (C, J), return the gradient by enc + dec (nodes, J); `hidden` is used up."""
        exact, product = d_weight.dtype, self.weight.dtype
        g = d_logits.to(product)
        if product == exact:
            d_weight.addmm_(g.t(), hidden.to(product))
        else:
            d_weight += torch.mm(g.t(), hidden.to(product))
        d_hidden = torch.mm(g, self.weight).to(exact)
        hidden = hidden.to(exact)
        return d_hidden.sub_(hidden.square_().mul_(d_hidden))  # tanh' = 1 - tanh^2


def _tile_size(weight: Tensor) -> int:
    return max(64, TILE_NUMBERS.get(weight.device.type, 1 << 22) // max(weight.shape))
