"""The native backend: runs wherever torch runs, with numba's compiled recursion on the CPU if numba is installed."""

from __future__ import annotations

from model.loss.interface import JoinerInput, Lattice, LossBackend
from model.loss.pruned import PrunedLoss
from model.loss.simple import SimpleLoss
from model.precision import product_dtype

import torch
from torch import Tensor


class Backend(LossBackend):
    """The losses of simple.py and pruned.py."""

    def _simple_loss(self, am: Tensor, lm: Tensor, lattice: Lattice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        loss, px_occ, py_occ = SimpleLoss.apply(am, lm, lattice)
        return loss, (px_occ[:, :, :-1].transpose(1, 2), py_occ.transpose(1, 2))

    def _pruned_loss(self, joiner: JoinerInput, ranges: Tensor, lattice: Lattice) -> Tensor:
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in joiner)
        return PrunedLoss.apply(*joiner, ranges, lattice, product_dtype(joiner.enc), keep)


backend = Backend()
