"""Eve and Eden against their formulas, element by element; the averages against the plain mean."""

from __future__ import annotations

import math
from types import SimpleNamespace

from model.average import RunningAverage, average_between, average_plain
from model.optim import OPTIMIZERS, Eden, Eve, make_optimizer

import pytest
import torch


def test_eve_equals_its_formula() -> None:
    torch.manual_seed(0)
    params = [torch.randn(3, 4).double(), torch.full((5,), 0.01).double(), torch.tensor(1.9).double()]
    ours = [torch.nn.Parameter(p.clone()) for p in params]
    optimizer = Eve(ours, lr=0.1)
    m = [torch.zeros_like(p) for p in params]
    v = [torch.zeros_like(p) for p in params]
    for k in range(1, 6):
        for i, p in enumerate(params):
            grad = torch.randn_like(p) if p.numel() > 1 else torch.tensor(-1.0).double()
            ours[i].grad = grad.clone()
            m[i] = 0.9 * m[i] + 0.1 * grad
            v[i] = 0.98 * v[i] + 0.02 * grad**2
            if p.numel() > 1 and p.norm() > 0.1 * math.sqrt(p.numel()):
                p *= 1 - 1e-3
            p -= 0.1 / (1 - 0.9**k) * m[i] / (v[i].sqrt() / math.sqrt(1 - 0.98**k) + 1e-8)
            if p.numel() == 1:
                p.clamp_(-10, 2)
        optimizer.step()
        for p, q in zip(params, ours, strict=True):
            torch.testing.assert_close(q.data, p)
    assert ours[2].item() == 2.0


@pytest.mark.parametrize("scale", [1.0, 1e-7, 40.0], ids=["usual", "smallest", "largest"])
def test_scaled_adam_equals_its_formula(scale: float) -> None:
    """As icefall's, 2022: a step relative to the rms of a tensor, and one of its scale; the rms used is 1e-5 to 3."""
    torch.manual_seed(0)
    params = [scale * torch.randn(3, 4).double(), torch.tensor(0.5).double()]
    ours = [torch.nn.Parameter(p.clone()) for p in params]
    optimizer = make_optimizer(ours, SimpleNamespace(name="scaled_adam", lr=0.1, weight_decay=0.0, momentum=0.9))
    moments = [[torch.zeros_like(p), torch.zeros_like(p), torch.zeros(()).double()] for p in params]
    for k in range(1, 6):
        fix = (1 - 0.98**k) ** 0.5
        for p, mine, state in zip(params, ours, moments, strict=True):
            g = torch.randn_like(p)
            mine.grad = g.clone()
            delta, v, s = state
            v = 0.98 * v + 0.02 * g * g
            u = g * fix / (v.sqrt() + 1e-8 * fix)
            if p.numel() == 1:
                u = -0.1 * 0.1 * u
            else:
                rms, along = p.square().mean().sqrt(), (g * p).sum()
                s = 0.98 * s + 0.02 * along**2
                factor = -along * fix / (s.sqrt() + 1e-8 * fix)
                factor = 1.0 if rms < 1e-5 else -1.0 if rms > 3.0 else factor
                u = -0.1 * rms.clamp(min=1e-5) * u + 0.01 * factor * p
            delta = 0.9 * delta + 0.1 * u
            p += delta
            state[:] = [delta, v, s]
        optimizer.step()
        for p, mine in zip(params, ours, strict=True):
            torch.testing.assert_close(mine.data, p)


def test_a_parameter_that_joins_late_has_its_own_step_count() -> None:
    early, late = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = Eve([early, late], lr=0.5)
    for k in range(3):
        early.grad = torch.ones(2)
        late.grad = torch.ones(2) if k == 2 else None
        optimizer.step()
    torch.testing.assert_close(late.data, torch.full((2,), -0.5))
    assert optimizer.state[early]["step"] == 3


def test_eden() -> None:
    optimizer = Eve([torch.nn.Parameter(torch.zeros(1))], lr=0.003)
    schedule = Eden(optimizer, lr_batches=5000, lr_epochs=10)
    assert schedule.get_last_lr() == [0.003]
    schedule.step_epoch(4)
    for _ in range(7):
        schedule.step_batch()
    expected = 0.003 * ((7**2 + 5000**2) / 5000**2) ** -0.25 * ((4**2 + 10**2) / 10**2) ** -0.25
    assert schedule.get_last_lr()[0] == pytest.approx(expected, rel=1e-12)
    again = Eden(Eve([torch.nn.Parameter(torch.zeros(1))], lr=0.003), 5000, 10)
    again.load_state_dict(schedule.state_dict())
    assert again.get_last_lr() == schedule.get_last_lr()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_descends(name: str) -> None:
    torch.manual_seed(0)
    target = torch.randn(6)
    w = torch.nn.Parameter(torch.randn(6))
    lr = 0.5 if name == "adagrad" else 0.03
    optimizer = make_optimizer([w], SimpleNamespace(name=name, lr=lr, weight_decay=0.0, momentum=0.9))
    first = (w - target).square().sum().item()
    for _ in range(150):
        loss = (w - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first


def test_unknown_optimizer() -> None:
    with pytest.raises(ValueError, match="lion"):
        make_optimizer([], SimpleNamespace(name="lion"))


def test_running_average_over_a_range_is_the_mean_of_the_sampled_models() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    average = RunningAverage(model, period=5)
    samples, ends = {}, {}
    for batch in range(1, 61):
        for p in model.parameters():
            p.data += torch.randn_like(p)
        average.update(model, batch)
        if batch % 5 == 0:
            samples[batch] = {k: v.clone() for k, v in model.state_dict().items()}
        if batch in (20, 60):
            ends[batch] = average.state_dict()
    got = average_between(ends[20]["state"], 20, ends[60]["state"], 60)
    expected = average_plain([s for b, s in samples.items() if b > 20])
    for key in expected:
        assert got[key].dtype == torch.float64
        torch.testing.assert_close(got[key], expected[key], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="no batches"):
        average_between(ends[60]["state"], 60, ends[20]["state"], 20)
    with pytest.raises(ValueError, match="no checkpoints"):
        average_plain([])


def test_saving_does_not_change_the_average() -> None:
    model = torch.nn.Linear(3, 2)
    average = RunningAverage(model, period=1)
    average.update(model, 1)
    before = {k: v.clone() for k, v in average.state.items()}
    saved = average.state_dict()
    for value in saved["state"].values():
        value.zero_()
    other = RunningAverage(torch.nn.Linear(3, 2), period=1)
    other.load_state_dict({"state": before, "batches": 1, "period": 1})
    for key, value in before.items():
        assert torch.equal(average.state[key], value) and average.state[key].dtype == torch.float64
        assert torch.equal(other.state[key], value)
