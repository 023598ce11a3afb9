"""One frame of the beam searches, compiled for the CPU; on other devices the tensor versions beside the searches run.

A frame has few hypotheses: its thirty small tensor operations would take longer than the model. Arrays are written in place.
Contexts have the numbers of `Contexts`: `base` values per token, and context % tail drops the oldest token.
"""

from __future__ import annotations

from typing import NamedTuple

from model.kernels.beam_state import Chosen, CompiledGraph, GraphState, Limits, MergeIds, MergeState, Numbering

import numpy as np
from numba import njit

INF = np.inf
BLANK = 0  # over graphs, whose label 0 is epsilon
FLAGS = {"cache": True, "nogil": True}


@njit(**FLAGS)
def merge_step(log_probs, state, decisions, numbers):
    """Do what `model.search.modified_beam.merge_step` does, with the same arguments."""
    beam, chosen, ids = MergeState(*state), Chosen(*decisions), MergeIds(*numbers)
    num_utts, width, vocab = log_probs.shape
    top = np.empty(width)
    source = np.empty(width, np.int64)
    token = np.empty(width, np.int64)
    new_context = np.empty(width, np.int64)
    new_prefix = np.empty(width, np.int64)
    for n in range(num_utts):
        top[:] = -INF
        source[:] = 0
        token[:] = ids.blank
        for k in range(width):
            base_score = beam.scores[n, k]
            if base_score == -INF:
                continue
            for v in range(vocab):
                score = base_score + log_probs[n, k, v]
                if score > top[width - 1]:
                    i = width - 1
                    while i > 0 and score > top[i - 1]:
                        top[i], source[i], token[i] = top[i - 1], source[i - 1], token[i - 1]
                        i -= 1
                    top[i], source[i], token[i] = score, k, v
        for i in range(width):
            chosen.taken[n, i] = log_probs[n, source[i], token[i]]
            new_context[i], new_prefix[i] = beam.context[n, source[i]], beam.prefix[n, source[i]]
            if token[i] != ids.blank and token[i] != ids.unk:
                new_context[i] = new_context[i] % ids.tail * ids.base + token[i] + 1
                new_prefix[i] = new_prefix[i] * ids.multiplier + token[i] + 1
            for j in range(i):
                if top[i] > -INF and new_prefix[j] == new_prefix[i]:
                    # j is the first of its prefix, so before any merging it was the better one of the two
                    high, low = max(top[i], top[j]), min(top[i], top[j])
                    top[j] = high + np.log1p(np.exp(low - high))
                    top[i] = -INF
                    break
        beam.scores[n], beam.context[n], beam.prefix[n] = top, new_context, new_prefix
        chosen.parents[n], chosen.tokens[n] = source, token


class Arcs(NamedTuple):
    """The best arcs of one utterance's frame to distinct new states, best first; each (max_states,).

    score: of the path. parent: the place of the old state. place: of the new state's context in the list of new contexts.
    """

    score: np.ndarray
    state: np.ndarray
    parent: np.ndarray
    token: np.ndarray
    place: np.ndarray


@njit(**FLAGS)
def _new_arcs(size):
    return Arcs(
        np.empty(size), np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    )


@njit(**FLAGS)
def _insert(score, state, parent, token, count, arcs):
    """Put an arc into its place among the first `count` arcs, and return the new count.

    Of two arcs to one state the better one stays. Arcs of equal score are ordered by state, lower first.
    """
    best, states, parents, tokens, _ = arcs
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


@njit(**FLAGS)
def _prune(n, log_probs, beam, graph, contexts, limits, arcs, new_context):
    """Fill `arcs` with utterance n's new states that stay; return the lowest score allowed, and how many states and contexts.

    A state has the number context * (S + 1) + graph state; graph state S is where utterances end. An arc with a token, or to
    S, is dropped if its score is more than `limits.beam` below the best old state's (without blank's log-probability for an
    arc to S, although its score includes that). Arcs of blank are never dropped. Of the new states the `max_states` best
    stay; of these the ones at most `beam` below the best; of these the ones of the `max_contexts` best contexts, which are
    written to `new_context` (C,).
    """
    context, scores, place, node = beam.context[n], beam.scores[n], beam.place[n], beam.node[n]
    nodes, size, threshold, count = len(graph.ends) + 1, len(arcs.score), scores.max() - limits.beam, 0
    for k in range(len(scores)):
        if scores[k] == -INF:
            continue
        old, now = context[place[k]], log_probs[n, place[k]]
        score = scores[k] + now[BLANK]
        count = _insert(score, old * nodes + node[k], k, BLANK, count, arcs)
        end = scores[k] + graph.scale * graph.ends[node[k]] if graph.ends[node[k]] > -INF else -INF
        if end >= threshold and end > -INF:
            count = _insert(end + now[BLANK], old * nodes + nodes - 1, k, BLANK, count, arcs)
        head = old % contexts.tail * contexts.base + 1
        for r in range(graph.reach_offsets[node[k]], graph.reach_offsets[node[k] + 1]):
            start = scores[k] + graph.scale * graph.reach_weights[r]
            reached = graph.reached[r]
            first, last = graph.offsets[reached], graph.offsets[reached + 1]
            labels, weights, after = graph.labels[first:last], graph.weights[first:last], graph.next_states[first:last]
            for a in range(len(labels)):
                label = labels[a]
                score = start + graph.scale * weights[a] + now[np.uint32(label)]  # unsigned: no test for an index below 0
                if score >= threshold and (count < size or score >= arcs.score[size - 1]):
                    count = _insert(score, (head + label) * nodes + after[a], k, label, count, arcs)
    best, states, parents, tokens, places = arcs
    kept, num_contexts = 0, 0
    for i in range(count):
        if best[i] < best[0] - limits.beam:
            break
        at = _find(states[i] // nodes, new_context, num_contexts)
        if at == len(new_context):
            continue
        if at == num_contexts:
            new_context[at] = states[i] // nodes
            num_contexts += 1
        best[kept], states[kept], parents[kept], tokens[kept] = best[i], states[i], parents[i], tokens[i]
        places[kept] = at
        kept += 1
    return threshold, kept, num_contexts


@njit(**FLAGS)
def _find(item, items, count):
    """Return the place of `item` among the first `count` items, or `count` if it is not there."""
    for i in range(count):
        if items[i] == item:
            return i
    return count


@njit(**FLAGS)
def graph_step(log_probs, state, decisions, compiled_graph, numbering, bounds):
    """Search one frame, not the last, in place: log_probs (N, C, V) of the contexts; the others are tuples of `beam_state`."""
    beam, chosen, graph = GraphState(*state), Chosen(*decisions), CompiledGraph(*compiled_graph)
    contexts, limits = Numbering(*numbering), Limits(*bounds)
    arcs, new_context = _new_arcs(limits.max_states), np.empty(beam.context.shape[1], np.int64)
    nodes = len(graph.ends) + 1
    for n in range(len(log_probs)):
        threshold, kept, num_contexts = _prune(n, log_probs, beam, graph, contexts, limits, arcs, new_context)
        if limits.log_semiring:
            arcs.score[:kept] = -INF
            for k in range(beam.scores.shape[1]):
                place = beam.place[n, k]
                source = beam.scores[n, k], beam.context[n, place], beam.node[n, k]
                _add_arcs(source, log_probs[n, place], graph, contexts, threshold, arcs.state[:kept], arcs.score)
        beam.scores[n] = -INF
        at = 0
        for i in range(kept):
            node = arcs.state[i] % nodes
            if node == nodes - 1:
                continue
            parent, token = arcs.parent[i], arcs.token[i]
            beam.scores[n, at], beam.node[n, at] = arcs.score[i], node
            chosen.parents[n, at], chosen.tokens[n, at] = parent, token
            chosen.taken[n, at] = log_probs[n, beam.place[n, parent], token]
            arcs.place[at] = arcs.place[i]
            at += 1
        beam.place[n, :at] = arcs.place[:at]
        beam.context[n, :num_contexts] = new_context[:num_contexts]


@njit(**FLAGS)
def graph_end(log_probs, state, compiled_graph, numbering, bounds, allow_partial):
    """Search the last frame: add the final weights to the scores; -inf for a state that may not end the utterance.

    If no state may end it and `allow_partial` is set, a state may if any of its arcs leads to a new state that stays.
    """
    beam, graph = GraphState(*state), CompiledGraph(*compiled_graph)
    contexts, limits = Numbering(*numbering), Limits(*bounds)
    arcs, new_context = _new_arcs(limits.max_states), np.empty(beam.context.shape[1], np.int64)
    nodes = len(graph.ends) + 1
    final = np.empty(beam.scores.shape[1])
    for n in range(len(log_probs)):
        scores, place, node = beam.scores[n], beam.place[n], beam.node[n]
        threshold, kept, _ = _prune(n, log_probs, beam, graph, contexts, limits, arcs, new_context)
        states = arcs.state[:kept]
        final[:] = -INF
        for k in range(len(final)):
            if scores[k] > -INF and graph.ends[node[k]] > -INF:
                end = scores[k] + graph.scale * graph.ends[node[k]]
                if end >= threshold and _find(beam.context[n, place[k]] * nodes + nodes - 1, states, kept) < kept:
                    final[k] = end
        if allow_partial and final.max() == -INF:
            totals = np.empty(kept)
            for k in range(len(final)):
                totals[:] = -INF
                source = scores[k], beam.context[n, place[k]], node[k]
                _add_arcs(source, log_probs[n, place[k]], graph, contexts, threshold, states, totals)
                if totals.max() > -INF:
                    final[k] = scores[k]
        beam.scores[n] = final


@njit(**FLAGS)
def _add_arcs(source, log_probs, graph, contexts, threshold, states, totals):
    """Add the scores of an old state's arcs to the `totals` of the new `states` that they lead to, as probabilities.

    source: the old state's score, context and graph state. The arcs are those that `_prune` does not drop.
    """
    score, context, node = source
    if score == -INF:
        return
    nodes, head, kept = len(graph.ends) + 1, context % contexts.tail * contexts.base + 1, len(states)
    at = _find(context * nodes + node, states, kept)
    if at < kept:
        totals[at] = np.logaddexp(totals[at], score + log_probs[BLANK])
    for r in range(graph.reach_offsets[node], graph.reach_offsets[node + 1]):
        reached = graph.reached[r]
        for a in range(graph.offsets[reached], graph.offsets[reached + 1]):
            label = graph.labels[a]
            after = score + graph.scale * graph.reach_weights[r] + graph.scale * graph.weights[a] + log_probs[label]
            if after >= threshold:
                at = _find((head + label) * nodes + graph.next_states[a], states, kept)
                if at < kept:
                    totals[at] = np.logaddexp(totals[at], after)
