"""The searches' bookkeeping for one frame, compiled for the CPU; what the tensor versions beside the searches do elsewhere.

A frame has few hypotheses, so that on a CPU the thirty small tensor operations of a frame cost more than the model.
All arrays are written in place. Contexts are numbered as `model.search.contexts.Contexts` does: `base` values per token, and
context % tail drops the oldest token.
"""

from __future__ import annotations

import numpy as np
from numba import njit

INF = np.inf


@njit(cache=True, nogil=True)
def merge_step(log_probs, scores, context, prefix, parents, tokens, taken, blank, unk, base, tail, multiplier):
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
            taken[n, i] = log_probs[n, source[i], token[i]]
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
def _count_kept(best, count, final, limits):
    """How many states of the list of best arcs stay, `final` (K,) being the scores of the arcs to final states.

    limits: (beam, max_contexts, max_states).
    """
    kept = 0
    for i in range(min(count, limits[1])):
        rank = i
        for k in range(len(final)):
            if final[k] > best[i]:
                rank += 1
        if rank >= limits[2] or best[i] < best[0] - limits[0]:
            break
        kept += 1
    return kept


@njit(cache=True, nogil=True)
def _prune(log_probs, scores, context, blank, base, tail, limits, final, best, states, parents, tokens):
    """Fills `final` and the list of `_insert` for one utterance.

    Returns the score below which token arcs are dropped, the list's length and how many of its states stay.
    """
    threshold = scores.max() - limits[0]
    for k in range(len(scores)):
        final[k] = scores[k] + log_probs[k, blank]
    count = _best_arcs(log_probs, scores, context, threshold, blank, base, tail, best, states, parents, tokens)
    return threshold, count, _count_kept(best, count, final, limits)


@njit(cache=True, nogil=True)
def viterbi_step(log_probs, scores, context, parents, tokens, taken, blank, base, tail, beam, max_contexts, max_states):
    """`model.search.fast_beam.viterbi_step`, of which the arguments are described there."""
    num_utts, num_kept, _ = log_probs.shape
    limits, final = (beam, max_contexts, max_states), np.empty(num_kept)
    best, states = np.empty(max_states), np.empty(max_states, np.int64)
    parent, token = np.empty(max_states, np.int64), np.empty(max_states, np.int64)
    for n in range(num_utts):
        old = (log_probs[n], scores[n], context[n])
        _, _, kept = _prune(*old, blank, base, tail, limits, final, best, states, parent, token)
        for i in range(kept):
            scores[n, i], context[n, i], parents[n, i], tokens[n, i] = best[i], states[i], parent[i], token[i]
            taken[n, i] = log_probs[n, parent[i], token[i]]
        for i in range(kept, num_kept):
            scores[n, i] = -INF


@njit(cache=True, nogil=True)
def viterbi_end(log_probs, scores, context, blank, base, tail, beam, max_contexts, max_states, partial):
    """`model.search.fast_beam.viterbi_end`, of which the arguments are described there."""
    num_utts, num_kept, _ = log_probs.shape
    limits, final = (beam, max_contexts, max_states), np.empty(num_kept)
    best, states = np.empty(max_states), np.empty(max_states, np.int64)
    parent, token = np.empty(max_states, np.int64), np.empty(max_states, np.int64)
    for n in range(num_utts):
        old = (log_probs[n], scores[n], context[n])
        threshold, count, kept = _prune(*old, blank, base, tail, limits, final, best, states, parent, token)
        ends = _may_end(final, best[:count], states[:kept], context[n], limits)
        if partial and not ends.any():
            ends = _leave(*old, threshold, states[:kept], base, tail)
        for k in range(num_kept):
            if not ends[k]:
                scores[n, k] = -INF


@njit(cache=True, nogil=True)
def _may_end(final, best, states, context, limits):
    """(K,): whether each old state's arc to the final state survives; `states` are the new ones that stay."""
    ends = np.zeros(len(final), np.bool_)
    for k in range(len(final)):
        if final[k] == -INF or final[k] < best[0] - limits[0]:
            continue
        rank = 0
        for score in best:
            rank += score >= final[k]
        for score in final:
            rank += score > final[k]
        for state in states:
            if state == context[k] and rank < limits[2]:
                ends[k] = True
    return ends


@njit(cache=True, nogil=True)
def _leave(log_probs, scores, context, threshold, states, base, tail):
    """(K,): whether any arc of each old state leads to a state that stays."""
    leaves = np.zeros(len(scores), np.bool_)
    for k in range(len(scores)):
        for state in states:
            v = state % base - 1
            if state == context[k]:
                leaves[k] = True
            elif context[k] % tail * base + v + 1 == state and scores[k] + log_probs[k, v] >= threshold:
                leaves[k] = True
    return leaves
