"""Trainings with train.lstm=merged: the losses of the standard ones, and checkpoints that both read."""

from __future__ import annotations

from pathlib import Path

from tests.common import test_processes
from tests.common.test_processes import EXACT, assert_same_training, in_processes, one_after_another, trained

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")
data = test_processes.data  # its fixture: a prepared corpus of 20 utterances, 60 with their copies
OPTIONS = [*EXACT, "gradient.threshold=1"]  # the filter damps utterances in every step
MERGED = "train.lstm=merged"


def test_losses_and_weights_of_a_short_training(data: Path, tmp_path: Path) -> None:
    """Of micro-batches of several lengths, two per step. Dropout is on: both draw the same random numbers."""
    options = ["gradient.threshold=1", "train.batch_seconds=12", "train.max_duration=8"]
    standard, merged = (trained(data, tmp_path / lstm, *options, f"train.lstm={lstm}") for lstm in ("standard", "merged"))
    assert len(merged.sums) == len(standard.sums) >= 8 and merged.bad_steps == 0
    assert_same_training(standard, merged, within=1e-4)
    assert merged.sums != standard.sums  # it was computed in another way


def test_checkpoints_of_one_continue_with_the_other(data: Path, tmp_path: Path) -> None:
    whole = trained(data, tmp_path / "whole", *OPTIONS, "train.max_steps=6")
    for first, then in (("standard", "merged"), ("merged", "standard")):
        exp = tmp_path / first
        parts = [trained(data, exp, *OPTIONS, f"train.lstm={k}", f"train.max_steps={n}") for k, n in ((first, 3), (then, 6))]
        assert f"train.lstm was {first}, is {then}" in parts[1].text and "resuming from" in parts[1].text
        assert len(parts[0].sums) == len(parts[1].sums) == 3
        for a, b in zip([*parts[0].sums, *parts[1].sums], whole.sums, strict=True):
            assert a[5:8] == b[5:8] and a[:5] == pytest.approx(b[:5], rel=1e-4)


def test_resumes_bit_by_bit(data: Path, tmp_path: Path) -> None:
    whole = trained(data, tmp_path / "whole", MERGED, "train.max_steps=5")
    trained(data, tmp_path / "parts", MERGED, "train.max_steps=2")
    rest = trained(data, tmp_path / "parts", MERGED, "train.max_steps=5")
    assert len(rest.sums) == 3 and all(torch.equal(value, rest.weights[name]) for name, value in whole.weights.items())


@pytest.mark.slow
def test_two_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    alone = trained(data, tmp_path / "alone", *OPTIONS, MERGED, module_of=one_after_another(2))
    for run in in_processes(2, lambda p: trained(data, tmp_path / "runs", *OPTIONS, MERGED, processes=p)):
        assert_same_training(alone, run)
