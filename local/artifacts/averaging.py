"""Averages of checkpoints: which ones, and what their mean is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import checkpoints, load_file
from local.common.errors import UserError
from local.config.schema import AverageConfig
from model.average import State, average_between, average_plain

import torch

CHECKPOINT_KEYS = ("config", "tokens", "tokens_hash", "vocab_size", "bpe_model", "git_commit", "versions")


def load_for_averaging(path: Path, running: bool) -> dict[str, Any]:
    """A checkpoint. `UserError` where it lacks what an average, a running one too, is made of."""
    content = load_file(path)
    missing = [key for key in CHECKPOINT_KEYS if key not in content]
    if missing:
        raise UserError(f"{path}: damaged, or not a checkpoint of training: it has no '{missing[0]}'")
    if running:
        average: Any = content.get("average")
        try:
            whole = type(average["batches"]) is int and type(average["period"]) is int and isinstance(average["state"], dict)
        except (TypeError, LookupError):
            whole = False
        if not whole:
            raise UserError(f"{path}: damaged, or not a checkpoint of training: it has no usable 'average'")
        check_same_model(average["state"], content["model"], path)
    return content


def check_same_model(state: State, model: State, where: Path) -> None:
    """`UserError` unless two sets of weights have the same names, shapes and kinds of numbers."""
    if odd := sorted(map(str, state.keys() ^ model.keys())):
        raise UserError(f"{where}: its model is another one than its average's or the other checkpoints': '{odd[0]}'")
    for key, value in state.items():
        pair = (value, model[key])
        alike = all(isinstance(v, torch.Tensor) for v in pair) and value.shape == model[key].shape
        if not alike or value.is_floating_point() != model[key].is_floating_point():
            raise UserError(f"{where}: '{key}' is not the same kind of weights as in its average or the other checkpoints")


def select_range(folder: Path, options: AverageConfig) -> list[tuple[int, Path]]:
    """The checkpoints of the range (last - num, last] and the one at its start, if kept, newest first.

    Raises `UserError` naming what is missing.
    """
    kept = dict(checkpoints(folder, options.unit))
    if not kept:
        other = "step" if options.unit == "epoch" else "epoch"
        hint = f"average.unit={other} takes those that are there" if checkpoints(folder, other) else "stage 1 makes them"
        raise UserError(f"{folder}: no {options.unit} checkpoints; {hint}")
    last = options.last or max(kept)
    if last not in kept:
        raise UserError(f"{folder}/{options.unit}-{last}.pt does not exist (key 'average.last')")
    return [(n, kept[n]) for n in sorted(kept, reverse=True) if n <= last]


def running(folder: Path, options: AverageConfig) -> tuple[State, dict[str, Any], str]:
    """The mean over a range from its two end checkpoints: weights, the end's content, and the range in words."""
    candidates = select_range(folder, options)
    last, end_path = candidates[0]
    end = load_for_averaging(end_path, running=True)
    average = end["average"]
    if average["batches"] == 0:
        raise UserError(
            f"{end_path}: no running average yet, train.average_period is {average['period']}; average.mode=plain "
            "takes the weights as they are"
        )
    if options.unit == "epoch":
        first = last - options.num
        start_path = next((p for n, p in candidates if n == first), None)
        if first > 0 and start_path is None:
            raise UserError(
                f"{folder}/epoch-{first}.pt, the start of the range, does not exist "
                "(keys 'average.last', 'average.num' and 'train.keep_last')"
            )
    else:
        start_path = candidates[options.num][1] if len(candidates) > options.num else None
        first = candidates[options.num][0] if start_path else 0
    if start_path is None:
        return average["state"], end, f"{options.unit}s 1 to {last}"
    start = load_for_averaging(start_path, running=True)["average"]
    check_same_model(start["state"], average["state"], start_path)
    try:
        state = average_between(start["state"], start["batches"], average["state"], average["batches"])
    except ValueError as e:
        raise UserError(f"{start_path} to {end_path}: {e}; train.average_period is {average['period']}") from None
    return state, end, f"{options.unit}s {first + 1} to {last}"


def plain(folder: Path, options: AverageConfig) -> tuple[State, dict[str, Any], str]:
    """The mean of named checkpoints, or of the newest `num` of the range."""
    if options.checkpoints:
        paths = [Path(p) for p in options.checkpoints]
    else:
        paths = [p for _, p in select_range(folder, options)[: options.num]][::-1]
    contents = [load_for_averaging(p, running=False) for p in paths]
    for path, content in zip(paths, contents, strict=True):
        check_same_model(content["model"], contents[-1]["model"], path)
    return average_plain([c["model"] for c in contents]), contents[-1], ", ".join(p.name for p in paths)
