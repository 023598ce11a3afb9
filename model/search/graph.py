"""Decoding graphs: which token sequences may be recognised, and the weight of each.

The search follows back-off arcs, which have no token, by a table. A large model without them would be many times larger.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from model.kernels.beam_state import CompiledGraph

import numpy as np

EPSILON = 0  # label of arcs without a token: blank's id, which no arc uses
MAX_EPSILONS = 100  # longest chain of such arcs
INF = np.inf


@dataclass
class Graph:
    """A weighted acceptor of token sequences; state 0 is its start. Weights are log-probabilities; the best path counts.

    offsets: (S + 1,) int64; the arcs of state s are offsets[s] .. offsets[s + 1] - 1.
    labels: (A,) int32, token ids, or `EPSILON`. next_states: (A,) int32. weights: (A,) float32.
    finals: (S,) float32, weight of ending in each state, -inf if no sequence may end there.
    """

    offsets: np.ndarray
    labels: np.ndarray
    next_states: np.ndarray
    weights: np.ndarray
    finals: np.ndarray

    def __post_init__(self) -> None:
        """Compile the arrays; ValueError if they are not a graph, or arcs without a token form a cycle."""
        states, arcs = len(self.finals), len(self.labels)
        if states < 1 or self.offsets.shape != (states + 1,) or not self.next_states.shape == self.weights.shape == (arcs,):
            raise ValueError("the lengths of the graph's arrays do not match")
        if self.offsets[0] != 0 or self.offsets[-1] != arcs or (np.diff(self.offsets) < 0).any():
            raise ValueError("the graph's offsets must rise from 0 to the number of arcs")
        if arcs and not (0 <= self.next_states.min() and self.next_states.max() < states and self.labels.min() >= 0):
            raise ValueError("the graph has arcs to missing states, or labels below 0")
        if not np.isfinite(self.weights).all() or not (self.finals < INF).all():
            raise ValueError("the graph's weights must be finite; final weights finite or -inf")
        self.compiled = self._compile()

    def _compile(self) -> CompiledGraph:
        epsilon = self.labels == EPSILON
        offsets = _before(epsilon)[self.offsets]
        next_states, weights = self.next_states[epsilon], self.weights[epsilon]
        source = reached = np.arange(len(self.finals))
        weight = np.zeros(len(source))
        levels: list[tuple[np.ndarray, ...]] = []
        while len(source):
            if len(levels) > MAX_EPSILONS:
                raise ValueError(f"the graph has a cycle or more than {MAX_EPSILONS} arcs without a token in a row")
            levels.append((source, reached, weight))
            counts = offsets[reached + 1] - offsets[reached]
            row = np.repeat(np.arange(len(reached)), counts)
            arc = np.arange(len(row)) - _before(counts)[:-1][row] + offsets[reached][row]
            source, reached, weight = source[row], next_states[arc], weight[row] + weights[arc]
        source, reached, weight = (np.concatenate(x) for x in zip(*levels, strict=True))
        order = np.argsort(source, kind="stable")
        ends = np.full(len(self.finals), -INF)
        np.maximum.at(ends, source, weight + self.finals[reached])
        reach = (_before(np.bincount(source)), reached[order].astype(np.int64), weight[order])
        labels, next_states, weights = (x[~epsilon] for x in (self.labels, self.next_states, self.weights))
        return CompiledGraph(*reach, _before(~epsilon)[self.offsets], labels, next_states, weights, ends, 1.0)


def _before(counts: np.ndarray) -> np.ndarray:
    """Return (n + 1,) int64: the sum of the first i of `counts` (n,), for i = 0 .. n."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


@functools.cache
def trivial_graph(vocab_size: int) -> Graph:
    """Return the graph of one state in which any token but blank (0) may follow any, with weight 0."""
    arcs = vocab_size - 1
    labels, zeros = np.arange(1, vocab_size, dtype=np.int32), np.zeros(arcs, np.float32)
    return Graph(np.array([0, arcs]), labels, np.zeros(arcs, np.int32), zeros, np.zeros(1, np.float32))
