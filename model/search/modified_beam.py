"""Modified beam search: at most one symbol per frame, hypotheses of equal tokens merged, all as batched tensors."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from model.search.frames import Frames
from model.search.hypothesis import BackPointers, Hypothesis, best_paths
from model.search.joint import Contexts, Joint

compiled_step: Any = None
with contextlib.suppress(ImportError):  # numba is optional: the tensor operations give the same
    from model.search import kernels

    compiled_step = kernels.merge_step

# Multiplier of the rolling 64-bit hash that stands for a token sequence (odd, so that no information is shifted out).
HASH = 6364136223846793005


@torch.no_grad()
def modified_beam_search(
    model: Any,
    encoder_out: torch.Tensor,
    encoder_out_lens: torch.Tensor,
    *,
    beam: int = 4,
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
) -> list[Hypothesis]:
    """Beam search over a batch, all utterances and hypotheses in one tensor.

    Per frame the `beam` best of hypotheses x tokens are kept; those that then hold the same tokens become one, their
    probabilities added. Blank and unknown leave the tokens as they are. The result is the hypothesis with the best
    log-probability per token, the start context counted in.

    Args:
      encoder_out: (N, T, C).
      encoder_out_lens: (N,), frames that count.
      beam: hypotheses kept per utterance.
      temperature: divides the logits.
      blank_penalty: subtracted from blank's logit.
    """
    if beam < 1:
        raise ValueError(f"beam must be 1 or more, got {beam}")
    frames = Frames(model, encoder_out, encoder_out_lens)
    joint, device = Joint(model, temperature, blank_penalty), encoder_out.device
    contexts = Contexts(model, device)
    start = contexts.number([-1] * (contexts.size - 1) + [model.blank_id])
    context = torch.full((frames.num_utts, beam), start, device=device)
    prefix = torch.zeros_like(context)
    scores = torch.full((frames.num_utts, beam), -torch.inf, dtype=torch.float64, device=device)
    scores[:, 0] = 0
    back = BackPointers(len(frames), frames.num_utts, beam, model.blank_id, device)
    ids = (model.blank_id, model.unk_id, contexts.base, contexts.tail, HASH)
    for t, n in enumerate(frames.active):
        log_probs = joint.log_probs(frames.enc[t, :n].unsqueeze(1), contexts.decode(context[:n]))
        state = (log_probs, scores[:n], context[:n], prefix[:n], back.parents[t, :n], back.tokens[t, :n])
        if compiled_step is not None and device.type == "cpu":
            compiled_step(*(x.numpy() for x in state), *ids)
        else:
            merge_step(*state, *ids)
    path = back.trace()
    emitted = (path != model.blank_id) & (path != model.unk_id)
    final = scores.cpu().numpy()
    return frames.unsort(best_paths(path, emitted, final, final / (emitted.sum(0) + contexts.size)))


def merge_step(
    log_probs: torch.Tensor,
    scores: torch.Tensor,
    context: torch.Tensor,
    prefix: torch.Tensor,
    parents: torch.Tensor,
    tokens: torch.Tensor,
    blank: int,
    unk: int,
    base: int,
    tail: int,
    multiplier: int,
) -> None:
    """One frame for N utterances of K hypotheses, in place.

    Args:
      log_probs: (N, K, V).
      scores: (N, K) float64, -inf where there is no hypothesis.
      context, prefix: (N, K) int64, the number of the last tokens and the hash of all tokens.
      parents, tokens: (N, K) int64, written: where each new hypothesis came from.
      blank, unk: ids that leave the tokens as they are.
      base, tail: see `Contexts`.
      multiplier: of the hash.
    """
    num_utts, beam, vocab = log_probs.shape
    top, place = (log_probs + scores.unsqueeze(2)).view(num_utts, beam * vocab).topk(beam)
    parents.copy_(place.div(vocab, rounding_mode="floor"))
    tokens.copy_(place % vocab)
    emit = (tokens != blank) & (tokens != unk)
    old = context.gather(1, parents)
    context.copy_(torch.where(emit, old % tail * base + tokens + 1, old))
    old = prefix.gather(1, parents)
    prefix.copy_(torch.where(emit, old * multiplier + tokens + 1, old))
    scores.copy_(merge(prefix, top))


def merge(prefix: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Adds up the probabilities of hypotheses of one prefix.

    Args:
      prefix: (N, K), equal for equal token sequences.
      scores: (N, K) log-probabilities, best first.

    Returns:
      (N, K): at the first place of each prefix the log of the sum, -inf at its other places.
    """
    same = prefix.unsqueeze(2) == prefix.unsqueeze(1)
    total = scores.unsqueeze(1).expand(same.shape).masked_fill(~same, -torch.inf).logsumexp(2)
    return total.masked_fill(same.tril(-1).any(2), -torch.inf)
