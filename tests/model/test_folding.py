"""A folded model gives the same results, bit by bit where the same code runs, and takes no gradients."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor

from local.config import load_config
from model.build import build_model
from model.folding import fold
from model.kernels import numba_available, policy
from model.kernels.matmul import CHUNK_ROWS
from model.search import get_search
from model.transducer import Transducer

import numpy as np
import pytest
import torch

SIZES = ["num_layers=2", "d_model=24", "rnn_hidden_size=40", "dim_feedforward=56"]
DIMENSIONS = ["model.decoder.dim=16", "model.joiner.dim=16", *(f"model.encoder.{size}" for size in SIZES)]
CHUNK = 13  # feature frames, of which 5 belong to the next chunk, too


def models(*overrides: str) -> tuple[Transducer, Transducer]:
    """Return a small model in evaluation with random parameters, and the same one folded."""
    torch.manual_seed(0)
    plain = build_model(load_config(None, [*DIMENSIONS, *overrides]), 20).eval()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    folded = copy.deepcopy(plain)
    fold(folded)
    return plain, folded


def by_chunks(model: Transducer, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the encoder's output for x (N, T, F), in chunks, and its last states."""
    out, states = [], None
    for t in range(0, x.size(1) - CHUNK + 1, CHUNK - 5):
        y, _, states = model.encoder(x[:, t : t + CHUNK], torch.full((len(x),), CHUNK), states)
        out.append(y)
    assert states is not None
    return [torch.cat(out, 1), *states]


@torch.no_grad()
@pytest.mark.parametrize("rnn", ["lstm", "gru"])
def test_equal_bits(rnn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, folded = models(f"model.encoder.rnn={rnn}", *(["model.encoder.rnn_hidden_size=24"] if rnn == "gru" else []))
    monkeypatch.setattr(policy, "compiled", False)
    x, lens = torch.randn(2, 61, 80), torch.tensor([61, 50])
    outputs = [model.encoder(x, lens) for model in (plain, folded)]
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(outputs[0][2], outputs[1][2], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(by_chunks(plain, x), by_chunks(folded, x), strict=True))
    y = torch.tensor([[-1, 0], [5, 7]])
    assert torch.equal(plain.decoder(y), folded.decoder(y))
    for method in ("greedy_search", "modified_beam_search"):
        found = [get_search(method)(m, o[0], o[1]) for m, o in zip((plain, folded), outputs, strict=True)]
        assert [(h.tokens, h.score) for h in found[0]] == [(h.tokens, h.score) for h in found[1]]


@torch.no_grad()
@pytest.mark.skipif(not numba_available(), reason="numba is not installed")
@pytest.mark.parametrize("overrides", [(), ("model.encoder.rnn_hidden_size=24",)], ids=["projection", "no projection"])
@pytest.mark.parametrize("streams", [1, 3, 5, CHUNK_ROWS // 2 + 1])
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_chunks(streams: int, threads: int, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames of each stream: 2, 6 and 10 rows, which the kernel multiplies in two ways; 34 take the layers' own code."""
    from model.kernels import chunk

    monkeypatch.setattr(chunk, "PART", 1)
    monkeypatch.setattr(chunk, "SPINS", 10)
    plain, folded = models(*overrides)
    calls, layers = [], chunk.layers
    monkeypatch.setattr(chunk, "layers", lambda *args: calls.append(args) or layers(*args))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(streams, 45, 80)
        expected, got = by_chunks(plain.double(), x.double()), by_chunks(folded, x)
    finally:
        torch.set_num_threads(before)
    assert len(calls) == (5 if 2 * streams <= CHUNK_ROWS else 0)
    for a, b in zip(expected, got, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= 3e-6 * float(a.abs().max())


@torch.no_grad()
@pytest.mark.skipif(not numba_available(), reason="numba is not installed")
def test_streams_in_several_python_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers alone: old versions of torch round the convolutions differently with other numbers of threads."""
    from model.kernels import chunk

    monkeypatch.setattr(chunk, "PART", 1)
    _, folded = models()
    x = torch.randn(50, 1, 24)

    def work(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        found, states = [], folded.encoder.initial_states(1, x)
        with torch.no_grad():
            for part in x.split(2):
                out, states = folded.encoder.encoder(part, states, 1.0)
                found.append(out)
        return [torch.cat(found), *states]

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(work, [3] * 6))
        expected = work(1)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


@pytest.mark.skipif(not numba_available(), reason="numba is not installed")
def test_a_signal_before_a_part_begins() -> None:
    from model.kernels import chunk

    left = []

    def work(part: int, parts: int, counter: np.ndarray) -> None:
        if part == 0:
            raise KeyboardInterrupt
        chunk._meet(counter, parts)
        left.append(part)

    with pytest.raises(KeyboardInterrupt):
        chunk._run_meeting(2, work)
    for _ in range(1000):  # the other thread does not wait for ever
        if left:
            break
        time.sleep(0.01)
    assert left == [1]


def test_what_folding_changes() -> None:
    plain, folded = models()
    scales = [any("scale" in name for name, _ in model.named_parameters()) for model in (plain, folded)]
    assert scales == [True, False]
    linear = folded.joiner.output_linear
    assert linear.get_weight() is linear.weight and linear.get_bias() is linear.bias
    assert not any(p.requires_grad for p in folded.parameters())
    weights = {name: p.data_ptr() for name, p in folded.named_parameters()}
    fold(folded)
    assert weights == {name: p.data_ptr() for name, p in folded.named_parameters()}
    with pytest.raises(RuntimeError):
        plain.load_state_dict(folded.state_dict())


@torch.no_grad()
def test_the_whole_utterance_and_the_other_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long inputs, other norms and gradients take the layers' own code."""
    for overrides in ([], ["model.encoder.norm=layer"], ["model.encoder.activation=relu"]):
        plain, folded = models(*overrides)
        x, lens = torch.randn(2, 90, 80), torch.tensor([90, 90])
        assert torch.equal(plain.encoder(x, lens)[0], folded.encoder(x, lens)[0])
        torch.testing.assert_close(plain.encoder(x[:, :13], lens)[0], folded.encoder(x[:, :13], lens)[0], rtol=1e-5, atol=1e-6)
