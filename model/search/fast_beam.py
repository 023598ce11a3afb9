"""Fast beam search over a decoding graph: the best path, as k2's decoding streams find it.

A state is a context of `context_size` tokens together with a state of the graph; the default is the trivial graph, in which
any token may follow any. Per frame a state's arcs are blank, which stays in both, and every token that the graph allows,
which leads to the context that ends in it and adds the graph's weight. A state's score is that of its best arc (Viterbi,
float64), so following best arcs back from the best final state gives the best path of the lattice, which is the result.
With `log_semiring` a state's score is the sum over all its arcs, as probabilities: the forward score of the lattice's
alignments. Limits and the way back still go by the best arc. Then many unlikely alignments with a word outweigh a likelier one
without it.
k2's graphs have a final state, and every state that may end an utterance has an arc to it with the cost of blank. So pairs
(context, final) count among `max_states`, and an utterance may end only in a state whose arc to the final state survives the
pruning of the last frame, while that frame adds neither a token nor a score. The last frame is known only at the end, so
the newest frame is held back until another one comes, and `blank_skip` never leaves out the last one. k2 leaves the graph's
final weight out of the score; here it counts.
"""

from __future__ import annotations

from typing import Any

from model.kernels import compiled_on
from model.kernels.beam_state import Limits
from model.search.fast_beam_graph import GraphSteps
from model.search.fast_beam_k2 import decode_k2
from model.search.fast_beam_tensors import TensorSteps
from model.search.frames import Frames
from model.search.graph import Graph, trivial_graph
from model.search.hypothesis import BackPointers, Hypothesis, best_paths
from model.search.stream import Stream

import torch

BACKENDS = ("native", "k2")


class FastBeamStream(Stream):
    """Fast beam search over a batch. Unlike in the other searches, unknown is a token like any other.

    The n-best list has the best path to each state that may end the utterance, so long lists need wide limits; of paths
    with the same tokens, which a graph may have, only the best is listed.
    """

    def __init__(
        self,
        model: Any,
        *,
        graph: Graph | None = None,
        scale: float = 1.0,
        beam: float = 4.0,
        max_contexts: int = 4,
        max_states: int = 8,
        allow_partial: bool = False,
        log_semiring: bool = False,
        backend: str = "native",
        temperature: float = 1.0,
        blank_penalty: float = 0.0,
        blank_skip: float = 0.0,
    ) -> None:
        """Prepare the search; `model`, `temperature`, `blank_penalty` and `blank_skip` as in `Stream`.

        graph: the token sequences that may be recognised, over the model's token ids; None: all.
        scale: multiplies the graph's weights, 0 or more.
        beam: arcs and states further than this below the best of their frame are dropped (log-probability).
        max_contexts, max_states: contexts, and pairs of context and graph state, kept per utterance and frame.
        allow_partial: if no state may end the utterance, take the best state anyway; else the result is empty.
        log_semiring: score a state by the sum over its arcs instead of by the best one.
        backend: "native"; "k2" takes whole utterances only, no graph and no sums, and needs k2.
        Raises ValueError if an option is out of its range or the graph has other tokens than the model; ImportError if a graph
        is given and numba is not installed.
        """
        if not beam > 0:
            raise ValueError(f"beam must be above 0, got {beam}")
        if min(max_contexts, max_states) < 1:
            raise ValueError(f"max_contexts and max_states must be 1 or more, got {max_contexts} and {max_states}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        if backend == "k2" and blank_skip:
            raise ValueError("backend k2 leaves out no frames; use backend native, or blank_skip 0")
        if backend == "k2" and log_semiring:
            raise ValueError("backend k2 takes the best alignment; use backend native, or log_semiring False")
        if backend == "k2" and graph is not None:
            raise ValueError("backend k2 takes no graph; use backend native")
        if not 0 <= scale < torch.inf:
            raise ValueError(f"scale must be 0 or more, got {scale}")
        super().__init__(model, temperature, blank_penalty, blank_skip)
        self.backend, self.allow_partial = backend, allow_partial
        self.limits = Limits(float(beam), max_contexts, max_states, log_semiring)
        self._steps: GraphSteps | TensorSteps
        if graph is None and not compiled_on(self.device):
            self._steps = TensorSteps(self.contexts, self.blank, self.limits, self.device)
        else:
            graph = graph or trivial_graph(int(model.vocab_size))
            self._steps = GraphSteps(self.contexts, self.blank, self.limits, graph, float(scale), int(model.vocab_size))

    def start(self, num_utts: int) -> None:
        """Do what `Stream.start` does; raise ValueError if the backend is "k2"."""
        if self.backend != "native":
            raise ValueError(f"backend {self.backend!r} takes whole utterances only, no chunks")
        super().start(num_utts)

    def decode(self, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor) -> list[Hypothesis]:
        """Do what `Stream.decode` does, with either backend; raise ImportError if k2 is needed and not installed."""
        if self.backend == "native":
            return super().decode(encoder_out, encoder_out_lens)
        limits = (self.limits.beam, self.limits.max_contexts, self.limits.max_states, self.allow_partial)
        return decode_k2(self.model, self.joint, self.contexts, encoder_out, encoder_out_lens, limits)

    def _begin(self, num_utts: int) -> tuple[list[torch.Tensor], int]:
        self._held = torch.empty(0)  # (N, C), the newest frame of each utterance
        self._has_held = torch.zeros(num_utts, dtype=torch.bool)  # whether there is one
        # k2's streams start from a context of blanks; the other searches start from "no token yet".
        rows = self._steps.begin(self.contexts.number([self.blank] * self.contexts.size), num_utts, self.device)
        return rows, rows[1].shape[1]

    def _usable(self, encoder_out: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the frames held back before the new ones, and hold back the last frame of each utterance."""
        had = self._has_held
        if had.any():
            # In an utterance without a frame held back, the chunk begins one frame later.
            encoder_out = torch.cat([self._held.unsqueeze(1), encoder_out], dim=1)
            if not had.all():
                length = encoder_out.shape[1]
                index = (torch.arange(length) + (~had).unsqueeze(1)).clamp_(max=length - 1).to(encoder_out.device)
                encoder_out = encoder_out.gather(1, index.unsqueeze(2).expand_as(encoder_out))
            lens = lens + had
        self._has_held = lens > 0
        usable = (lens - 1).clamp_(min=0)
        if self._has_held.any():
            device = encoder_out.device
            self._held = encoder_out[torch.arange(len(lens), device=device), usable.to(device)]
        return encoder_out, usable

    def _walk(self, frames: Frames, rows: list[torch.Tensor]) -> BackPointers:
        steps = self._steps
        near = [x.to(steps.device) for x in rows]
        back = BackPointers(len(frames), frames.num_utts, near[1].shape[1], self.blank, steps.device)
        context, state, chosen = near[0], steps.view(near), steps.view([back.parents, back.tokens, back.log_probs])
        for t, n in enumerate(frames.active):
            dec = self.contexts.decode(context[:n].to(self.device))
            log_probs = self.joint.log_probs(frames.enc[t, :n].unsqueeze(1), dec)
            steps.step(log_probs, tuple(x[:n] for x in state), tuple(x[t, :n] for x in chosen))
        for row, new in zip(rows, near, strict=True):
            if row is not new:
                row.copy_(new)
        return back

    @torch.no_grad()
    def results(self, final: bool = True) -> list[Hypothesis]:
        """Return what `Stream.results` returns; with `final` only states that may end the utterance count."""
        scores = self._rows[1].clone()
        if final and self._has_held.any():
            rows = self._has_held.nonzero().squeeze(1).to(self.device)
            scores[rows] = self._end(rows)
        paths, total = self._history.trace(), scores.cpu().numpy()
        results = best_paths(paths, paths.tokens != self.blank, total, total)
        for result in results:
            best: dict[tuple[int, ...], Hypothesis] = {}
            for hypothesis in result.nbest or []:
                best.setdefault(tuple(hypothesis.tokens), hypothesis)
            result.nbest = list(best.values())
        return results

    def _end(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the scores (len(rows), K) of the utterances `rows` after the frame held back, their last one."""
        state = [x.index_select(0, rows) for x in self._rows]
        enc = self.model.joiner.encoder_proj(self._held.index_select(0, rows)).float()
        log_probs = self.joint.log_probs(enc.unsqueeze(1), self.contexts.decode(state[0]))
        return self._steps.end(log_probs, state, self.allow_partial).to(self.device)
