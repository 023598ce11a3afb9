"""The memory plan: the fitted plane foretells passes, the plan keeps to the memory, probes leave no trace."""

from __future__ import annotations

import itertools
import json
import math
import platform
import subprocess
import sys
from typing import Any

from local.config import load_config
from local.data.batch import Batch
from local.training.memory_plan import Plane, fit_plane, plan, round_down
from local.training.memory_probe import Lengths, Shape, bytes_of_pass, probe, without_side_effects
from model.build import build_model
from tests.common.test_processes import SMALL
from tests.conftest import ROOT

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

CPU = torch.device("cpu")
MODEL = ["model.encoder.num_layers=2", "model.encoder.d_model=64", "model.encoder.rnn_hidden_size=64",
         "model.encoder.dim_feedforward=128", "model.decoder.dim=64", "model.joiner.dim=64"]  # fmt: skip

# ---- the plane ----

PROGRAM = """
import json, sys, torch
from local.config import load_config
from local.common.allocator import tune_memory
from local.training.memory_plan import fit_plane
from local.training.memory_probe import Lengths, Shape, bytes_of_pass, probe, without_side_effects
from model.build import build_model
torch.set_num_threads(1)
tune_memory()
model, cpu = build_model(load_config(None, sys.argv[1:]), 50), torch.device("cpu")
def losses_of(b):
    return model(b.inputs, b.input_lens, b.tokens, b.token_lens, warmup=2.0, monitor=True)
def measure(shape):
    return bytes_of_pass(shape, model, losses_of, 0.5, cpu)
with without_side_effects(model, cpu):
    passes = probe(measure, Lengths(8.0, 1e4, 30), 4e9)
    plane = fit_plane(passes)
    for shape in (Shape(40, 400, 10), Shape(11, 700, 60), Shape(25, 1000, 30)):
        print(json.dumps([plane.predict(shape.seconds, shape.tokens), measure(shape), plane.per_second, len(passes)]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere freed memory may stay with the process")
def test_the_plane_predicts_unseen_passes() -> None:
    """Larger ones than were measured, with other lengths and tokens; in a program of its own, as training is."""
    out = subprocess.run([sys.executable, "-c", PROGRAM, *MODEL], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for predicted, measured, per_second, count in map(json.loads, out.splitlines()):
        assert measured > 50e6 and per_second > 0 and 5 <= count <= 9
        assert predicted == pytest.approx(measured, rel=0.25)


coefficients = st.tuples(st.floats(0, 1e9), st.floats(1e4, 1e8), st.floats(0, 1e5))
sizes = ((1, 500, 30), (1, 1000, 30), (2, 1000, 30), (4, 1000, 30), (4, 1000, 7), (4, 1000, 61))
shapes = [Shape(*size) for size in sizes]


@given(coefficients)
def test_an_exact_plane_is_found(truth: tuple[float, float, float]) -> None:
    measured = [(s, Plane(*truth).predict(s.seconds, s.tokens)) for s in shapes]
    found = fit_plane(measured)
    for seconds, tokens in ((3.0, 5), (1000.0, 100)):
        assert found.predict(seconds, tokens) == pytest.approx(Plane(*truth).predict(seconds, tokens), rel=1e-4)
    assert found.error < 1e-4


@given(st.lists(st.floats(0, 1e10), min_size=6, max_size=6))
def test_the_fit_is_the_best_without_negative_coefficients(measured: list[float]) -> None:
    """As the conditions of Karush, Kuhn and Tucker say: the error's slope is 0 where a coefficient is not, else upward."""
    found = fit_plane(list(zip(shapes, measured, strict=True)))
    x = np.array([found.base, found.per_second, found.per_token])
    columns = np.array([[1.0, s.seconds, s.seconds * s.tokens] for s in shapes])
    slopes = (columns.T @ (columns @ x - np.array(measured))) / np.abs(columns).sum(0) / max(*measured, 1.0)
    assert (x >= 0).all() and (slopes > -1e-6).all() and (np.abs(slopes[x > 0]) < 1e-6).all()
    assert found.predict(50, 10) <= found.predict(51, 10) and found.predict(50, 10) <= found.predict(50, 11)


@given(coefficients, st.floats(1e6, 1e12), st.floats(0.3, 40), st.integers(1, 500), st.floats(1, 1e7))
def test_a_plan_keeps_to_the_memory(
    truth: tuple[float, float, float], room: float, longest: float, tokens: int, most: float
) -> None:
    plane, lengths = Plane(*truth), Lengths(longest, 1e6, tokens)
    seconds = plan(plane, lengths, room, most)
    if seconds > math.ceil(longest):
        assert seconds <= most and plane.predict(seconds, tokens) <= room * (1 + 1e-9)
        assert seconds == most or plane.predict(1.12 * seconds, tokens) > room  # two digits: a tenth at most is given away
    else:
        assert seconds == math.ceil(longest)
    assert plan(plane, lengths, 2 * room, most) >= seconds >= plan(plane, Lengths(longest, 1e6, 2 * tokens), room, most)


@given(st.floats(1e-3, 1e9))
def test_numbers_are_rounded_down_to_two_digits(number: float) -> None:
    rounded = round_down(number)
    assert rounded <= number * (1 + 1e-12) and rounded > 0.9 * number * (1 - 1e-9) and float(f"{rounded:.1e}") == rounded


def test_round_numbers() -> None:
    assert [round_down(n) for n in (1873.0, 247.9, 100.0, 7.36, -3.0)] == [1800.0, 240.0, 100.0, 7.3, 0.0]


@given(st.floats(0.1, 60), st.integers(0, 400), st.floats(1e5, 1e8), st.floats(1e7, 1e11))
def test_probes_grow_until_it_can_be_seen(longest: float, tokens: int, per_second: float, free: float) -> None:
    asked: list[Shape] = []

    def measure(shape: Shape) -> float:
        asked.append(shape)
        return 3e8 + per_second * shape.seconds

    passes = probe(measure, Lengths(longest, 1e6, tokens), free)
    assert [shape for shape, _ in passes] == asked[1:]  # the first warms up
    assert all(1 <= s.tokens <= s.frames // 4 and s.rows >= 1 for s in asked)
    largest = max(s.seconds for s in asked)
    growing = [s for s in asked[1:] if s.seconds < largest]
    others = asked[1 + len(growing) :]
    assert 2 <= len(growing) <= 6 and all(a.seconds < b.seconds for a, b in itertools.pairwise(growing))
    assert len({s.tokens for s in others}) == len(others) and len(others) > 1 or others[0].frames < 20
    enough = min(200 * 2**20, free / 10)
    assert per_second * (largest - asked[1].seconds) >= enough or len(growing) == 6
    assert len(growing) == 2 or per_second * (growing[-1].seconds - asked[1].seconds) < enough


# ---- no trace ----


def state_of(model: torch.nn.Module) -> list[Any]:
    modules = list(model.modules())
    return [
        [m.training for m in modules], [getattr(m, "balance_prob", None) for m in modules],
        [getattr(m, "layer_dropout", None) for m in modules], [getattr(m, "mask", None) is None for m in modules],
        [p.grad is None for p in model.parameters()], torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(),
        [v.tolist() for v in model.state_dict().values()],
    ]  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("norm", ["basic", "batch"])
def test_probes_leave_no_trace(norm: str, fails: bool) -> None:
    model = build_model(load_config(None, [*SMALL, f"model.encoder.norm={norm}"]), 20).eval()
    model.joiner.train()
    kept = model.simple_am_proj.weight
    kept.grad = torch.ones_like(kept)
    before = state_of(model)
    seen = {}

    def losses_of(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        losses = model(batch.inputs, batch.input_lens, batch.tokens, batch.token_lens, warmup=2.0)
        seen.update(now=state_of(model), training=model.training)
        seen["draws"] = {m.balance_prob for m in model.modules() if hasattr(m, "balance_prob")}
        return losses

    with without_side_effects(model, CPU):
        bytes_of_pass(Shape(2, 100, 5), model, losses_of, 0.5, CPU)
        assert kept.grad is not None and not (kept.grad == 1).all()
        changed = state_of(model)
    assert state_of(model) == before and (kept.grad == 1).all()
    assert seen["training"] and seen["draws"] == {1.0}  # the most memory: every balancer acts
    differs = [now != then for now, then in zip(changed, before, strict=True)]  # there was something to put back
    assert differs == [True, True, True, True, True, True, False, norm == "batch"]
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"), without_side_effects(model, CPU):
            losses_of(
                Batch(torch.ones(2, 50, 80), torch.tensor([50, 50]), torch.ones(2, 3).long(), torch.tensor([3, 3]), ["a", "b"])
            )
            raise RuntimeError("out of memory")
        assert state_of(model) == before and (kept.grad == 1).all()
