"""What is said of a configuration that changed between a checkpoint and the run that goes on from it."""

from __future__ import annotations

import copy
from typing import Any

from local.config import load_config, to_dict
from local.training.resume_checks import changes, flat, seconds_at_once

import pytest


@pytest.fixture
def saved() -> dict[str, Any]:
    return {"config": to_dict(load_config(None, ["train.max_duration=60"])), "progress": {"max_duration": 60.0}}


def changed(saved: dict[str, Any], *overrides: str) -> list[tuple[str, Any, Any]]:
    return list(changes(saved, to_dict(load_config(None, ["train.max_duration=60", *overrides]))))


def test_keys_of_training_are_told_those_of_other_stages_are_not(saved: dict[str, Any]) -> None:
    assert changed(saved) == []
    assert changed(saved, "decode.beam=9", "average.num=3", "lm.dim=8", "ablation.num_epochs=2") == []
    lr, seed = saved["config"]["optim"]["lr"], saved["config"]["train"]["seed"]
    assert sorted(changed(saved, "optim.lr=0.5", "train.seed=7", "decode.beam=9")) == [
        ("optim.lr", lr, 0.5), ("train.seed", seed, 7),
    ]  # fmt: skip


def test_the_number_that_auto_was_counts(saved: dict[str, Any]) -> None:
    saved["config"]["train"]["max_duration"] = "auto"
    assert seconds_at_once(saved) == 60.0 and changed(saved) == []
    assert changed(saved, "train.max_duration=80") == [("train.max_duration", 60.0, 80.0)]
    assert changed(saved, "train.max_duration=auto") == []


def test_a_key_that_older_checkpoints_lack_is_no_change(saved: dict[str, Any]) -> None:
    older = copy.deepcopy(saved)
    del older["config"]["optim"]["lr"], older["progress"]["max_duration"]
    assert changed(older, "optim.lr=0.5") == [] and seconds_at_once(older) == 60.0


def test_flat_joins_keys_by_dots() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [2]}, "e": 3, "f": {}}) == {"a.b.c": 1, "a.d": [2], "e": 3}
