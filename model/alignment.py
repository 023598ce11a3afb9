"""The likeliest path of a given transcript through the frames: over the transducer's lattice, or over the CTC head.

Both are Viterbi recursions in float64 over the paths of the losses, with a maximum instead of the log-add: the
transducer's lattice is that of `model.loss.lattice` with all of its nodes, CTC's is that of Graves et al. (ICML 2006). An
alignment is a `Hypothesis`: its times are the frames at which the path emits the tokens (in CTC a token's first frame), its
confidences the tokens' probabilities there, its score the path's log-probability, blanks included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.loss import pruned
from model.loss.interface import JoinerInput, Lattice
from model.search.hypothesis import Hypothesis

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence


@torch.no_grad()
def transducer_alignments(
    model: Any, encoder_out: Tensor, lens: Tensor, tokens: Sequence[Sequence[int]]
) -> list[Hypothesis | None]:
    """Return the best path of each utterance's `tokens` through the transducer's lattice; None if it has no frame.

    encoder_out: (N, T, C). lens: (N,), frames. A frame may emit any number of tokens, as in the loss.
    """
    px, py = lattice_log_probs(model, encoder_out, lens, tokens)
    n, t_max, nodes = px.shape
    counts = torch.tensor([[len(row)] for row in tokens], device=px.device)
    arriving = torch.full((n, nodes), -torch.inf, dtype=torch.float64, device=px.device)
    arriving[:, 0] = 0.0
    entered: list[Tensor] = []  # the node at which the best path to each node enters its frame
    left: list[Tensor] = []  # the score at which the last node leaves its frame
    for t in range(t_max):
        before = pad(px[:, t, :-1].double().cumsum(1), (1, 0))  # of the tokens before u, if all are emitted in this frame
        best, entry = torch.cummax(arriving - before, dim=1)
        arriving = best + before + py[:, t]
        entered.append(entry.int())
        left.append(arriving.gather(1, counts)[:, 0])
    entries, totals, own = (_stacked(x) for x in (entered, left, px))
    found: list[Hypothesis | None] = []
    for i, (row, length) in enumerate(zip(tokens, lens.tolist(), strict=True)):
        times, u = np.zeros(len(row), np.int64), len(row)
        for t in range(length - 1, -1, -1):
            first = int(entries[i, t, u])
            times[first:u] = t
            u = first
        score = float(totals[i, length - 1]) if length else -np.inf
        found.append(_hypothesis(row, times, own[i, times, np.arange(len(row))], score) if length else None)
    return found


def lattice_log_probs(model: Any, encoder_out: Tensor, lens: Tensor, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return log-probabilities px and py (N, T, U + 1) of the next token and of blank at each node of the lattice.

    They are those of the pruned loss, in a band of all nodes. What lies in padding has no meaning.
    """
    joiner, blank, device = model.joiner, model.blank_id, encoder_out.device
    targets = _padded(tokens, device)
    enc = joiner.encoder_proj(encoder_out)
    dec = joiner.decoder_proj(model.decoder(pad(targets, (1, 0), value=blank)))
    boundary = torch.zeros(len(tokens), 4, dtype=torch.int64, device=device)
    boundary[:, 2] = torch.tensor([len(row) for row in tokens], device=device)
    boundary[:, 3] = lens.to(device)
    band = torch.arange(dec.shape[1], device=device).expand(*enc.shape[:2], -1)
    given = JoinerInput(enc, dec, joiner.output_linear.get_weight(), joiner.output_linear.get_bias())
    px, py, _ = pruned.log_probs(given, band, Lattice(targets, boundary, blank), enc.dtype)
    return px, py


@torch.no_grad()
def ctc_alignments(log_probs: Tensor, lens: Tensor, tokens: Sequence[Sequence[int]], blank: int) -> list[Hypothesis | None]:
    """Return the best path of each utterance's `tokens` through the CTC head's log_probs (N, T, C).

    lens: (N,), frames. None for a transcript without a path: each token takes a frame, and equal ones a blank between them.
    """
    targets = _padded(tokens, log_probs.device)
    n, t_max, _ = log_probs.shape
    states = torch.full((n, 2 * targets.shape[1] + 1), blank, device=log_probs.device)  # blank, token, blank, token, ...
    states[:, 1::2] = targets
    own = log_probs.gather(2, states[:, None].expand(-1, t_max, -1))  # (N, T, S)
    counts = torch.tensor([[len(row)] for row in tokens], device=log_probs.device)
    last = torch.cat([2 * counts, (2 * counts - 1).clamp(min=0)], dim=1)  # the states in which a path may end
    skips = torch.zeros_like(states, dtype=torch.bool)  # whether a state may follow the one two before it
    skips[:, 3::2] = targets[:, 1:] != targets[:, :-1]
    alpha = torch.full_like(states, -torch.inf, dtype=torch.float64)
    alpha[:, 0] = 0.0  # as if a blank came before the first frame
    steps, totals = [], []
    for t in range(t_max):
        one = pad(alpha, (1, 0), value=-torch.inf)[:, :-1]
        two = pad(alpha, (2, 0), value=-torch.inf)[:, :-2].masked_fill(~skips, -torch.inf)
        best, step = torch.stack([alpha, one, two]).max(dim=0)
        alpha = best + own[:, t]
        steps.append(step.to(torch.int8))
        totals.append(alpha.gather(1, last))
    back, ends, probs = (_stacked(x) for x in (steps, totals, own))
    rows = enumerate(zip(tokens, lens.tolist(), strict=True))
    return [_ctc_path(row, back[i, :length], ends[i, :length], probs[i]) for i, (row, length) in rows]


def _ctc_path(tokens: Sequence[int], steps: np.ndarray, totals: np.ndarray, own: np.ndarray) -> Hypothesis | None:
    """Return the best path of one utterance.

    steps, own: (T, S), by frame and state: how far the best path's state before is away, and the state's own log-probability.
    totals: (T, 2), the scores of the best paths that end in the last blank and in the last token.
    """
    if not len(totals):
        return None
    in_token = bool(tokens) and totals[-1, 1] > totals[-1, 0]
    state, score = 2 * len(tokens) - in_token, float(totals[-1, int(in_token)])
    if score == -np.inf:
        return None
    times = np.zeros(len(tokens), np.int64)
    for t in range(len(totals) - 1, -1, -1):
        if state % 2:
            times[state // 2] = t  # the first frame of the run is written last
        state -= int(steps[t, state])
    return _hypothesis(tokens, times, own[times, 1 + 2 * np.arange(len(tokens))], score)


def _hypothesis(tokens: Sequence[int], times: np.ndarray, log_probs: np.ndarray, score: float) -> Hypothesis:
    return Hypothesis(list(tokens), times.tolist(), score, None, np.exp(log_probs).tolist())


def _padded(tokens: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the tokens as (N, U) int64."""
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in tokens], batch_first=True).to(device)


def _stacked(x: Tensor | list[Tensor]) -> np.ndarray:
    """Return (N, T, ...) as an array, also of a list of frames (N, ...)."""
    return (x if isinstance(x, Tensor) else torch.stack(x, 1)).cpu().numpy()
