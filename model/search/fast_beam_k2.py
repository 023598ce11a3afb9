"""Fast beam search through k2's decoding streams (k2 >= 1.23), over its trivial graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model.search.contexts import Contexts, Joint
from model.search.frames import Frames
from model.search.hypothesis import Hypothesis

import torch


def load_k2() -> Any:
    """Return k2. Raises ImportError if it cannot be imported; one built for another torch fails with errors of many kinds."""
    try:
        import k2
    except Exception as e:
        raise ImportError("fast_beam_search with backend=k2 needs k2, see requirements-k2.txt") from e
    return k2


@torch.no_grad()
def decode_k2(
    model: Any,
    joint: Joint,
    contexts: Contexts,
    encoder_out: torch.Tensor,
    encoder_out_lens: torch.Tensor,
    limits: tuple[float, int, int, bool],
) -> list[Hypothesis]:
    """Search whole utterances, encoder_out (N, T, C) and encoder_out_lens (N,); no n-best lists. Blank is token 0.

    limits: (beam, max_contexts, max_states, allow_partial). Raises ImportError if k2 is not installed.
    """
    k2 = load_k2()
    frames, vocab_size = Frames(model, encoder_out, encoder_out_lens), int(model.vocab_size)
    num_utts = frames.active[0] if len(frames) else 0
    empty = [Hypothesis([], [], 0.0) for _ in range(frames.num_utts - num_utts)]
    if not num_utts:
        return empty
    device, (beam, max_contexts, max_states, allow_partial) = frames.enc.device, limits
    graph = k2.trivial_graph(vocab_size - 1, device=device)
    config = k2.RnntDecodingConfig(
        vocab_size=vocab_size, decoder_history_len=contexts.size, beam=beam, max_contexts=max_contexts, max_states=max_states
    )
    streams = k2.RnntDecodingStreams([k2.RnntDecodingStream(graph) for _ in range(num_utts)], config)
    powers = torch.tensor([contexts.base**i for i in range(contexts.size - 1, -1, -1)], device=device)
    for t in range(len(frames)):
        # Utterances that have ended run through padding; only their real frames are read below.
        shape, context = streams.get_contexts()
        number = ((context.to(torch.int64) + 1) * powers).sum(1)
        enc = frames.enc[t, :num_utts].index_select(0, shape.row_ids(1).to(torch.int64))
        streams.advance(joint.log_probs(enc, contexts.decode(number)))
    streams.terminate_and_flush_to_streams()
    num_frames = [sum(n > i for n in frames.active) for i in range(num_utts)]
    best = k2.shortest_path(streams.format_output(num_frames, allow_partial=allow_partial), use_double_scores=True)
    scores = best.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
    # One arc per frame; the last frame's is the one to the final state, with the label -1.
    labels, splits = best.labels.tolist(), best.arcs.shape().remove_axis(1).row_splits(1).tolist()
    results = []
    for begin, end, score in zip(splits, splits[1:], scores, strict=False):
        path = labels[begin:end]
        times = [t for t, label in enumerate(path) if label > 0]
        results.append(Hypothesis([path[t] for t in times], times, score))
    return frames.unsort_list(with_confidences(results, frames.enc, joint, contexts) + empty)


def with_confidences(results: list[Hypothesis], enc: torch.Tensor, joint: Joint, contexts: Contexts) -> list[Hypothesis]:
    """Return the results with the probabilities of their tokens. enc: (T, >= N, J), utterances as in `results`."""
    if not any(h.tokens for h in results):
        return results
    emissions = []  # (context, token, frame, utterance)
    for n, h in enumerate(results):
        seen = [0] * contexts.size + h.tokens
        before = [contexts.number(seen[i : i + contexts.size]) for i in range(len(h.tokens))]
        emissions += [(*emission, n) for emission in zip(before, h.tokens, h.times, strict=True)]
    context, token, time, utt = torch.tensor(list(zip(*emissions, strict=True)), device=enc.device)
    log_probs = joint.log_probs(enc[time, utt], contexts.decode(context))
    shares = iter(log_probs.gather(1, token.unsqueeze(1)).squeeze(1).exp().tolist())
    return [replace(h, confidences=[next(shares) for _ in h.tokens]) for h in results]
