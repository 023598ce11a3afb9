"""What a frame of a beam search reads and writes, for N utterances of K hypotheses over V tokens.

The compiled steps take plain tuples of arrays: numba takes ten times as long to unpack a named tuple.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Numbering(NamedTuple):
    """How contexts are numbered: base = vocab_size + 1; context % tail drops the oldest token."""

    base: int
    tail: int

    def extend(self, contexts: Any, tokens: Any) -> Any:
        """Return the numbers of the contexts that `tokens` lead to."""
        return contexts % self.tail * self.base + tokens + 1


class Chosen(NamedTuple):
    """The decisions of one frame (N, K), written in place.

    parents, tokens: int64, the old hypothesis and the token of each new one. taken: the token's log-probability.
    """

    parents: Any
    tokens: Any
    taken: Any


class MergeState(NamedTuple):
    """The hypotheses of modified beam search (N, K), changed in place.

    context, prefix: int64, the number of the last tokens and the hash of all. scores: float64, -inf in an empty place.
    """

    context: Any
    prefix: Any
    scores: Any


class MergeIds(NamedTuple):
    """blank and unk leave the tokens as they are; base and tail: see `Numbering`; multiplier: of the hash."""

    blank: int
    unk: int
    base: int
    tail: int
    multiplier: int


class Limits(NamedTuple):
    """How much a frame of fast beam search keeps, and how it scores; see `model.search.fast_beam.FastBeamStream`."""

    beam: float
    max_contexts: int
    max_states: int
    log_semiring: bool = False


class GraphState(NamedTuple):
    """The states of fast beam search over a graph, in C contexts; changed in place.

    context: (N, C) int64, the numbers of the contexts. scores: (N, K) float64, -inf if there is no state.
    place, node: (N, K) int64, the place of each state's context among the C, and its graph state.
    """

    context: Any
    scores: Any
    place: Any
    node: Any


class CompiledGraph(NamedTuple):
    """A decoding graph as the search reads it: S states, A arcs with a token, R pairs of a state and one reached from it.

    State s reaches without a token reached[reach_offsets[s]:reach_offsets[s + 1]], itself included, at the weights in
    reach_weights (R,). Its arcs with a token are offsets[s] .. offsets[s + 1] - 1 of labels, next_states, weights (A,). Both
    offsets: (S + 1,) int64. ends: (S,), best weight of ending in a state reached, or -inf. scale: multiplies all weights.
    """

    reach_offsets: Any
    reached: Any
    reach_weights: Any
    offsets: Any
    labels: Any
    next_states: Any
    weights: Any
    ends: Any
    scale: float
