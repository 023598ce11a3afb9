"""The searches' bookkeeping for one frame, compiled for the CPU; what the tensor versions beside the searches do elsewhere.

A frame has few hypotheses, so that on a CPU the thirty small tensor operations of a frame cost more than the model.
All arrays are written in place. Contexts are numbered as `model.search.joint.Contexts` does: `base` values per token, and
context % tail drops the oldest token.
"""

from __future__ import annotations

import numpy as np
from numba import njit

INF = np.inf


@njit(cache=True, nogil=True)
def merge_step(log_probs, scores, context, prefix, parents, tokens, blank, unk, base, tail, multiplier):
    """`model.search.modified_beam.merge_step`, of which the arguments are described there."""
    num_utts, beam, vocab = log_probs.shape
    top = np.empty(beam)
    source = np.empty(beam, np.int64)
    token = np.empty(beam, np.int64)
    new_context = np.empty(beam, np.int64)
    new_prefix = np.empty(beam, np.int64)
    for n in range(num_utts):
        top[:] = -INF
        source[:] = 0
        token[:] = blank
        for k in range(beam):
            base_score = scores[n, k]
            if base_score == -INF:
                continue
            for v in range(vocab):
                score = base_score + log_probs[n, k, v]
                if score > top[beam - 1]:
                    i = beam - 1
                    while i > 0 and score > top[i - 1]:
                        top[i], source[i], token[i] = top[i - 1], source[i - 1], token[i - 1]
                        i -= 1
                    top[i], source[i], token[i] = score, k, v
        for i in range(beam):
            new_context[i], new_prefix[i] = context[n, source[i]], prefix[n, source[i]]
            if token[i] != blank and token[i] != unk:
                new_context[i] = new_context[i] % tail * base + token[i] + 1
                new_prefix[i] = new_prefix[i] * multiplier + token[i] + 1
            for j in range(i):
                if top[i] > -INF and new_prefix[j] == new_prefix[i]:
                    # j is the first of its prefix, hence the better one of the two before any merging
                    high, low = max(top[i], top[j]), min(top[i], top[j])
                    top[j] = high + np.log1p(np.exp(low - high))
                    top[i] = -INF
                    break
        scores[n], context[n], prefix[n] = top, new_context, new_prefix
        parents[n], tokens[n] = source, token


@njit(cache=True, nogil=True)
def _insert(score, state, parent, token, count, best, states, parents, tokens):
    """Puts an arc into the list of best arcs to distinct states, best first and, at a tie, lower state first.

    The first `count` entries are in use. Returns how many are then.
    """
    at = count
    for i in range(count):
        if states[i] == state:
            if best[i] >= score:
                return count
            at = i
            break
    if at == count:
        if count == len(best):
            at -= 1
            if not (score > best[at] or (score == best[at] and state < states[at])):
                return count
        else:
            count += 1
    while at > 0 and (score > best[at - 1] or (score == best[at - 1] and state < states[at - 1])):
        best[at], states[at], parents[at], tokens[at] = best[at - 1], states[at - 1], parents[at - 1], tokens[at - 1]
        at -= 1
    best[at], states[at], parents[at], tokens[at] = score, state, parent, token
    return count


@njit(cache=True, nogil=True)
def _best_arcs(log_probs, scores, context, threshold, blank, base, tail, best, states, parents, tokens):
    """Fills the list of `_insert` from all arcs of one utterance; returns its length."""
    count, size = 0, len(best)
    for k in range(len(scores)):
        if scores[k] == -INF:
            continue
        score = scores[k] + log_probs[k, blank]
        count = _insert(score, context[k], k, blank, count, best, states, parents, tokens)
        head = context[k] % tail * base + 1
        for v in range(log_probs.shape[1]):
            score = scores[k] + log_probs[k, v]
            if score >= threshold and v != blank and (count < size or score >= best[size - 1]):
                count = _insert(score, head + v, k, v, count, best, states, parents, tokens)
    return count


@njit(cache=True, nogil=True)
def _count_kept(best, count, final, beam, max_states, max_contexts):
    """How many states of the list of best arcs stay, `final` (K,) being the scores of the arcs to final states."""
    kept = 0
    for i in range(min(count, max_contexts)):
        rank = i
        for k in range(len(final)):
            if final[k] > best[i]:
                rank += 1
        if rank >= max_states or best[i] < best[0] - beam:
            break
        kept += 1
    return kept


@njit(cache=True, nogil=True)
def _finish(log_probs, scores, context, threshold, final, best, states, count, kept, beam, blank, base, tail, partial):
    """Leaves of the `scores` of one utterance only those of states that may end it."""
    max_states = len(best)
    ends = np.zeros(len(scores), np.bool_)
    for k in range(len(scores)):
        if final[k] == -INF or final[k] < best[0] - beam:
            continue
        rank = 0
        for i in range(count):
            rank += best[i] >= final[k]
        for j in range(len(scores)):
            rank += final[j] > final[k]
        for i in range(kept):
            if states[i] == context[k] and rank < max_states:
                ends[k] = True
    if partial and not ends.any():
        for k in range(len(scores)):
            for i in range(kept):
                v = states[i] % base - 1
                if states[i] == context[k]:
                    ends[k] = True
                elif context[k] % tail * base + v + 1 == states[i] and scores[k] + log_probs[k, v] >= threshold:
                    ends[k] = True
    for k in range(len(scores)):
        if not ends[k]:
            scores[k] = -INF


@njit(cache=True, nogil=True)
def viterbi_step(
    log_probs, scores, context, parents, tokens, going, blank, base, tail, beam, max_contexts, max_states, partial
):
    """`model.search.fast_beam.viterbi_step`, of which the arguments are described there."""
    num_utts, num_kept, _ = log_probs.shape
    best = np.empty(max_states)
    states = np.empty(max_states, np.int64)
    parent = np.empty(max_states, np.int64)
    token = np.empty(max_states, np.int64)
    final = np.empty(num_kept)
    for n in range(num_utts):
        threshold = scores[n].max() - beam
        for k in range(num_kept):
            final[k] = scores[n, k] + log_probs[n, k, blank]
        count = _best_arcs(
            log_probs[n], scores[n], context[n], threshold, blank, base, tail, best, states, parent, token
        )
        kept = _count_kept(best, count, final, beam, max_states, max_contexts)
        if n >= going:
            _finish(
                log_probs[n], scores[n], context[n], threshold, final, best, states, count, kept, beam, blank, base,
                tail, partial,
            )
            continue
        for i in range(kept):
            scores[n, i], context[n, i], parents[n, i], tokens[n, i] = best[i], states[i], parent[i], token[i]
        for i in range(kept, num_kept):
            scores[n, i] = -INF
