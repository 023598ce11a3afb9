"""What a checkpoint says of the run that wrote it, against the run that goes on from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.config.schema import AUTO

OTHER_STAGES = ("decode.", "average.", "lm.", "tune.", "ablation.")  # sections whose keys do not change this training


def check_same_run(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """`UserError` where tokens, model or optimiser of the checkpoint `path` are not those of `now` (its `provenance`)."""
    if saved["tokens_hash"] != now["tokens_hash"]:
        raise UserError(f"{path} was trained with other tokens than the data's bpe.model; use another --exp-dir")
    if saved["config"]["model"] != now["config"]["model"]:
        raise UserError(f"{path} holds a model of another configuration; use another --exp-dir")
    if saved["config"]["optim"]["name"] != now["config"]["optim"]["name"]:
        raise UserError(f"{path}: optim.name was {saved['config']['optim']['name']}; use another --exp-dir")


def seconds_at_once(saved: dict[str, Any]) -> float:
    """train.max_duration that the checkpoint was trained with: a number also where the configuration says auto."""
    found: float = saved["progress"].get("max_duration", saved["config"]["train"]["max_duration"])  # the latter: older files
    return found


def changes(saved: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Keys that change the training and have another value in `config` than in the checkpoint's: key, before, now."""
    before, now = flat(saved["config"]), flat(config)
    if now["train.max_duration"] != AUTO:
        before["train.max_duration"] = seconds_at_once(saved)
    for key in now:
        if key in before and before[key] != now[key] and not key.startswith(OTHER_STAGES):
            yield key, before[key], now[key]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found
