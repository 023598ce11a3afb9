"""The length of a training: its batches, a warm-up that cannot swallow it, the time left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_file, save_file
from local.common.errors import UserError
from local.common.processes import Processes
from local.config import load_config
from local.diagnose import load_model
from local.training.run_length import RunLength
from tests.common import test_processes
from tests.common.test_processes import in_processes, module, trained
from tests.test_train import TOKENIZER, trainer, weights

import pytest
import torch

data = test_processes.data  # its fixture: a prepared corpus of 20 utterances, 60 with their copies


def warm_batches(exp_dir: Path, *overrides: str) -> int:
    return trainer(exp_dir, *overrides).length.warm_batches


def newest(exp_dir: Path) -> Path:
    return max((exp_dir / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)


# ---- the warm-up ----


def test_warm_step_cannot_swallow_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve batches: a third of them is the longest warm-up."""
    with pytest.raises(
        UserError, match=r"train\.warm_step.* 12 .*train\.num_epochs 3 x 4.*train\.warm_share=.*train\.warm_step=4"
    ):
        trainer(tmp_path / "long", "train.warm_step=5").run()
    assert not list((tmp_path / "long" / "checkpoints").iterdir())
    trainer(tmp_path / "third", "train.warm_step=4").run()
    assert re.search(r"warm-up: 4 of about 12 .*train\.warm_step", capsys.readouterr().out)
    trainer(tmp_path / "epochs", "train.warm_step=5", "train.num_epochs=4").run()


def test_a_training_that_is_meant_to_be_short_is_only_warned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, "train.warm_step=1", "train.max_steps=2").run()
    assert re.search(r"warning: .*train\.warm_step.* 2 .*train\.max_steps 2", capsys.readouterr().err)
    assert newest(tmp_path).name == "step-2.pt"
    trainer(tmp_path, "train.warm_step=100", "train.max_steps=2").run()  # it has nothing to do
    assert "nothing is left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.warm_share=0.25"], 3),
        (["train.warm_share=0.25", "train.num_epochs=10"], 10),
        (["train.warm_share=0.25", "train.max_steps=8"], 2),
        (["train.warm_share=0.25", "train.max_steps=99"], 3),
        (["train.warm_share=0.001"], 1),
        (["train.warm_share=0", "train.warm_step=4"], 4),
        (["train.warm_share=0.25", "train.warm_step=1000"], 3),
    ],
)
def test_the_warm_up_is_a_share_of_the_batches(tmp_path: Path, overrides: list[str], expected: int) -> None:
    run = trainer(tmp_path, *overrides)
    run.step = expected
    assert run.length.warm_batches == expected and run.warmup == 1.0


def test_a_share_trains_as_its_number_of_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path / "share", "train.warm_share=0.25").run()
    assert re.search(r"warm-up: 3 of about 12 .*train\.warm_share 0\.25", capsys.readouterr().out)
    trainer(tmp_path / "number", "train.warm_step=3").run()
    trainer(tmp_path / "other", "train.warm_step=4").run()
    share, number, other = (weights(tmp_path / name, "epoch-3.pt") for name in ("share", "number", "other"))
    assert all(torch.equal(share[key], number[key]) for key in share)
    assert not all(torch.equal(share[key], other[key]) for key in share)


def test_a_stopped_training_keeps_its_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, also if more epochs follow; another share is taken as a new one."""
    share = "train.warm_share=0.25"
    trainer(tmp_path / "whole", share).run()
    stopped = trainer(tmp_path / "parts", share)
    save = stopped.save

    def save_and_stop(path: Path) -> None:
        save(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert load_file(newest(tmp_path / "parts"))["progress"]["warm_batches"] == 3
    assert warm_batches(tmp_path / "parts", share, "train.num_epochs=100") == 3
    assert warm_batches(tmp_path / "parts", "train.warm_share=0.33", "train.num_epochs=100") == 132
    assert warm_batches(tmp_path / "parts", "train.warm_step=2") == 2
    trainer(tmp_path / "parts", share).run()
    whole, parts = (weights(tmp_path / name, "epoch-3.pt") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def edited(path: Path, **progress: Any) -> None:
    content = load_file(path)
    found = {**content["progress"], **progress}
    content["progress"] = {name: value for name, value in found.items() if value is not None}
    content["config"]["train"].pop("warm_share")
    save_file(content, path)


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    trainer(tmp_path, "train.max_steps=3").run()
    edited(newest(tmp_path), warm_batches=None)
    assert warm_batches(tmp_path) == 2 and trainer(tmp_path).step == 3
    assert warm_batches(tmp_path, "train.warm_share=0.25") == 3


@pytest.mark.parametrize("value", [-1, "3", 2.5])
def test_a_damaged_warm_up_is_named(tmp_path: Path, value: Any) -> None:
    trainer(tmp_path, "train.max_steps=3").run()
    edited(newest(tmp_path), warm_batches=value)
    with pytest.raises(UserError, match=r"step-3\.pt: damaged"):
        trainer(tmp_path)


def test_diagnose_knows_the_warm_up(tmp_path: Path) -> None:
    trainer(tmp_path, "train.warm_share=0.25", "train.max_steps=8").run()
    cfg = trainer(tmp_path / "other").cfg
    _, progress, _ = load_model(cfg, TOKENIZER, tmp_path, None)
    assert progress is not None and progress["step"] / progress["warm_batches"] == 4.0


@pytest.mark.parametrize("share", ["0.34", "-0.1", "half"])
def test_an_impossible_share_is_named(share: str) -> None:
    with pytest.raises(UserError, match=r"train\.warm_share"):
        load_config(None, [f"train.warm_share={share}"])


# ---- the number of batches ----


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("step", [[], ["train.batch_seconds=20"], ["train.max_duration=auto"]])
def test_batches_are_counted_for_all_processes(data: Path, size: int, step: list[str]) -> None:
    counts = []
    for rank in range(size):
        dm = module(data, *step, "train.num_epochs=5", "train.warm_share=0.1", processes=Processes(rank, size))
        if dm.max_duration is None:
            dm.max_duration = 9.0  # as the trainer sets it for auto
        length = RunLength(dm.cfg, dm, {})
        steps = sum(batch.ends_step for batch in dm.train_dataloader(1))
        assert length.per_epoch == steps and length.batches == 5 * steps and length.warm_batches == round(0.5 * steps)
        counts.append(steps)
    assert len(set(counts)) == 1 and counts[0] > 3


def test_processes_share_the_warm_up(data: Path, tmp_path: Path) -> None:
    """Two processes make half as many steps; both print nothing but the first."""
    runs = in_processes(2, lambda p: trained(data, tmp_path, "train.warm_share=0.3", processes=p))
    steps = runs[0].step
    assert [f"warm-up: {round(0.3 * steps)} of about {steps} batches" in run.text for run in runs] == [True, False]
    assert all(torch.equal(value, runs[1].weights[key]) for key, value in runs[0].weights.items())


# ---- the time left ----


def test_the_time_left_is_that_of_all_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of 12 batches takes 100 seconds, so that every batch has a line."""
    now = [0.0]
    for name in ("progress", "run_length"):
        package = "common" if name == "progress" else "training"
        monkeypatch.setattr(f"local.{package}.{name}.time.monotonic", lambda: now[0])
    run = trainer(tmp_path)
    train_pass = run.train_pass

    def slow(batch: Any) -> Any:
        now[0] += 100.0
        return train_pass(batch)

    monkeypatch.setattr(run, "train_pass", slow)
    run.run()
    lines = [line for line in capsys.readouterr().err.splitlines() if "epoch" in line and " left" in line]
    assert [re.search(r"([\d:]+) left in all", line)[1] for line in lines[:5]] == ["18:20", "16:40", "15:00", "13:20", "11:40"]  # type: ignore[index]
    assert "0:00 left in all" in lines[-1] and len(lines) == 12


def test_a_resumed_training_takes_the_pace_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("local.training.run_length.time.monotonic", lambda: now[0])
    length = trainer(tmp_path).length
    length.begin(6)
    assert length.seconds_left(6) is None
    now[0] = 30.0
    assert length.seconds_left(9) == 30.0 and length.seconds_left(12) == 0.0
