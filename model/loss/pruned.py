"""The RNN-T loss of the true joiner within a band, from the joiner's projections to the loss in one operation.

Tiles of lattice nodes go through tanh, the output matrix and log-softmax; only the log-probabilities of each node's token
and of blank are kept. The backward pass makes a tile's logits again and turns the occupations directly into gradients of the
two projections, the output matrix and the bias: for a node with token occupation x, blank occupation y, token k and blank b,
    d loss / d logits = (x + y) softmax(logits) - x e_k - y e_b.
Apart from the output matrix, memory does not depend on the number of classes: a tile holds a fixed number of logits, and the
logits kept for the backward pass take no more than the hidden units would (all fit if C <= J).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from model.loss.interface import JoinerInput, Lattice
from model.loss.lattice import band_recursion
from model.loss.simple import delay_bonus
from model.precision import exact_dtype, no_autocast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits (or hidden units, if there are more) of one tile: enough for an efficient product, few enough for a CPU's caches.
TILE_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 24}


class PrunedLoss(torch.autograd.Function):
    """`LossBackend.pruned_loss` in one operation; product: type of the products; keep: whether a backward pass follows."""

    @staticmethod
    @no_autocast
    def forward(  # type: ignore[override]
        ctx: Any,
        enc: Tensor,
        dec: Tensor,
        weight: Tensor,
        bias: Tensor,
        ranges: Tensor,
        lattice: Lattice,
        product: torch.dtype,
        keep: bool,
    ) -> Tensor:
        """Return the losses (N,)."""
        px, py, kept = log_probs(JoinerInput(enc, dec, weight, bias), ranges, lattice, product, keep)
        total, px_occ, py_occ = band_recursion(px, py, ranges[:, :, 0].contiguous(), lattice.boundary, keep)
        if keep:
            ctx.save_for_backward(enc, dec, weight, bias, ranges, px_occ, py_occ)
            ctx.lattice, ctx.product, ctx.kept = lattice, product, kept
        return -total

    @staticmethod
    @once_differentiable
    @no_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients by enc, dec, weight and bias."""
        enc, dec, weight, bias, ranges, px_occ, py_occ = ctx.saved_tensors
        lattice: Lattice = ctx.lattice
        kept, ctx.kept = ctx.kept, None  # a second backward pass makes all logits again
        exact = px_occ.dtype
        grad = grad.to(exact)
        scale = torch.ones((), dtype=exact, device=grad.device)
        if ctx.product == torch.float16:  # a loss scale would overflow: divide by it here, multiply at the end
            scale = grad.abs().amax().clamp(min=torch.finfo(exact).tiny)
        per_utterance = (grad / scale).view(-1, 1, 1)
        x, y = (px_occ[:, :-1] * per_utterance).flatten(), (py_occ * per_utterance).flatten()
        both = x + y
        counts = _counts(px_occ[:, :-1], py_occ) & (both != 0)
        nodes = _Nodes(ranges, lattice)
        joiner = _Joiner(JoinerInput(enc, dec, weight, bias), ctx.product)
        d_enc, d_dec, d_weight, d_bias = (p.new_zeros(p.shape, dtype=exact) for p in (enc, dec, weight, bias))
        for first, whole in nodes.tiles(weight):
            tile, logits = _only(counts, whole, _rows(kept, first, whole))
            hidden = joiner.hidden(tile)
            d_logits = torch.softmax(joiner.logits(hidden) if logits is None else logits, 1, dtype=exact)
            d_logits.mul_(both[tile.place].unsqueeze(1))
            d_logits.scatter_add_(1, tile.token.unsqueeze(1), -x[tile.place].unsqueeze(1))
            d_logits[:, lattice.blank] -= y[tile.place]
            d_bias += d_logits.sum(0)
            d_hidden = joiner.backward(hidden, d_logits, d_weight)
            d_enc.view(-1, d_enc.shape[2]).index_add_(0, tile.enc, d_hidden)
            d_dec.view(-1, d_dec.shape[2]).index_add_(0, tile.dec, d_hidden)
        grads = ((d_enc, enc), (d_dec, dec), (d_weight, weight), (d_bias, bias))
        return (*(d.mul_(scale).to(like.dtype) for d, like in grads), None, None, None, None)


def log_probs(
    given: JoinerInput, ranges: Tensor, lattice: Lattice, product: torch.dtype, keep: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probabilities of token and blank at the nodes of the band, both (N, T, S), and the logits kept.

    product: type of the products. keep: keep logits for a backward pass, as far as there is room.
    """
    exact = exact_dtype(given.enc)
    nodes, joiner = _Nodes(ranges, lattice), _Joiner(given, product)
    px = torch.zeros(ranges.shape, dtype=exact, device=given.enc.device)
    py = torch.zeros_like(px)
    kept = joiner.room(len(nodes.place) if keep else 0)
    for first, tile in nodes.tiles(given.weight):
        logits = joiner.logits(joiner.hidden(tile), _rows(kept, first, tile))
        log_p = torch.log_softmax(logits, 1, dtype=exact)
        px.view(-1)[tile.place] = log_p.gather(1, tile.token.unsqueeze(1)).squeeze(1)
        py.view(-1)[tile.place] = log_p[:, lattice.blank]
    if lattice.delay_penalty:
        px += delay_bonus(lattice, ranges.shape[1], exact).unsqueeze(2)
    return px, py, kept


class _Tile(NamedTuple):
    """Some nodes: their places in the flat band, their rows in enc and dec, the tokens they emit; each (nodes,)."""

    place: Tensor
    enc: Tensor
    dec: Tensor
    token: Tensor


class _Nodes:
    """The nodes of a band that are computed.

    On the CPU, nodes in padded frames and after the last token are left out; a GPU would have to wait for the lengths.
    """

    def __init__(self, ranges: Tensor, lattice: Lattice) -> None:
        tokens, boundary = lattice.tokens, lattice.boundary
        n, t_max, s = ranges.shape
        nodes = tokens.shape[1] + 1
        device = ranges.device
        first = torch.arange(0, n * nodes, nodes, device=device).view(n, 1, 1)  # row of u = 0 in dec
        self.dec = (first + ranges.clamp(max=nodes - 1)).flatten()
        self.token = torch.nn.functional.pad(tokens, (0, 1), value=lattice.blank).flatten()[self.dec]
        self.enc = torch.arange(n * t_max, device=device).repeat_interleave(s)
        if _may_wait(ranges):
            in_time = torch.arange(t_max, device=device).view(1, t_max, 1) < boundary[:, 3].view(n, 1, 1)
            self.place = (in_time & (ranges <= boundary[:, 2].view(n, 1, 1))).flatten().nonzero().squeeze(1)
        else:
            self.place = torch.arange(n * t_max * s, device=device)

    def tiles(self, weight: Tensor) -> Iterator[tuple[int, _Tile]]:
        """Yield the nodes in tiles for an output matrix (C, J), each with the number of nodes before it."""
        size = max(16, TILE_NUMBERS.get(weight.device.type, 1 << 22) // max(weight.shape))
        for i, place in enumerate(self.place.split(size)):
            yield i * size, _Tile(place, self.enc[place], self.dec[place], self.token[place])


class _Joiner:
    """tanh and output matrix on tiles of nodes, with the matrix products in the type `product`."""

    def __init__(self, given: JoinerInput, product: torch.dtype) -> None:
        exact = exact_dtype(given.enc)
        self.enc, self.dec = (x.reshape(-1, x.shape[2]).to(exact) for x in (given.enc, given.dec))
        self.weight, self.bias = given.weight.to(product), given.bias.to(product)
        self.low_d_weight: Tensor | None = None

    def room(self, nodes: int) -> Tensor:
        """Return an empty store (nodes to keep, C) for logits, no larger than the hidden units of all `nodes` would be."""
        classes, width = self.weight.shape
        return self.weight.new_empty(min(nodes, nodes * width // classes), classes)

    def hidden(self, tile: _Tile) -> Tensor:
        """Return tanh(enc + dec) (nodes, J)."""
        total = self.dec.index_select(0, tile.dec).add_(self.enc.index_select(0, tile.enc))
        if not _may_wait(total):
            return total.tanh_()
        return total.mul_(2).sigmoid_().mul_(2).sub_(1)  # the same; torch's tanh on the CPU takes five times as long

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the logits (nodes, C) of hidden units (nodes, J), in `out` if given."""
        return torch.addmm(self.bias, hidden.to(self.weight.dtype), self.weight.t(), out=out)

    def backward(self, hidden: Tensor, d_logits: Tensor, d_weight: Tensor) -> Tensor:
        """Add to `d_weight` (C, J), return the gradient by enc + dec (nodes, J); `hidden` is used up."""
        exact, product = d_weight.dtype, self.weight.dtype
        g = d_logits.to(product)
        if product == exact:
            d_weight.addmm_(g.t(), hidden.to(product))
        else:
            self.low_d_weight = torch.mm(g.t(), hidden.to(product), out=self.low_d_weight)
            d_weight += self.low_d_weight
        d_hidden = torch.mm(g, self.weight).to(exact)
        return d_hidden.sub_(hidden.square_().mul_(d_hidden))  # tanh' = 1 - tanh^2


def _may_wait(x: Tensor) -> bool:
    """Return whether sizes may depend on values: on a GPU the host would have to wait for them."""
    return x.device.type == "cpu"


def _rows(kept: Tensor | None, first: int, tile: _Tile) -> Tensor | None:
    """Return the rows of `kept` for a tile that begins with node `first`; None if there is no room for its logits."""
    last = first + len(tile.place)
    return None if kept is None or last > len(kept) else kept[first:last]


def _counts(px_occ: Tensor, py_occ: Tensor) -> Tensor:
    """Return which nodes of the flat band add to the gradients more than a hundredth of the rounding error of one node."""
    return (px_occ + py_occ).flatten() > torch.finfo(px_occ.dtype).eps / 100


def _only(counts: Tensor, tile: _Tile, logits: Tensor | None) -> tuple[_Tile, Tensor | None]:
    """Return the nodes of a tile that count; in a trained model most of the band has almost no probability."""
    if not _may_wait(counts):
        return tile, logits
    chosen = counts[tile.place].nonzero().squeeze(1)
    if len(chosen) == len(tile.place):
        return tile, logits
    return _Tile(*(rows[chosen] for rows in tile)), None if logits is None else logits[chosen]
