"""Greedy search: at each frame the likeliest symbol."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from model.search.frames import Frames
from model.search.hypothesis import Hypothesis
from model.search.joint import Contexts, Joint


@torch.no_grad()
def greedy_search(
    model: Any,
    encoder_out: torch.Tensor,
    encoder_out_lens: torch.Tensor,
    *,
    max_sym_per_frame: int = 1,
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
) -> list[Hypothesis]:
    """Greedy search over a batch. Blank and unknown move on to the next frame without emitting.

    Args:
      encoder_out: (N, T, C).
      encoder_out_lens: (N,), frames that count.
      max_sym_per_frame: after so many symbols the search moves on without blank.
      temperature: divides the logits; changes scores only.
      blank_penalty: subtracted from blank's logit.
    """
    if max_sym_per_frame < 1:
        raise ValueError(f"max_sym_per_frame must be 1 or more, got {max_sym_per_frame}")
    frames = Frames(model, encoder_out, encoder_out_lens)
    joint, device = Joint(model, temperature, blank_penalty), encoder_out.device
    contexts = Contexts(model, device)
    start = contexts.number([-1] * (contexts.size - 1) + [model.blank_id])
    context = torch.full((frames.num_utts,), start, device=device)
    dec = contexts.decode(context)
    shape = (len(frames), max_sym_per_frame, frames.num_utts)
    path = torch.full(shape, model.blank_id, device=device)
    scores = torch.zeros(shape, device=device)
    for t, n in enumerate(frames.active):
        going = None  # utterances still on this frame; None: all
        for s in range(max_sym_per_frame):
            score, token = joint.log_probs(frames.enc[t, :n], dec[:n]).max(-1)
            emit = (token != model.blank_id) & (token != model.unk_id)
            if going is not None:
                emit &= going
                score = score * going
            scores[t, s, :n] = score
            if not emit.any():
                break
            going = emit
            path[t, s, :n] = torch.where(emit, token, model.blank_id)
            context[:n] = torch.where(emit, contexts.extend(context[:n], token), context[:n])
            dec[:n] = contexts.decode(context[:n])
    return frames.unsort(_read_off(path.cpu().numpy(), scores.double().sum((0, 1)).tolist(), model.blank_id))


def _read_off(path: np.ndarray, scores: list[float], blank: int) -> list[Hypothesis]:
    """Tokens by (frame, symbol of the frame, utterance), blank where nothing was emitted."""
    results = []
    for n, score in enumerate(scores):
        times, places = np.nonzero(path[:, :, n] != blank)
        results.append(Hypothesis(path[times, places, n].tolist(), times.tolist(), score))
    return results
