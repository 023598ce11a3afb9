"""torchaudio's RNN-T loss behind the common interface: every node of the lattice, nothing pruned.

The simple loss is the native one. All (N, T, U + 1, C) logits are in memory; that is the price this backend is here to show.
"""

from __future__ import annotations

from model.loss.bounds import pruned_mass
from model.loss.interface import check_pruned
from model.loss.native import simple_loss

import torch
from torch import Tensor

try:
    from torchaudio.functional import rnnt_loss
except Exception as e:  # a torchaudio built for another torch fails with errors of many kinds
    raise ImportError(f"loss.backend=torchaudio needs torchaudio, which does not import here: {e}") from e

__all__ = ["prune_ranges", "pruned_loss", "pruned_mass", "simple_loss"]


def prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """Every node of every frame, whatever `s_range`: (N, T, U + 1)."""
    n, nodes, t_max = py_grad.shape
    return torch.arange(nodes, device=py_grad.device).expand(n, t_max, nodes)


def pruned_loss(
    enc: Tensor,
    dec: Tensor,
    weight: Tensor,
    bias: Tensor,
    tokens: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    *,
    blank: int = 0,
    delay_penalty: float = 0.0,
) -> Tensor:
    """See `LossBackend.pruned_loss`; `ranges` is ignored, the whole lattice is summed, in float32.

    Raises ValueError for a delay penalty, which torchaudio's loss has no place for.
    """
    check_pruned(enc, dec, weight, tokens, ranges, delay_penalty)
    if delay_penalty != 0:
        raise ValueError("loss.delay_penalty must be 0 with loss.backend=torchaudio")
    u_max, t_max = boundary[:, 2:].amax(0).tolist()  # torchaudio insists on tensors as long as the longest utterance
    hidden = torch.tanh(enc[:, :t_max, None] + dec[:, None, : u_max + 1])
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return rnnt_loss(
        logits.float(),
        tokens[:, :u_max].int().contiguous(),
        boundary[:, 3].int(),
        boundary[:, 2].int(),
        blank=blank,
        clamp=-1,
        reduction="none",
    )
