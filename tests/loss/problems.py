"""Random loss problems."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """All arguments of a backend; see `LossBackend` for the shapes."""

    am: Tensor
    lm: Tensor
    enc: Tensor
    dec: Tensor
    weight: Tensor
    bias: Tensor
    tokens: Tensor
    boundary: Tensor

    def to(self, dtype: torch.dtype, grad: bool = True) -> Problem:
        """Return new leaves in another dtype."""
        floats = [x.detach().to(dtype).clone().requires_grad_(grad) for x in self[:6]]
        return Problem(*floats, self.tokens, self.boundary)


def make_problem(
    lengths: list[tuple[int, int]],
    *,
    classes: int = 7,
    width: int = 6,
    seed: int = 0,
    spread: float = 1.0,
    padding: tuple[int, int] = (0, 0),
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Return utterances of (frames, tokens), padded to the longest and by `padding` more; `spread` scales the logits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(spread).to(dtype).requires_grad_()

    n = len(lengths)
    t = max(frames for frames, _ in lengths) + padding[0]
    u = max(tokens for _, tokens in lengths) + padding[1]
    boundary = torch.tensor([[0, 0, tokens, frames] for frames, tokens in lengths])
    tokens = torch.randint(1, classes, (n, u), generator=generator)
    return Problem(
        normal(n, t, classes),
        normal(n, u + 1, classes),
        normal(n, t, width),
        normal(n, u + 1, width),
        normal(classes, width),
        normal(classes),
        tokens,
        boundary,
    )
