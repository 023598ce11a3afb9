"""What every backend of the pruned RNN-T loss offers, and the checks they share.

Symbols are those of Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training" (2022, arXiv 2206.13236): N
utterances, T frames, U tokens, C classes with blank, S = s_range tokens kept per frame, J the joiner's width. A boundary is
k2's: rows [0, 0, U_n, T_n].
"""

from __future__ import annotations

import abc
from typing import NamedTuple

from model.loss import bounds

from torch import Tensor


class Lattice(NamedTuple):
    """What both losses of a batch need: tokens (N, U) int64, padded with any class; boundary (N, 4) int64; blank's class.

    delay_penalty: added to a token's log-probability per frame that it comes before the middle of the utterance.
    am_scale, lm_scale: weights of the am-only and lm-only log-probabilities in the simple loss.
    """

    tokens: Tensor
    boundary: Tensor
    blank: int = 0
    delay_penalty: float = 0.0
    am_scale: float = 0.0
    lm_scale: float = 0.0


class JoinerInput(NamedTuple):
    """enc (N, T, J) and dec (N, U + 1, J): the joiner's projections; weight (C, J), bias (C,): its output layer."""

    enc: Tensor
    dec: Tensor
    weight: Tensor
    bias: Tensor


class LossBackend(abc.ABC):
    """Simple loss over the full lattice, the band that its occupations suggest, the true joiner's loss inside the band."""

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
        """Return the RNN-T loss of the trivial joiner am[t] + lm[u], smoothed by the two scales; see also `Lattice`.

        am (N, T, C), lm (N, U + 1, C): unnormalised log-probabilities. Return loss (N,) in nats, differentiable, and the
        detached occupations (px_grad (N, U, T + 1), py_grad (N, U + 1, T)).
        Raises ValueError if the shapes do not match or the delay penalty is negative.
        """
        n, u = tokens.shape
        if am.shape[0] != n or lm.shape[:2] != (n, u + 1) or am.shape[2] != lm.shape[2] or boundary.shape != (n, 4):
            raise ValueError(_mismatch(am=am, lm=lm, tokens=tokens, boundary=boundary))
        _check_delay_penalty(delay_penalty)
        return self._simple_loss(am, lm, Lattice(tokens, boundary, blank, delay_penalty, am_scale, lm_scale))

    def prune_ranges(self, px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
        """Return the S consecutive u of each frame that keep most occupation: (N, T, S) int64, S = min(s_range, U + 1)."""
        return bounds.prune_ranges(px_grad, py_grad, boundary, s_range)

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
        """Return the RNN-T loss within `ranges` (N, T, S) int64 of the joiner tanh(enc[t] + dec[u]) @ weight.T + bias.

        For the other arguments see `JoinerInput` and `Lattice`. The loss (N,) is in nats, infinite if no path fits into the
        band (more than (S - 1) T_n tokens). Raises ValueError if the shapes do not match or the delay penalty is negative.
        """
        (n, u), (_, t, j) = tokens.shape, enc.shape
        if enc.shape[0] != n or dec.shape != (n, u + 1, j) or weight.shape[1] != j or ranges.shape[:2] != (n, t):
            raise ValueError(_mismatch(enc=enc, dec=dec, weight=weight, tokens=tokens, ranges=ranges))
        _check_delay_penalty(delay_penalty)
        return self._pruned_loss(JoinerInput(enc, dec, weight, bias), ranges, Lattice(tokens, boundary, blank, delay_penalty))

    def pruned_mass(self, px_grad: Tensor, py_grad: Tensor, ranges: Tensor, boundary: Tensor) -> Tensor:
        """Return the share (N,) of the simple lattice's posterior mass that falls outside the band."""
        return bounds.pruned_mass(px_grad, py_grad, ranges, boundary)

    @abc.abstractmethod
    def _simple_loss(self, am: Tensor, lm: Tensor, lattice: Lattice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Do what `simple_loss` does, for checked arguments."""

    @abc.abstractmethod
    def _pruned_loss(self, joiner: JoinerInput, ranges: Tensor, lattice: Lattice) -> Tensor:
        """Do what `pruned_loss` does, for checked arguments."""


def _mismatch(**tensors: Tensor) -> str:
    return "shapes do not match: " + ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())


def _check_delay_penalty(delay_penalty: float) -> None:
    """Refuse a negative penalty, which k2 ignores."""
    if delay_penalty < 0:
        raise ValueError(f"delay_penalty must not be negative, got {delay_penalty}")
