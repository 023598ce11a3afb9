"""The frames of fast beam search over a graph, compiled: the inner loops run on the CPU, the model on its device."""

from __future__ import annotations

from typing import Any

from model.kernels import numba_available
from model.kernels.beam_state import Limits
from model.search.contexts import Contexts
from model.search.graph import EPSILON, Graph

import torch


class GraphSteps:
    """The steps of `FastBeamStream` over a graph. Rows are the arrays of `GraphState`."""

    device = torch.device("cpu")

    def __init__(self, contexts: Contexts, blank: int, limits: Limits, graph: Graph, scale: float, vocab_size: int) -> None:
        """Prepare the steps of a search with these contexts, blank, limits and vocabulary; `scale` multiplies the weights.

        Raises ValueError if the graph has other tokens than the model, ImportError if numba is not installed.
        """
        if blank != EPSILON:
            raise ValueError(f"a graph needs a model whose blank is token {EPSILON}, not {blank}")
        if len(graph.labels) and graph.labels.max() >= vocab_size:
            raise ValueError(f"the graph has token {graph.labels.max()}, the model {vocab_size} tokens")
        nodes = len(graph.finals) + 1
        if nodes * contexts.base**contexts.size >= 2**62:
            raise ValueError(f"{nodes - 1} graph states and {contexts.size} tokens of context are too many to number")
        if not numba_available():
            raise ImportError("fast beam search over a graph needs numba, see requirements.txt")
        from model.kernels.beam import graph_end, graph_step

        self._step, self._end = graph_step, graph_end
        self._limits = limits
        self._search = tuple(graph.compiled._replace(scale=scale)), tuple(contexts.numbering), tuple(limits)

    def begin(self, start: int, num_utts: int, device: torch.device) -> list[torch.Tensor]:
        """Return the rows of `num_utts` utterances with one state each: context number `start`, graph state 0."""
        context = torch.full((num_utts, min(self._limits.max_contexts, self._limits.max_states)), start, device=device)
        shape = (num_utts, self._limits.max_states)
        scores = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        scores[:, 0] = 0
        place, node = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        return [context, scores, place, node]

    def view(self, tensors: list[torch.Tensor]) -> list[Any]:
        """Return what `step` takes: the tensors' memory as arrays."""
        return [x.numpy() for x in tensors]

    def step(self, log_probs: torch.Tensor, state: tuple[Any, ...], chosen: tuple[Any, ...]) -> None:
        """Search one frame, not the last; log_probs: (N, C, V)."""
        self._step(log_probs.cpu().numpy(), state, chosen, *self._search)

    def end(self, log_probs: torch.Tensor, rows: list[torch.Tensor], allow_partial: bool) -> torch.Tensor:
        """Return the scores (N, K) after the last frame, -inf for a state that may not end; `rows` may be overwritten."""
        rows = [x.cpu() for x in rows]
        self._end(log_probs.cpu().numpy(), tuple(self.view(rows)), *self._search, allow_partial)
        return rows[1]
