"""torchaudio's RNN-T loss behind the common interface: nothing is pruned, all (N, T, U + 1, C) logits are in memory."""

from __future__ import annotations

from model.loss import native
from model.loss.interface import JoinerInput, Lattice

import torch
from torch import Tensor

try:
    from torchaudio.functional import rnnt_loss
except Exception as e:  # a torchaudio built for another torch fails with errors of many kinds
    raise ImportError(f"loss.backend=torchaudio needs torchaudio; importing it failed: {e}") from e


class Backend(native.Backend):
    """The pruned loss sums the whole lattice in float32, whatever the ranges.

    It raises ValueError for a delay penalty, which torchaudio's loss does not have.
    """

    def prune_ranges(self, px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
        """Return every node of every frame, whatever `s_range`: (N, T, U + 1)."""
        n, nodes, t_max = py_grad.shape
        return torch.arange(nodes, device=py_grad.device).expand(n, t_max, nodes)

    def _pruned_loss(self, joiner: JoinerInput, ranges: Tensor, lattice: Lattice) -> Tensor:
        if lattice.delay_penalty != 0:
            raise ValueError("loss.delay_penalty must be 0 with loss.backend=torchaudio")
        u_max, t_max = lattice.boundary[:, 2:].amax(0).tolist()  # torchaudio requires tensors as long as the longest utterance
        hidden = torch.tanh(joiner.enc[:, :t_max, None] + joiner.dec[:, None, : u_max + 1])
        logits = torch.nn.functional.linear(hidden, joiner.weight, joiner.bias)
        return rnnt_loss(
            logits.float(),
            lattice.tokens[:, :u_max].int().contiguous(),
            lattice.boundary[:, 3].int(),
            lattice.boundary[:, 2].int(),
            blank=lattice.blank,
            clamp=-1,
            reduction="none",
        )


backend = Backend()
