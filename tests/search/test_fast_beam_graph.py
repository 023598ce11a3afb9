"""Fast beam search over graphs against a plain one over dictionaries, brute force, and k2."""

from __future__ import annotations

import itertools
import math
from typing import Any

from model.search import Hypothesis, get_search, get_stream
from model.search.graph import Graph, trivial_graph
from model.transducer import Transducer

import numpy as np
import pytest
import torch
from toy import log_probs_after, toy_batch, toy_model

Arcs = list[list[tuple[int, int, float]]]
LIMITS = [(4.0, 4, 8), (1.0, 4, 8), (20.0, 8, 64), (8.0, 8, 8), (4.0, 4, 2), (30.0, 3, 5), (2.0, 1, 1), (6.0, 16, 20)]


WIDE = {"beam": 20.0, "max_contexts": 8, "max_states": 64}


def search(model: Transducer, out: torch.Tensor, lens: torch.Tensor, **options: Any) -> list[Hypothesis]:
    return get_search("fast_beam_search")(model, out, lens, **{**WIDE, **options})


def graph_of(arcs: Arcs, finals: list[float]) -> Graph:
    """Return the graph of arcs (label, next state, weight), given for each state."""
    flat = [arc for row in arcs for arc in row]
    labels, next_states = (np.array([arc[i] for arc in flat], np.int32) for i in range(2))
    weights = np.array([arc[2] for arc in flat], np.float32)
    return Graph(np.cumsum([0, *map(len, arcs)]), labels, next_states, weights, np.array(finals, np.float32))


def random_graph(seed: int, vocab_size: int, num_states: int = 6) -> Graph:
    """Return a graph with parallel arcs, loops and chains of arcs without a token; about half of the states are final."""
    generator = np.random.default_rng(seed)
    arcs: Arcs = []
    for state in range(num_states):
        row = []
        for _ in range(generator.integers(1, 2 * vocab_size)):
            label, after = generator.integers(1, vocab_size), generator.integers(num_states)
            row.append((int(label), int(after), -float(generator.exponential())))
        for after in range(state + 1, num_states):
            if generator.random() < 0.3:
                row.append((0, after, -float(generator.exponential(0.5))))
        arcs.append(row)
    finals = [-float(generator.exponential()) if generator.random() < 0.5 else -math.inf for _ in range(num_states)]
    return graph_of(arcs, finals)


def without_epsilon(graph: Graph) -> tuple[Arcs, list[list[float]]]:
    """Return, for each state, the arcs with a token and the final weights, also those after arcs without a token."""
    arcs: Arcs = [[] for _ in graph.finals]
    finals: list[list[float]] = [[] for _ in graph.finals]
    for state in range(len(arcs)):
        waiting = [(state, 0.0)]
        while waiting:
            reached, before = waiting.pop()
            if graph.finals[reached] > -math.inf:
                finals[state].append(before + float(graph.finals[reached]))
            for i in range(graph.offsets[reached], graph.offsets[reached + 1]):
                label, after, weight = int(graph.labels[i]), int(graph.next_states[i]), before + float(graph.weights[i])
                if label == 0:
                    waiting.append((after, weight))
                else:
                    arcs[state].append((label, after, weight))
    return arcs, finals


class Table:
    """The model's log-probabilities at each frame of one utterance after each context, each computed once."""

    def __init__(self, model: Transducer, frames: torch.Tensor) -> None:
        self.model, self.frames, self.known = model, frames, {}

    def __call__(self, t: int, context: tuple[int, ...]) -> list[float]:
        if (t, context) not in self.known:
            self.known[t, context] = log_probs_after(self.model, self.frames[t], list(context)).tolist()
        return self.known[t, context]


@torch.no_grad()
def plain_search(
    model: Transducer,
    frames: torch.Tensor,
    graph: Graph,
    beam: float,
    limits: tuple[int, int],
    scale: float,
    partial: bool,
    sums: bool,
) -> tuple[list[int], list[int], float]:
    """Search with dictionaries; limits: contexts and states kept. A state is (context, graph state), -1 for the final one.

    sums: a state's score is the sum over its arcs, in the log semiring.
    """
    (arcs, finals), table = without_epsilon(graph), Table(model, frames)
    paths = {((0,) * model.context_size, 0): (0.0, [], [])}
    results = list(paths.values())
    for t in range(len(frames)):
        taken = []  # old state, new state, score, token, final weight
        best_old = max(path[0] for path in paths.values())
        for old, (score, _, _) in paths.items():
            context, node = old
            log_probs = table(t, context)
            taken.append((old, old, score + log_probs[0], 0, None))
            for weight in finals[node]:
                if score + scale * weight >= best_old - beam:
                    taken.append((old, (context, -1), score + scale * weight + log_probs[0], 0, scale * weight))
            for label, after, weight in arcs[node]:
                reached = score + scale * weight + log_probs[label]
                if reached >= best_old - beam:
                    taken.append((old, ((*context, label)[1:], after), reached, label, None))
        best: dict[Any, float] = {}
        for _, new, score, _, _ in taken:
            best[new] = max(best.get(new, -math.inf), score)
        ranked = sorted((new for new in best if best[new] >= max(best.values()) - beam), key=lambda new: -best[new])
        ranked = ranked[: limits[1]]
        contexts = list(dict.fromkeys(context for context, _ in ranked))[: limits[0]]
        stay = {new for new in ranked if new[0] in contexts}
        if t + 1 == len(frames):
            ends = [(paths[old], end) for old, new, _, _, end in taken if new in stay and end is not None]
            if not ends and partial:
                ends = [(paths[old], 0.0) for old, new, _, _, _ in taken if new in stay]
            results = [(score + end, tokens, times) for (score, tokens, times), end in ends]
            break
        following: dict[Any, tuple[float, list[int], list[int]]] = {}
        for old, new, score, token, end in taken:
            if new in stay and end is None and score > following.get(new, (-math.inf,))[0]:
                _, tokens, times = paths[old]
                following[new] = (score, tokens + [token] * (token > 0), times + [t] * (token > 0))
        if sums:
            for new, (_, tokens, times) in following.items():
                into = [score for _, other, score, _, _ in taken if other == new]
                following[new] = (float(np.logaddexp.reduce(into)), tokens, times)
        paths = following
    score, tokens, times = max(results, key=lambda path: path[0], default=(-math.inf, [], []))
    return tokens, times, score


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_plain_search(partial: bool, sums: bool) -> None:
    empty = 0
    for seed, (beam, max_contexts, max_states) in enumerate(LIMITS, 10 * partial):
        vocab_size = 4 + 4 * (seed % 3)
        model, graph = toy_model(seed, vocab_size, 1 + seed % 3, 0.5 + seed % 2), random_graph(seed, vocab_size)
        out, lens = toy_batch(seed, num_utts=3, max_frames=12, min_frames=1)
        scale = (1.0, 0.3)[seed % 2]
        limits = {"beam": beam, "max_contexts": max_contexts, "max_states": max_states}
        results = search(model, out, lens, graph=graph, scale=scale, allow_partial=partial, log_semiring=sums, **limits)
        for result, frames, length in zip(results, out, lens.tolist(), strict=True):
            kept = (max_contexts, max_states)
            tokens, times, score = plain_search(model, frames[:length], graph, beam, kept, scale, partial, sums)
            assert (result.tokens, result.times) == (tokens, times)
            assert result.score == pytest.approx(score, abs=1e-4)
            empty += score == -math.inf
    assert (empty == 0) if partial else (0 < empty < 20)


@torch.no_grad()
def test_wide_beam_is_the_best_path() -> None:
    """Without pruning, the result is the likeliest alignment that the graph accepts, of all frames but the last."""
    for seed in range(5):
        model, graph = toy_model(seed, vocab_size=4, sharpness=0.5), random_graph(seed, 4, num_states=4)
        arcs, finals = without_epsilon(graph)
        out, _ = toy_batch(seed, num_utts=1, max_frames=5)
        best, sequence, table = -math.inf, [], Table(model, out[0])
        for symbols in itertools.product(range(4), repeat=4):
            states, tokens, score = {0: 0.0}, [0, 0], 0.0
            for t, symbol in enumerate(symbols):
                score += table(t, tuple(tokens[-2:]))[symbol]
                if symbol:
                    tokens.append(symbol)
                    following: dict[int, float] = {}
                    for state, weight in states.items():
                        for label, after, more in arcs[state]:
                            if label == symbol:
                                following[after] = max(following.get(after, -math.inf), weight + more)
                    states = following
            score += max((weight + end for state, weight in states.items() for end in finals[state]), default=-math.inf)
            if score > best:
                best, sequence = score, tokens[2:]
        wide = {"beam": 1e3, "max_contexts": 99, "max_states": 999}
        result = search(model, out, torch.tensor([5]), graph=graph, **wide)[0]
        assert result.tokens == sequence
        assert result.score == pytest.approx(best, abs=1e-4)


def same(ours: Hypothesis, others: Hypothesis) -> bool:
    return (ours.tokens, ours.times) == (others.tokens, others.times) and ours.score == pytest.approx(others.score, abs=1e-4)


def test_alone_and_in_chunks_as_in_the_batch() -> None:
    model, graph = toy_model(7), random_graph(7, 12)
    out, lens = toy_batch(7, num_utts=12, max_frames=25)
    batch = search(model, out, lens, graph=graph, max_states=16)
    assert sum(len(h.tokens) for h in batch) > 10
    stream = get_stream("fast_beam_search")(model, graph=graph, **{**WIDE, "max_states": 16})
    stream.start(len(lens))
    for first in range(0, 25, 4):
        chunk = out[:, first : first + 4]
        stream.advance(chunk, (lens - first).clamp(0, chunk.shape[1]))
    for n, (together, by_chunks) in enumerate(zip(batch, stream.results(), strict=True)):
        alone = search(model, out[n : n + 1, : int(lens[n])], lens[n : n + 1], graph=graph, max_states=16)[0]
        assert same(alone, together) and same(by_chunks, together)


def test_nbest_has_each_sequence_once_and_the_graph_accepts_it() -> None:
    model, graph = toy_model(1, sharpness=0.5), random_graph(1, 12)
    arcs, finals = without_epsilon(graph)
    out, lens = toy_batch(1, num_utts=12)
    told = 0
    for result in search(model, out, lens, graph=graph):
        sequences = [tuple(h.tokens) for h in result.nbest or []]
        assert len(set(sequences)) == len(sequences)
        for tokens in sequences:
            states = {0}
            for token in tokens:
                states = {after for state in states for label, after, _ in arcs[state] if label == token}
            assert any(finals[state] for state in states)
        told += len(sequences)
    assert told > 12


def test_scale() -> None:
    """The scale multiplies weights; with 0 the graph still restricts the sequences."""
    model, graph = toy_model(4), random_graph(4, 12)
    out, lens = toy_batch(4)
    doubled = Graph(graph.offsets, graph.labels, graph.next_states, 2 * graph.weights, 2 * graph.finals)
    ends = np.where(graph.finals > -np.inf, 0, -np.inf)
    weightless = Graph(graph.offsets, graph.labels, graph.next_states, 0 * graph.weights, ends)
    for scale, other in ((2.0, doubled), (0.0, weightless)):
        scaled = search(model, out, lens, graph=graph, scale=scale)
        for ours, others in zip(scaled, search(model, out, lens, graph=other), strict=True):
            assert same(ours, others)


def test_nothing_in_nothing_out() -> None:
    model, graph = toy_model(0), trivial_graph(12)
    for num_utts, frames in ((2, 3), (2, 0), (0, 3)):
        lens = torch.zeros(num_utts, dtype=torch.int64)
        results = search(model, torch.randn(num_utts, frames, 16), lens, graph=graph)
        assert [(r.tokens, r.times, r.score) for r in results] == [([], [], 0.0)] * num_utts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0.0}, "beam"),
        ({"max_states": 0}, "max_states"),
        ({"scale": -1.0}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"graph": trivial_graph(13)}, "token 12, the model 12 tokens"),
    ],
)
def test_impossible_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(toy_model(0), *toy_batch(0), **{"graph": trivial_graph(12), **options})


def test_arrays_that_are_not_a_graph() -> None:
    with pytest.raises(ValueError, match="cycle"):
        graph_of([[(0, 1, 0.0)], [(0, 0, 0.0)]], [0.0, 0.0])
    with pytest.raises(ValueError, match="missing states"):
        graph_of([[(1, 2, 0.0)], []], [0.0, 0.0])
    with pytest.raises(ValueError, match="labels below 0"):
        graph_of([[(-1, 0, 0.0)]], [0.0])
    with pytest.raises(ValueError, match="finite"):
        graph_of([[(1, 0, math.nan)]], [0.0])
    with pytest.raises(ValueError, match="finite"):
        graph_of([[(1, 0, 0.0)]], [math.inf])
    with pytest.raises(ValueError, match="offsets"):
        Graph(np.array([0, 2, 1]), *(np.zeros(1, t) for t in (np.int32, np.int32, np.float32)), np.zeros(2))
    with pytest.raises(ValueError, match="lengths"):
        graph_of([], [0.0])


@torch.no_grad()
def by_k2(
    model: Transducer, out: torch.Tensor, lens: list[int], graph: Graph, limits: tuple[float, int, int], partial: bool
) -> list[Hypothesis]:
    """Search with k2's decoding streams over the same arcs.

    k2 leaves out the last frame's scores, which include the final weights; an attribute of the arcs adds these again.
    """
    import k2

    arcs, finals = without_epsilon(graph)
    lines: list[str] = []
    for state, row in enumerate(arcs):
        lines += [f"{state} {after} {label} {weight:.9g}" for label, after, weight in row]
        lines += [f"{state} {len(arcs)} -1 {weight:.9g}" for weight in finals[state]]
    fsa = k2.Fsa.from_str("\n".join([*lines, str(len(arcs))]))
    fsa.end = torch.where(fsa.labels == -1, fsa.scores, torch.zeros_like(fsa.scores))
    config = k2.RnntDecodingConfig(
        vocab_size=model.vocab_size,
        decoder_history_len=model.context_size,
        beam=limits[0],
        max_contexts=limits[1],
        max_states=limits[2],
    )
    streams = k2.RnntDecodingStreams([k2.RnntDecodingStream(fsa) for _ in lens], config)
    for t in range(max(lens)):
        shape, contexts = streams.get_contexts()
        frames = out[:, t].index_select(0, shape.row_ids(1).to(torch.int64))
        decoder_out = model.decoder(contexts.to(torch.int64), need_pad=False)[:, 0]
        streams.advance(model.joiner(frames, decoder_out).log_softmax(-1))
    streams.terminate_and_flush_to_streams()
    lattice = streams.format_output(lens, allow_partial=partial)
    lattice.scores = lattice.scores + torch.where(lattice.labels == -1, lattice.end, torch.zeros_like(lattice.end))
    best = k2.shortest_path(lattice, use_double_scores=True)
    scores = best.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
    labels, splits = best.labels.tolist(), best.arcs.shape().remove_axis(1).row_splits(1).tolist()
    results = []
    for begin, end, score in zip(splits, splits[1:], scores, strict=False):
        times = [t for t, label in enumerate(labels[begin:end]) if label > 0]
        results.append(Hypothesis([labels[begin + t] for t in times], times, score))
    return results


@pytest.mark.k2
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("vocab_size", [4, 12, 40])
def test_as_k2(vocab_size: int, partial: bool) -> None:
    pytest.importorskip("k2")
    cases, wrong = 0, []
    for seed, limits in enumerate(LIMITS):
        for context_size, sharpness in ((1, 2.0), (2, 0.5)):
            model = toy_model(seed, vocab_size, context_size, sharpness)
            graph = random_graph(seed + 100 * context_size, vocab_size)
            out, lens = toy_batch(seed, num_utts=4, min_frames=1)
            options: dict[str, Any] = dict(zip(("beam", "max_contexts", "max_states"), limits, strict=True))
            native = search(model, out, lens, graph=graph, allow_partial=partial, **options)
            for ours, k2s in zip(native, by_k2(model, out, lens.tolist(), graph, limits, partial), strict=True):
                cases += 1
                if not same(ours, k2s):
                    wrong.append(f"{options} seed {seed}: {ours} instead of {k2s}")
    assert cases == 64
    assert len(wrong) <= 0.01 * cases, f"{len(wrong)}\n" + "\n".join(wrong[:5])
