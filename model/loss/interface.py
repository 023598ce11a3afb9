"""What every backend of the pruned RNN-T loss offers, and the checks they share.

Symbols are the paper's (Kuang et al. 2022, arXiv 2206.13236): N utterances, T frames, U tokens, C classes with blank,
S = s_range tokens kept per frame, J the joiner's width. A boundary is k2's: rows [0, 0, U_n, T_n].
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class LossBackend(Protocol):
    """Simple loss over the full lattice, the band its occupations suggest, the true joiner's loss inside the band."""

    def simple_loss(
        self,
        am: Tensor,
        lm: Tensor,
        tokens: Tensor,
        boundary: Tensor,
        *,
        blank: int = 0,
        am_scale: float = 0.0,
        lm_scale: float = 0.0,
        delay_penalty: float = 0.0,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """RNN-T loss of the trivial joiner am[t] + lm[u], smoothed by the two scales.

        Args:
          am: (N, T, C), lm: (N, U + 1, C): unnormalised log-probabilities.
          tokens: (N, U) int64, padded with any class; boundary: (N, 4) int64.
          am_scale, lm_scale: weights of the am-only and lm-only log-probabilities.
          delay_penalty: added to a token's log-probability per frame that it comes before the middle of the utterance.
        Returns:
          loss (N,), differentiable, and the detached occupations (px_grad (N, U, T + 1), py_grad (N, U + 1, T)).
        """
        ...

    def prune_ranges(self, px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
        """The S consecutive u of each frame that keep most occupation: (N, T, S) int64, S = min(s_range, U + 1)."""
        ...

    def pruned_loss(
        self,
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
        """RNN-T loss within `ranges` of the joiner tanh(enc[t] + dec[u]) @ weight.T + bias.

        Args:
          enc: (N, T, J), dec: (N, U + 1, J): the joiner's two projections; weight: (C, J), bias: (C,).
          tokens: (N, U), ranges: (N, T, S), boundary: (N, 4), all int64.
        Returns:
          loss (N,), infinite where no path fits into the band (more than (S - 1) T_n tokens).
        """
        ...

    def pruned_mass(self, px_grad: Tensor, py_grad: Tensor, ranges: Tensor, boundary: Tensor) -> Tensor:
        """Share (N,) of the simple lattice's posterior mass that falls outside the band."""
        ...


def check_simple(am: Tensor, lm: Tensor, tokens: Tensor, boundary: Tensor, delay_penalty: float) -> None:
    """Raise ValueError where the arguments of a simple loss do not fit together."""
    n, u = tokens.shape
    if am.shape[0] != n or lm.shape[:2] != (n, u + 1) or am.shape[2] != lm.shape[2] or boundary.shape != (n, 4):
        raise ValueError(
            f"shapes do not fit: am {tuple(am.shape)}, lm {tuple(lm.shape)}, tokens {tuple(tokens.shape)}, "
            f"boundary {tuple(boundary.shape)}"
        )
    check_delay_penalty(delay_penalty)


def check_pruned(enc: Tensor, dec: Tensor, weight: Tensor, tokens: Tensor, ranges: Tensor, penalty: float) -> None:
    """Raise ValueError where the arguments of a pruned loss do not fit together."""
    (n, u), (_, t, j) = tokens.shape, enc.shape
    if enc.shape[0] != n or dec.shape != (n, u + 1, j) or weight.shape[1] != j or ranges.shape[:2] != (n, t):
        raise ValueError(
            f"shapes do not fit: enc {tuple(enc.shape)}, dec {tuple(dec.shape)}, weight {tuple(weight.shape)}, "
            f"tokens {tuple(tokens.shape)}, ranges {tuple(ranges.shape)}"
        )
    check_delay_penalty(penalty)


def check_delay_penalty(delay_penalty: float) -> None:
    """k2 ignores a negative penalty; here it is an error."""
    if delay_penalty < 0:
        raise ValueError(f"delay_penalty must not be negative, got {delay_penalty}")
