"""train.max_duration=auto in training: it equals the chosen number, which a resumed run keeps and all processes share."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from local.artifacts.checkpoint import load_file, save_file
from local.common.errors import UserError
from local.common.meter import Meter
from local.common.processes import Processes
from local.config import config_from_dict, load_config, to_dict
from local.data.datamodule import AsrDataModule
from local.diagnose import main as diagnose
from local.training import memory_plan
from local.training.memory_plan import LATER_BYTES, SHARE, PassMeter, Shape
from local.training.trainer import Trainer
from model.build import build_model
from tests.common import test_processes
from tests.common.test_processes import SMALL, in_processes, module, needs_launcher, trained

import pytest
import torch

CPU = torch.device("cpu")
AUTO = "train.max_duration=auto"
SHORT = ["train.max_steps=4"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a pass")
data = test_processes.data  # its fixture: a prepared corpus of 20 utterances, 60 with their copies

# ---- training ----


def fixed(monkeypatch: pytest.MonkeyPatch, *rooms: float) -> list[Shape]:
    """Let a pass take 2 MB and 1 MB per second, and let one of `rooms` seconds fit into the memory of each process."""
    parameters = sum(p.numel() for p in build_model(load_config(None, SMALL), 20).parameters())
    asked: list[Shape] = []

    def measured(self: PassMeter, shape: Shape) -> float:
        asked.append(shape)
        return 1e6 * (2 + shape.seconds)

    def free(device: torch.device) -> float:
        room = rooms[int(os.environ.get("RANK", "0")) % len(rooms)]
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (1e6 * (2 + room) + LATER_BYTES * parameters) / SHARE

    monkeypatch.setattr(PassMeter, "__call__", measured)
    monkeypatch.setattr(memory_plan, "free_bytes", free)
    monkeypatch.setattr(Meter, "tells_peaks", lambda self: True)
    return asked


def saved_seconds(exp: Path) -> float:
    return load_file(max((exp / "checkpoints").glob("*.pt"), key=os.path.getmtime))["progress"]["max_duration"]


def same(a: SimpleNamespace, b: SimpleNamespace) -> bool:
    return a.sums == b.sums and all(torch.equal(value, b.weights[k]) for k, value in a.weights.items())


@linux
def test_auto_trains_as_its_number_does(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, after real probes, which use random numbers of their own."""
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 60e6)
    auto = trained(data, tmp_path / "auto", AUTO, *SHORT)
    seconds = saved_seconds(tmp_path / "auto")
    assert f"train.max_duration is {seconds:g}\n" in auto.text and auto.text.count("memory:") == 1
    number = trained(data, tmp_path / "number", f"train.max_duration={seconds}", *SHORT)
    assert "memory:" not in number.text and same(auto, number) and saved_seconds(tmp_path / "number") == seconds
    assert len(auto.sums) > 1


def test_the_loaders_follow_the_plan(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, 9.46)
    dm = module(data, AUTO)
    trainer = Trainer(dm.cfg, dm, tmp_path, CPU)
    assert trainer.max_duration == dm.max_duration == 9.4 and dm.cfg.train.max_duration == "auto"

    def batches(m: AsrDataModule) -> list[list[list[str]]]:
        return [[b.ids for b in loader] for loader in (m.train_dataloader(1), m.valid_dataloader())]

    same_number, other_number = module(data, "train.max_duration=9.4"), module(data, "train.max_duration=12")
    assert batches(dm) == batches(same_number) != batches(other_number)


def test_the_number_fits_memory_step_and_longest_utterance(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = module(data).train_lengths(1000)
    total, longest = sum(d for d, _ in lengths), max(d for d, _ in lengths)
    assert len(lengths) == 60 and all(u > 0 for _, u in lengths) and len(module(data).train_lengths(7)) == 7
    for n, (room, step, expected) in enumerate(
        [(1000, 0, total), (1000, 25, 25), (9.46, 25, 9.4), (0.01, 25, math.ceil(longest)), (-3, 25, math.ceil(longest))]
    ):
        fixed(monkeypatch, room)
        dm = module(data, AUTO, f"train.batch_seconds={step}")
        assert Trainer(dm.cfg, dm, tmp_path / str(n), CPU).max_duration == pytest.approx(expected)
        err = capsys.readouterr().err
        assert ("train.batch_seconds" in err) == (step == 0)
        assert (f"({longest:.1f} s)" in err) == (room < 1)
        if room == 9.46:  # a step has several passes
            ends = [b.ends_step for b in dm.train_dataloader(1)]
            assert ends.count(True) < len(ends)


def test_a_resumed_run_keeps_its_number(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fixed(monkeypatch, 9.46)
    whole = trained(data, tmp_path / "whole", AUTO, *SHORT)
    first = trained(data, tmp_path / "parts", AUTO, "train.max_steps=2")
    asked.clear()
    fixed(monkeypatch, 5.0)
    parts = trained(data, tmp_path / "parts", AUTO, *SHORT)
    assert not asked and "memory:" not in parts.text and "warning: train.max_duration" not in parts.text
    assert first.sums + parts.sums == whole.sums and all(torch.equal(v, parts.weights[k]) for k, v in whole.weights.items())
    assert saved_seconds(tmp_path / "parts") == 9.4


@pytest.mark.parametrize(
    ("then", "now", "seconds", "warning"),
    [
        (AUTO, "train.max_duration=9.4", 9.4, None),
        (AUTO, "train.max_duration=6", 6.0, "train.max_duration was 9.4, is 6.0"),
        ("train.max_duration=8", AUTO, 9.4, "train.max_duration was 8.0, is auto"),
        ("train.max_duration=8", "train.max_duration=8.0", 8.0, None),
    ],
)
def test_resuming_with_another_number(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, now: str, seconds: float, warning: str | None
) -> None:
    fixed(monkeypatch, 9.46)
    trained(data, tmp_path, then, "train.max_steps=1")
    resumed = trained(data, tmp_path, now, *SHORT)
    assert saved_seconds(tmp_path) == seconds
    assert warning in resumed.text if warning else "warning: train.max_duration was" not in resumed.text


def test_older_checkpoints_are_resumed_and_damaged_ones_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(monkeypatch, 9.46)
    trained(data, tmp_path, "train.max_duration=8", "train.max_steps=2")
    path = tmp_path / "checkpoints" / "step-2.pt"
    content = load_file(path)
    del content["progress"]["max_duration"]
    save_file(content, path)
    assert "warning: train.max_duration" not in trained(data, tmp_path, "train.max_duration=8", "train.max_steps=3").text
    (tmp_path / "checkpoints" / "step-3.pt").unlink()
    for wrong in (-1.0, "much", None):
        content["progress"]["max_duration"] = wrong
        save_file(content, path)
        with pytest.raises(UserError, match=r"step-2\.pt: damaged"):
            trained(data, tmp_path, "train.max_duration=8")


@needs_launcher
def test_processes_take_the_least(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, 30.0, 9.46)

    def chosen(processes: Processes) -> float | None:
        dm = module(data, AUTO, processes=processes)
        Trainer(dm.cfg, dm, tmp_path, CPU, processes)
        return dm.max_duration

    assert in_processes(2, chosen) == [9.4, 9.4]


def test_auto_is_refused_if_no_peak_can_be_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "tells_peaks", lambda self: False)
    with pytest.raises(UserError, match=r"'train\.max_duration'"):
        trained(data, tmp_path, AUTO)


def test_other_programs_use_the_number_of_the_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'train\.max_duration'"):
        module(data, AUTO).train_dataloader(1)
    fixed(monkeypatch, 9.46)
    trained(data, tmp_path, AUTO, "train.max_steps=1")
    seen: list[float | None] = []
    limit = AsrDataModule._limit
    monkeypatch.setattr(AsrDataModule, "_limit", lambda self: seen.append(self.max_duration) or limit(self))
    diagnose(["--data-dir", str(data), "--exp-dir", str(tmp_path), "--batches", "1", *SMALL, AUTO])
    assert seen and set(seen) == {9.4}


# ---- configuration ----


@pytest.mark.parametrize("value", ["foo", "0", "-1", "null", "true", "[3]", "nan", "Auto", "''"])
def test_wrong_values_name_the_key(value: str) -> None:
    with pytest.raises(UserError, match=r"max_duration=.*key 'train\.max_duration'") as e:
        load_config(None, [f"train.max_duration={value}"])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "value"), [("auto", "auto"), ("12", 12.0), ("1e3", 1000.0), ("'7.5'", 7.5), (".inf", math.inf)]
)
def test_numbers_and_auto_survive_a_checkpoint(text: str, value: float | str) -> None:
    cfg = load_config(None, [f"train.max_duration={text}"])
    assert cfg.train.max_duration == value and type(cfg.train.max_duration) is type(value)
    assert config_from_dict(to_dict(cfg)) == cfg
    assert load_config(None).train.max_duration == 300.0
