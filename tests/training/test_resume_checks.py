"""Which keys changed between a checkpoint and the run that resumes from it, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.config import load_config, to_dict
from local.training.resume_checks import changes, check_same_run, seconds_at_once

import pytest


@pytest.fixture
def saved() -> dict[str, Any]:
    return {"config": to_dict(load_config(None, ["train.max_duration=60"])), "progress": {"max_duration": 60.0}}


def changed(saved: dict[str, Any], *overrides: str) -> list[tuple[str, Any, Any]]:
    return list(changes(saved, to_dict(load_config(None, ["train.max_duration=60", *overrides]))))


def test_keys_of_training_count_and_those_of_other_stages_do_not(saved: dict[str, Any]) -> None:
    assert changed(saved) == []
    assert changed(saved, "decode.beam=9", "average.num=3", "lm.dim=8", "ablation.num_epochs=2") == []
    lr, seed = saved["config"]["optim"]["lr"], saved["config"]["train"]["seed"]
    assert sorted(changed(saved, "optim.lr=0.5", "train.seed=7", "decode.beam=9")) == [
        ("optim.lr", lr, 0.5),
        ("train.seed", seed, 7),
    ]


def test_auto_counts_as_the_number_that_it_was(saved: dict[str, Any]) -> None:
    saved["config"]["train"]["max_duration"] = "auto"
    assert seconds_at_once(saved) == 60.0 and changed(saved) == []
    assert changed(saved, "train.max_duration=80") == [("train.max_duration", 60.0, 80.0)]
    assert changed(saved, "train.max_duration=auto") == []


def test_a_key_that_older_checkpoints_lack_is_no_change(saved: dict[str, Any]) -> None:
    older = copy.deepcopy(saved)
    del older["config"]["optim"]["lr"], older["progress"]["max_duration"]
    assert changed(older, "optim.lr=0.5") == [] and seconds_at_once(older) == 60.0


def refused(saved: dict[str, Any], **now: Any) -> str:
    """Return the message that `check_same_run` gives."""
    with pytest.raises(UserError) as e:
        check_same_run({"tokens_hash": "a", **saved}, {"tokens_hash": "a", **now}, Path("exp/epoch-1.pt"))
    return str(e.value)


def test_another_model_is_refused_with_its_keys_and_both_values(saved: dict[str, Any]) -> None:
    now = to_dict(load_config(None, ["model.joiner.dim=24", "model.encoder.norm=layer", "optim.lr=0.5"]))
    message = refused(saved, config=now)
    dim = saved["config"]["model"]["joiner"]["dim"]
    assert "exp/epoch-1.pt" in message and f"model.joiner.dim was {dim}, is 24" in message
    assert "model.encoder.norm was basic, is layer" in message and "optim.lr" not in message
    assert "optim.name was eve, is adam" in refused(saved, config=to_dict(load_config(None, ["optim.name=adam"])))
    del saved["config"]["model"]["joiner"]["dim"]
    assert "model.joiner.dim was not set, is 24" in refused(saved, config=now)
    assert "bpe.model" in refused(saved, config=saved["config"], tokens_hash="b")


def test_many_keys_are_counted(saved: dict[str, Any]) -> None:
    keys = ("d_model", "rnn_hidden_size", "dim_feedforward", "num_layers", "dropout")
    message = refused(saved, config=to_dict(load_config(None, [f"model.encoder.{key}=1" for key in keys])))
    assert sum(f"model.encoder.{key} was" in message for key in keys) == 3 and "2 more" in message


def test_the_same_run_is_accepted(saved: dict[str, Any]) -> None:
    now = to_dict(load_config(None, ["optim.lr=0.5", "train.num_epochs=99"]))
    check_same_run({"tokens_hash": "a", **saved}, {"tokens_hash": "a", "config": now}, Path("epoch-1.pt"))
