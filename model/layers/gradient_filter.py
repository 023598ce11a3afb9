"""The gradient filter: damps the sequences of a batch whose gradient explodes, layer by layer.

Whole-model clipping shrinks every layer's step when one sequence's gradient explodes in one layer. The filter instead
compares, at the input of each LSTM, the gradient of every sequence with the batch's median and damps only the
outliers (icefall's `lstm_transducer_stateless3`, Z. Yao and D. Povey, 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.precision import exact_dtype

import torch
from torch import Tensor, nn

TINY = 1e-20
ABSENT = -1.0  # stands where a process has fewer sequences than another; a norm is never below 0


class Exchange:
    """Brings together the norms of a batch whose sequences lie on several processes, in one backward pass.

    All processes of torch.distributed's default group make one in the same pass, and each calls `gather` once for
    each of its `calls` filters, or `finish` where its own pass ends before.
    """

    def __init__(self, batch_of: Sequence[int], rank: int, rows: int, calls: int, device: torch.device) -> None:
        """batch_of: for every process, the number of the batch that its sequences belong to. rank: this process.
        rows: the most sequences that a process has. calls: filters of the model."""
        self.mine = [r for r, batch in enumerate(batch_of) if batch == batch_of[rank]]
        self.size, self.rows, self.calls, self.device = len(batch_of), rows, calls, device

    def gather(self, n: Tensor) -> Tensor:
        """n (N,) of this process -> those of the whole batch, with `ABSENT` here and there."""
        self.calls -= 1
        own = torch.full((self.rows,), ABSENT, device=self.device)
        own[: n.numel()] = n
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(everyone, own)
        return torch.cat([everyone[r] for r in self.mine])

    def finish(self) -> None:
        """Let the others have their norms where this process has no sequence, or no memory for them."""
        while self.calls > 0:
            self.gather(torch.empty(0, device=self.device))


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: GradientFilter, x: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
        ctx.module = module
        return (x, *params)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x_grad, *param_grads = grads
        module: GradientFilter = ctx.module
        n = x_grad.to(exact_dtype(x_grad)).square().mean(dim=(0, 2)).sqrt()  # (N,)
        if module.exchange is None:
            cutoff = n.median() * module.threshold
            inv_mask = (cutoff + n) / (cutoff + TINY)
            mean = inv_mask.mean()
        else:
            # Processes pad to different lengths: norms are compared, not means over the frames.
            n = n * x_grad.size(0) ** 0.5
            batch = module.exchange.gather(n)
            absent = batch == ABSENT
            cutoff = batch.masked_fill(absent, float("nan")).nanmedian() * module.threshold
            inv_mask = (cutoff + n) / (cutoff + TINY)
            mean = ((cutoff + batch) / (cutoff + TINY)).masked_fill(absent, 0.0).sum() / (~absent).sum()
        mask = 1.0 / (inv_mask + TINY)  # a sequence without any gradient stays at 0 where the median is 0
        module.mask = mask
        x_grad = x_grad * mask[None, :, None].to(x_grad.dtype)
        average = 1.0 / (mean + TINY)
        return (None, x_grad, *(g * average.to(g.dtype) for g in param_grads))


class GradientFilter(nn.Module):
    """Identity forward over the LSTM's input x (T, N, C) and its parameters. Backward, with g the gradient of x:

    n_b = rms of g over all but the batch axis; cutoff = threshold * median(n); inv_mask = (cutoff + n) / cutoff;
    g_b /= inv_mask_b; every parameter's gradient /= mean(inv_mask).

    `mask` (N,) is 1 / inv_mask of the last backward pass, for telemetry; None before the first.
    `exchange`: set for a pass whose batch lies on several processes; median and mean are then over the whole batch.
    """

    mask: Tensor | None

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.mask = None
        self.exchange: Exchange | None = None

    def forward(self, x: Tensor, params: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if not (self.training and x.requires_grad):
            return x, params
        x, *params = _Filter.apply(self, x, *params)
        return x, params
