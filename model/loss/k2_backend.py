"""The pruned RNN-T loss of k2 (https://github.com/k2-fsa/k2), behind the common interface."""

from __future__ import annotations

from model.loss.interface import JoinerInput, Lattice, LossBackend

import torch
from torch import Tensor

try:
    import k2
except Exception as e:  # a k2 built for another torch fails with errors of many kinds
    raise ImportError(f"loss.backend=k2 needs k2 (requirements-k2.txt); importing it failed: {e}") from e


class Backend(LossBackend):
    """k2's losses. The pruned loss holds all (N, T, S, C) logits in memory."""

    def _simple_loss(self, am: Tensor, lm: Tensor, lattice: Lattice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        with torch.autocast(device_type=am.device.type, enabled=False):
            loss, grads = k2.rnnt_loss_smoothed(
                lm=_float(lm),
                am=_float(am),
                symbols=lattice.tokens,
                termination_symbol=lattice.blank,
                lm_only_scale=lattice.lm_scale,
                am_only_scale=lattice.am_scale,
                boundary=lattice.boundary,
                delay_penalty=lattice.delay_penalty,
                reduction="none",
                return_grad=True,
            )
        return loss, (grads[0].detach(), grads[1].detach())

    def prune_ranges(self, px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
        """Return k2's ranges; see `LossBackend.prune_ranges`."""
        return k2.get_rnnt_prune_ranges(px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=s_range)

    def _pruned_loss(self, joiner: JoinerInput, ranges: Tensor, lattice: Lattice) -> Tensor:
        enc, dec = k2.do_rnnt_pruning(am=joiner.enc, lm=joiner.dec, ranges=ranges)
        logits = torch.nn.functional.linear(torch.tanh(enc + dec), joiner.weight, joiner.bias)
        with torch.autocast(device_type=enc.device.type, enabled=False):
            return k2.rnnt_loss_pruned(
                logits=_float(logits),
                symbols=lattice.tokens,
                ranges=ranges,
                termination_symbol=lattice.blank,
                boundary=lattice.boundary,
                delay_penalty=lattice.delay_penalty,
                reduction="none",
            )


def _float(x: Tensor) -> Tensor:
    """Return x in float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


backend = Backend()
