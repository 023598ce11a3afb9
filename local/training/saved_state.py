"""Whether the optimiser, schedule, average and progress of a checkpoint are those of this run, before any of them is used."""

from __future__ import annotations

import math
from typing import Any

from local.config.schema import OptimConfig
from local.training.resume_checks import seconds_at_once
from model.optim import make_optimizer

import torch
from torch import Tensor, nn

COUNTS = ("epoch", "batch", "step", "bad_steps")  # in section `progress` of a checkpoint
LARGEST = 1e30  # of numbers; larger ones are not floats on a GPU


def check_saved_state(saved: dict[str, Any], model: nn.Module, optim: OptimConfig) -> None:
    """Raise ValueError, LookupError or TypeError with the name of a value that the training of `model` could not have saved."""
    _check_average(saved["average"], model.state_dict())
    _check_optimizer(saved["optimizer"], list(model.parameters()), optim)
    for name in ("batch", "epoch"):
        _check_number(f"schedule.{name}", saved["schedule"][name], 0)
    _check_progress(saved)


def _check_progress(saved: dict[str, Any]) -> None:
    progress = saved["progress"]
    least = {**dict.fromkeys(COUNTS, 0), **({"warm_batches": 0} if "warm_batches" in progress else {})}  # older ones lack it
    for name, number in least.items():
        if type(progress[name]) is not int or progress[name] < number:
            raise ValueError(f"'progress.{name}' must be a whole number from {number}")
    if not 0 < seconds_at_once(saved):
        raise ValueError("'progress.max_duration' must be above 0")


def _check_average(average: dict[str, Any], model: dict[str, Tensor]) -> None:
    for name, least in (("batches", 0), ("period", 1)):
        if type(average[name]) is not int or not least <= average[name] <= LARGEST:
            raise ValueError(f"'average.{name}' must be a whole number from {least}")
    if average["state"].keys() != model.keys():
        raise ValueError("'average' is of another model")
    for name, value in model.items():
        _check_tensor(f"average.state.{name}", average["state"][name], value)


def _check_optimizer(saved: dict[str, Any], params: list[nn.Parameter], optim: OptimConfig) -> None:
    """Compare with an optimiser that has made a step with one parameter."""
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    example = make_optimizer([parameter], optim)
    example.step()
    [group] = saved["param_groups"]
    for name, own in example.param_groups[0].items():
        if isinstance(own, float | tuple):
            for number, _ in zip(*(v if isinstance(own, tuple) else [v] for v in (group[name], own)), strict=True):
                _check_number(f"optimizer.param_groups.{name}", number, 0)
    if list(group["params"]) != list(range(len(params))):
        raise ValueError("'optimizer.param_groups.params' are not the weights of this model")
    for index, state in saved["state"].items():
        if state.keys() != example.state[parameter].keys():
            raise ValueError(f"'optimizer.state.{index}' is of another optimiser")
        for name, own in example.state[parameter].items():
            where = f"optimizer.state.{index}.{name}"
            if isinstance(own, Tensor) and own.dim() > 0:
                _check_tensor(where, state[name], params[index])
            elif own is not None:  # a number, or a tensor of one: versions of torch differ
                value = state[name]
                if isinstance(value, Tensor) and value.numel() != 1:
                    raise ValueError(f"'{where}' must be one number")
                _check_number(where, value.item() if isinstance(value, Tensor) else value, 0)


def _check_tensor(where: str, value: Any, like: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != like.shape or value.is_floating_point() != like.is_floating_point():
        raise ValueError(f"'{where}' must be a tensor of the shape {tuple(like.shape)}")


def _check_number(where: str, value: Any, least: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= LARGEST or math.isnan(value):
        raise ValueError(f"'{where}' must be a number from {least}")
