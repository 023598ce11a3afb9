"""The configuration and the data that a checkpoint was made with, compared with those of the run which resumes from it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from local.common.atomic import write_text
from local.common.errors import UserError
from local.config.keys import leaves
from local.config.schema import AUTO

import yaml

# Sections and keys that do not change this training.
OTHER_STAGES = ("decode.", "average.", "lm.", "tune.", "score.", "ablation.", "data.max_lost", "data.max_wait", "train.logger")
AT_START = ("train.init", "train.average_period")  # keys that count only when a training starts
MAX_NAMED = 3  # keys in a message
UNSET = "not set"
CTC = "loss.ctc_scale"


def check_same_run(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise `UserError` if checkpoint `saved` at `path` has other tokens, another model or optimiser than `now`."""
    if saved["tokens_hash"] != now["tokens_hash"]:
        raise UserError(f"{path} was trained with other tokens than the data's bpe.model; use another --exp-dir")
    before, after = dict(leaves(saved["config"])), dict(leaves(now["config"]))
    fixed = [key for key in {**before, **after} if key.startswith("model.") or key == "optim.name"]
    values = [(key, before.get(key, UNSET), after.get(key, UNSET)) for key in fixed]
    differs = [f"{key} was {old}, is {new}" for key, old, new in values if old != new]
    head = before.get(CTC, 0.0), after.get(CTC, 0.0)
    if (head[0] > 0) != (head[1] > 0):  # the CTC head is part of the model
        differs.append(f"{CTC} was {head[0]:g}, is {head[1]:g}")
    if differs:
        named = ", ".join(differs[:MAX_NAMED])
        more = f" and {len(differs) - MAX_NAMED} more keys" if len(differs) > MAX_NAMED else ""
        raise UserError(f"{path} holds another model or optimiser: {named}{more}; use another --exp-dir")


def check_same_data(saved: dict[str, Any], now: dict[str, Any], path: Path, finished: bool = False) -> str:
    """Return what differs between the training data of checkpoint `saved` at `path` and `now`: a warning, or "".

    now: the `identity` of the data module. finished: whether nothing is left to train. If something is, raises `UserError` if
    they differ and the checkpoint is within an epoch: the batches that are left of it would not be those that were left.
    Older checkpoints do not say all or any of it.
    """
    before = saved.get("data")
    if not isinstance(before, dict) or before == {name: now.get(name) for name in before}:
        return ""
    counts = [(name, before.get(name), now[name]) for name in ("cuts", "hours", "noises")]
    differs = [f"{old} {name} then, {new} now" for name, old, new in counts if old != new]
    what = f"other training data than those of {path}: {', '.join(differs) or 'other ids, lengths, transcripts or order'}"
    if finished:
        return f"{what}; the finished model does not know them: --force trains on them from the start"
    if saved["progress"]["batch"] > 0:
        raise UserError(
            f"{what}; the checkpoint is in the middle of epoch {saved['progress']['epoch']}, where training can resume only "
            f"with the same data: restore them, or remove {path.parent}/step-*.pt to begin this epoch again, or train from "
            "the start (--force)"
        )
    return f"{what}; they are used from epoch {saved['progress']['epoch']} on"


def write_config(origin: dict[str, Any], path: Path, *, max_duration: float, parameters: int) -> None:
    """Write exp/<name>/config.yaml: the configuration, and a section `run` on versions, tokens, model and data.

    origin: this run's `provenance`, with the `identity` of its data. max_duration: seconds; the value of train.max_duration,
    which stays `auto` in its section. parameters: those of the model, in numbers.
    """
    run = {key: origin[key] for key in ("git_commit", "versions", "tokens_hash", "vocab_size")}
    data = origin.get("data", {})
    run |= {"max_duration": max_duration, "parameters": parameters, "train_hours": data.get("speech_hours", data.get("hours"))}
    content = {**origin["config"], "run": run}
    write_text(path, yaml.safe_dump(content, sort_keys=False))


def seconds_at_once(saved: dict[str, Any]) -> float:
    """Return the train.max_duration that the checkpoint was trained with, in seconds, also if the configuration says auto."""
    older: float = saved["config"]["train"]["max_duration"]  # older checkpoints have it only there
    return saved["progress"].get("max_duration", older)  # type: ignore[no-any-return]


def changes(saved: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value before and value now of the keys that change the training from here on."""
    before, now = dict(leaves(saved["config"])), dict(leaves(config))
    if now["train.max_duration"] != AUTO:
        before["train.max_duration"] = seconds_at_once(saved)
    for key in now:
        if key in before and before[key] != now[key] and not key.startswith(OTHER_STAGES):
            yield key, before[key], now[key]


def warn_of_changes(saved: dict[str, Any], config: dict[str, Any]) -> None:
    """Print a line on stderr for each of `changes`."""
    for key, before, now in changes(saved, config):
        when = "which counts only at the start" if key.startswith(AT_START) else "from here on"
        print(f"warning: {key} was {before}, is {now} {when}; --force trains from the start", file=sys.stderr)
