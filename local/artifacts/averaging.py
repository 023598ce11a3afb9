"""Averages of checkpoints: which checkpoints, and their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import check_finite, check_trained, checkpoints, load_file, tokenizer_of
from local.common.errors import UserError
from local.config import config_from_dict
from local.config.schema import AverageConfig
from local.data.feature_floor import KEY, saved_floor
from model.average import State, average_between, average_plain

import torch

CHECKPOINT_KEYS = ("config", "tokens", "tokens_hash", "vocab_size", "bpe_model", "git_commit", "versions")
KEYS_OF_RANGE = "keys 'average.last', 'average.num' and 'train.keep_last'"
Average = tuple[State, dict[str, Any], str, str]  # weights, the last checkpoint's content, the range in words, its label


def make_average(folder: Path, options: AverageConfig) -> dict[str, Any]:
    """Average checkpoints of `folder` (EXP/checkpoints) and return the content of averaged.pt.

    Its key "averaged" describes the range in words, "label" in short, as icefall does: "epoch-7-avg-3" is the running
    average over epochs 5 to 7; "-plain" marks the mean of that many checkpoints. Raises `UserError` if a checkpoint is
    missing, damaged, or of another model, or if the range has no running average. A range is never shortened silently: only
    epochs before the first one may be missing.
    """
    state, end, described, label = (_plain if options.mode == "plain" else _running)(folder, options)
    weights = {k: v.to(end["model"][k].dtype) for k, v in state.items()}  # averages are float64, models are not
    check_finite(weights, folder)
    tokenizer_of(end, folder)
    config = config_from_dict(end["config"], where=str(folder))
    facts = {"averaged": f"{options.mode}: {described}", "label": label}
    floor = saved_floor(end, config.features.num_mel_bins, folder)
    found = {} if floor is None else {KEY: floor}
    return {"model": weights, **facts, **found, **{k: end[k] for k in CHECKPOINT_KEYS}}


def load_for_averaging(path: Path, running: bool) -> dict[str, Any]:
    """Read a checkpoint of training, with its average if `running`. Raises `UserError` naming a missing or damaged key."""
    content = load_file(path)
    missing = [key for key in CHECKPOINT_KEYS if key not in content]
    if missing:
        raise UserError(f"{path}: damaged, or not a checkpoint of training: it has no '{missing[0]}'")
    check_trained(content, path)
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
    """Raise `UserError` unless two sets of weights have the same names, shapes and kinds of numbers."""
    if odd := sorted(map(str, state.keys() ^ model.keys())):
        raise UserError(f"{where}: its model differs from that of its average or of the other checkpoints: '{odd[0]}'")
    for key, value in state.items():
        pair = (value, model[key])
        alike = all(isinstance(v, torch.Tensor) for v in pair) and value.shape == model[key].shape
        if not alike or value.is_floating_point() != model[key].is_floating_point():
            raise UserError(f"{where}: '{key}' has another shape or type in its average or in the other checkpoints")


def select_range(folder: Path, options: AverageConfig) -> list[tuple[int, Path]]:
    """Return the checkpoints up to `average.last` with their numbers, newest first.

    Raises `UserError` if no checkpoint exists or the last one is missing.
    """
    found = dict(checkpoints(folder, options.unit))
    if not found:
        other = "step" if options.unit == "epoch" else "epoch"
        hint = f"there are some for average.unit={other}" if checkpoints(folder, other) else "stage 1 (train) makes them"
        raise UserError(f"{folder}: no {options.unit} checkpoints; {hint}")
    last = options.last or max(found)
    if last not in found:
        raise UserError(f"{folder}/{options.unit}-{last}.pt does not exist (key 'average.last')")
    return [(n, found[n]) for n in sorted(found, reverse=True) if n <= last]


def missing_epoch(folder: Path, number: int) -> UserError:
    """Return the error for an epoch that the range needs."""
    return UserError(f"{folder}/epoch-{number}.pt, which the range needs, does not exist ({KEYS_OF_RANGE})")


def check_enough(candidates: list[tuple[int, Path]], wanted: int, folder: Path) -> None:
    """Raise `UserError` if there are fewer step checkpoints than the range needs, its start included."""
    if len(candidates) < wanted:
        names = ", ".join(path.name for _, path in reversed(candidates))
        raise UserError(f"{folder}: the range needs {wanted} step checkpoints and there are {names} ({KEYS_OF_RANGE})")


def running_ends(folder: Path, options: AverageConfig) -> tuple[tuple[int, Path], tuple[int, Path | None]]:
    """Return number and path of the last checkpoint of a range, and of the one before it; no path: the training's start.

    Raises `UserError` if one of them is missing.
    """
    candidates = select_range(folder, options)
    last = candidates[0][0]
    if options.unit == "epoch":
        first = last - options.num
        start_path = dict(candidates).get(first)
        if first > 0 and start_path is None:
            raise missing_epoch(folder, first)
        return candidates[0], (first, start_path)
    # step checkpoints before the oldest one may have been removed: only one that is there can be the start
    check_enough(candidates, options.num + 1, folder)
    return candidates[0], candidates[options.num]


def plain_range(folder: Path, options: AverageConfig) -> list[Path]:
    """Return `average.checkpoints`, or the newest `num` checkpoints of the range, oldest first.

    Raises `UserError` if one of the range is missing.
    """
    if options.checkpoints:
        return [Path(p) for p in options.checkpoints]
    candidates = select_range(folder, options)
    last, wanted = candidates[0][0], options.num
    if options.unit == "epoch":  # epoch 1 is the beginning
        wanted = min(wanted, last)
        if missing := set(range(last - wanted + 1, last)) - {n for n, _ in candidates}:
            raise missing_epoch(folder, max(missing))
    check_enough(candidates, wanted, folder)
    return [p for _, p in candidates[:wanted]][::-1]


def _running(folder: Path, options: AverageConfig) -> Average:
    """Average over all batches of a range, from the running averages in the checkpoints at its two ends."""
    (last, end_path), (first, start_path) = running_ends(folder, options)
    end = load_for_averaging(end_path, running=True)
    average = end["average"]
    if average["batches"] == 0:
        why = f"no running average yet, train.average_period is {average['period']}"
        raise UserError(f"{end_path}: {why}; use average.mode=plain for the weights as they are")
    if start_path is None:
        return average["state"], end, f"epochs 1 to {last}", f"epoch-{last}-avg-{last}"
    start = load_for_averaging(start_path, running=True)["average"]
    check_same_model(start["state"], average["state"], start_path)
    try:
        state = average_between(start["state"], start["batches"], average["state"], average["batches"])
    except ValueError as e:
        raise UserError(f"{start_path} to {end_path}: {e}; train.average_period is {average['period']}") from None
    return state, end, f"{options.unit}s {first + 1} to {last}", f"{options.unit}-{last}-avg-{options.num}"


def _plain(folder: Path, options: AverageConfig) -> Average:
    """Average the weights of `average.checkpoints`, or of the newest `num` checkpoints of the range."""
    paths = plain_range(folder, options)
    contents = [load_for_averaging(p, running=False) for p in paths]
    for path, content in zip(paths, contents, strict=True):
        check_same_model(content["model"], contents[-1]["model"], path)
    state = average_plain([c["model"] for c in contents])
    return state, contents[-1], ", ".join(p.name for p in paths), f"{paths[-1].stem}-avg-{len(paths)}-plain"
