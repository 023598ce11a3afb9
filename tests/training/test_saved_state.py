"""A training resumes only from an optimiser, an average and a progress that it could have saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_file, save_file
from local.common.errors import UserError
from model.optim import OPTIMIZERS
from tests.test_train import trainer

import pytest
import torch


def spoil_optimizer(content: dict[str, Any]) -> None:
    state = content["optimizer"]["state"]
    first = state[next(iter(state))]
    first[next(key for key, value in first.items() if isinstance(value, torch.Tensor) and value.dim() > 0)] = torch.ones(7)


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the shape of a moment": spoil_optimizer,
    "the step is below 0": lambda content: content["optimizer"]["state"][0].update(step=-5),
    "a moment is missing": lambda content: [state.pop("exp_avg") for state in content["optimizer"]["state"].values()],
    "no state": lambda content: content["optimizer"]["state"].update({0: 3}),
    "the rate is text": lambda content: content["optimizer"]["param_groups"][0].update(lr="x"),
    "the rate is a list": lambda content: content["optimizer"]["param_groups"][0].update(lr=[1]),
    "a number is missing": lambda content: content["optimizer"]["param_groups"][0].pop("betas"),
    "a pair is a number": lambda content: content["optimizer"]["param_groups"][0].update(betas=0.5),
    "not one group": lambda content: content["optimizer"].update(param_groups=[]),
    "the average is broadcast": lambda content: content["average"]["state"].update(
        {"joiner.output_linear.weight": torch.ones(1, dtype=torch.float64)}
    ),
    "the average has whole numbers": lambda content: content["average"]["state"].update(
        {"joiner.output_linear.bias": torch.ones_like(content["model"]["joiner.output_linear.bias"], dtype=torch.int64)}
    ),
    "the period is 0": lambda content: content["average"].update(period=0),
    "the period is text": lambda content: content["average"].update(period="x"),
    "the batches are below 0": lambda content: content["average"].update(batches=-1),
    "the schedule": lambda content: content["schedule"].update(epoch="x"),
    "the schedule is huge": lambda content: content["schedule"].update(batch=10**400),
    "the random numbers": lambda content: content["rng"].update(cpu=torch.zeros(3)),
    "the others' random numbers": lambda content: content["rng"].update(others=3),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stop a training after two steps."""
    exp = tmp_path_factory.mktemp("stopped")
    trainer(exp, "train.max_steps=2", "train.valid_utterances=0").run()
    return exp


@pytest.mark.parametrize("name", SPOILED)
def test_training_does_not_resume_from_damaged_values(stopped: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "exp" / "checkpoints" / "step-2.pt"
    shutil.copytree(stopped, tmp_path / "exp")
    content = load_file(path)
    SPOILED[name](content)
    save_file(content, path)
    with pytest.raises(UserError, match=r"step-2\.pt: "):
        trainer(tmp_path / "exp", "train.max_steps=4", "train.valid_utterances=0")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_resumes_from_what_it_saved(tmp_path: Path, name: str) -> None:
    options = [f"optim.name={name}", "train.valid_utterances=0"]
    trainer(tmp_path, "train.max_steps=2", *options).run()
    assert trainer(tmp_path, "train.max_steps=3", *options).step == 2
