"""The memory plan: the fitted plane predicts passes, the plan fits the memory, probes change nothing."""

from __future__ import annotations

import copy
import itertools
import json
import math
import platform
import subprocess
import sys

from local.config import load_config
from local.training.memory_plan import SHARE, PassMeter, Plane, Shape, fit_plane, plan, probe, round_down
from model.encoder.lstm import RecurrentLayer
from model.encoder.subsampling import subsampled
from model.layers.balancer import ActivationBalancer
from tests.common.test_processes import SMALL
from tests.conftest import ROOT

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

CPU = torch.device("cpu")
MODEL = [
    *("model.encoder.num_layers=2", "model.encoder.d_model=64", "model.encoder.rnn_hidden_size=64"),
    *("model.encoder.dim_feedforward=128", "model.decoder.dim=64", "model.joiner.dim=64"),
]

# ---- the plane ----

PROGRAM = """
import json, sys, torch
from local.config import load_config
from local.common.allocator import tune_memory
from local.training.memory_plan import PassMeter, Shape, fit_plane, probe
torch.set_num_threads(1)
tune_memory()
measure = PassMeter(load_config(None, sys.argv[1:]), 50, torch.device("cpu"))
passes = probe(measure, 8.0, 30, 4e9)
plane = fit_plane(passes)
for shape in (Shape(40, 400, 10), Shape(11, 700, 60), Shape(25, 1000, 30)):
    print(json.dumps([plane.predict(shape.seconds, shape.tokens), measure(shape), plane.per_second, len(passes)]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators may keep freed memory")
def test_the_plane_predicts_unseen_passes() -> None:
    """Passes larger than the measured ones, with other lengths and tokens, in a process of their own as in training."""
    out = subprocess.run([sys.executable, "-c", PROGRAM, *MODEL], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for predicted, measured, per_second, count in map(json.loads, out.splitlines()):
        assert measured > 50e6 and per_second > 0 and 5 <= count <= 9
        assert SHARE * measured <= predicted <= 1.25 * measured  # SHARE of the free memory is planned with


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
    """By the conditions of Karush, Kuhn and Tucker: the slope of the error is 0 for coefficients above 0, otherwise upward."""
    found = fit_plane(list(zip(shapes, measured, strict=True)))
    x = np.array([found.base, found.per_second, found.per_token])
    columns = np.array([[1.0, s.seconds, s.seconds * s.tokens] for s in shapes])
    slopes = (columns.T @ (columns @ x - np.array(measured))) / np.abs(columns).sum(0) / max(*measured, 1.0)
    assert (x >= 0).all() and (slopes > -1e-6).all() and (np.abs(slopes[x > 0]) < 1e-6).all()
    assert found.predict(50, 10) <= found.predict(51, 10) and found.predict(50, 10) <= found.predict(50, 11)


@given(coefficients, st.floats(1e6, 1e12), st.floats(0.3, 40), st.integers(1, 500), st.floats(1, 1e7))
def test_a_plan_fits_the_memory(
    truth: tuple[float, float, float], room: float, longest: float, tokens: int, most: float
) -> None:
    plane = Plane(*truth)
    seconds = plan(plane, longest, tokens, room, most)
    if seconds > math.ceil(longest):
        assert seconds <= most and plane.predict(seconds, tokens) <= room * (1 + 1e-9)
        assert seconds == most or plane.predict(1.12 * seconds, tokens) > room  # rounding to two digits loses at most a tenth
    else:
        assert seconds == math.ceil(longest)
    assert plan(plane, longest, tokens, 2 * room, most) >= seconds >= plan(plane, longest, 2 * tokens, room, most)


@given(st.floats(1e-3, 1e9))
def test_numbers_are_rounded_down_to_two_digits(number: float) -> None:
    rounded = round_down(number)
    assert rounded <= number * (1 + 1e-12) and rounded > 0.9 * number * (1 - 1e-9) and float(f"{rounded:.1e}") == rounded


def test_round_numbers() -> None:
    assert [round_down(n) for n in (1873.0, 247.9, 100.0, 7.36, -3.0)] == [1800.0, 240.0, 100.0, 7.3, 0.0]


@given(st.floats(0.1, 60), st.integers(0, 400), st.floats(1e5, 1e8), st.floats(1e7, 1e11))
def test_probes_grow_until_their_bytes_differ_enough(longest: float, tokens: int, per_second: float, free: float) -> None:
    asked: list[Shape] = []

    def measure(shape: Shape) -> float:
        asked.append(shape)
        return 3e8 + per_second * shape.seconds

    passes = probe(measure, longest, tokens, free)
    assert [shape for shape, _ in passes] == asked[1:]  # the first warms up
    assert all(1 <= s.tokens <= s.frames // 4 and s.rows >= 1 for s in asked)
    largest = max(s.seconds for s in asked)
    growing = [s for s in asked[1:] if s.seconds < largest]
    last, *others = asked[1 + len(growing) :]
    assert 2 <= len(growing) <= 6 and all(a.seconds < b.seconds for a, b in itertools.pairwise(growing))
    assert any(s.tokens < last.tokens for s in others) == (last.tokens > 1)
    assert any(s.tokens > last.tokens for s in others) == (last.tokens < subsampled(last.frames))
    assert all(s.tokens != last.tokens for s in others)
    enough = min(200 * 2**20, free / 10)
    assert per_second * (largest - asked[1].seconds) >= enough or len(growing) == 6
    assert len(growing) == 2 or per_second * (growing[-1].seconds - asked[1].seconds) < enough


# ---- what a probe leaves as it was ----


def test_probes_change_nothing_and_measure_the_most() -> None:
    cfg = load_config(None, [*SMALL, "model.encoder.layer_dropout=0.1", "loss.simple_scale=0.5"])
    before, generator = copy.deepcopy(cfg), torch.get_rng_state()
    meter = PassMeter(cfg, 20, CPU)
    balancers = [m for m in meter.model.modules() if isinstance(m, ActivationBalancer)]
    layers = [m for m in meter.model.modules() if isinstance(m, RecurrentLayer)]
    assert {m.balance_prob for m in balancers} == {m.layer_dropout for m in layers} == {1.0} and meter.model.training
    meter(Shape(2, 100, 5))
    assert sum(p.grad is not None for p in meter.model.parameters()) > 40  # of both losses
    assert cfg == before and torch.equal(torch.get_rng_state(), generator)


def test_what_is_switched_off_stays_off() -> None:
    cfg = load_config(None, [*SMALL, "model.encoder.layer_dropout=0", "model.encoder.balance_prob=0"])
    modules = list(PassMeter(cfg, 20, CPU).model.modules())
    assert {m.balance_prob for m in modules if isinstance(m, ActivationBalancer)} == {0.0}
    assert {m.layer_dropout for m in modules if isinstance(m, RecurrentLayer)} == {0.0}
