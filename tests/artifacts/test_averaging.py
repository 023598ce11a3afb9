"""The names of averages: which checkpoints each stands for. tests/test_train.py checks their values."""

from __future__ import annotations

import fcntl
from pathlib import Path

from local import average
from local.artifacts.averaging import make_average
from local.artifacts.checkpoint import load_file, provenance, save_file
from local.common.errors import UserError
from local.config import load_config
from tests.toy_experiment import SMALL, toy_tokenizer, toy_weights

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make checkpoints of 7 epochs without the second one, and of 3 steps; each epoch has 10 batches."""
    folder = tmp_path_factory.mktemp("averaging") / "checkpoints"
    cfg, tokenizer = load_config(None, SMALL), toy_tokenizer()
    names = {f"epoch-{n}": 10 * n for n in (1, 3, 4, 5, 6, 7)} | {f"step-{n}": n for n in (20, 40, 60)}
    for name, batches in names.items():
        weights = toy_weights(cfg, tokenizer, batches)
        average = {"state": {k: v.double() for k, v in weights.items()}, "batches": batches, "period": 1}
        save_file({"model": weights, "average": average, **provenance(cfg, tokenizer)}, folder / f"{name}.pt")
    return folder


@pytest.mark.parametrize(
    ("overrides", "label", "averaged"),
    [
        (["num=3"], "epoch-7-avg-3", "running: epochs 5 to 7"),
        (["num=9"], "epoch-7-avg-7", "running: epochs 1 to 7"),
        (["num=2", "last=5"], "epoch-5-avg-2", "running: epochs 4 to 5"),
        (["num=1", "unit=step"], "step-60-avg-1", "running: steps 41 to 60"),
        (["num=2", "unit=step"], "step-60-avg-2", "running: steps 21 to 60"),
        (["num=9", "mode=plain", "last=1"], "epoch-1-avg-1-plain", "plain: epoch-1.pt"),
        (["num=2", "unit=step", "mode=plain", "last=40"], "step-40-avg-2-plain", "plain: step-20.pt, step-40.pt"),
        (["num=3", "mode=plain"], "epoch-7-avg-3-plain", "plain: epoch-5.pt, epoch-6.pt, epoch-7.pt"),
        (["mode=plain", "checkpoints=[{0}/epoch-1.pt,{0}/step-20.pt]"], "step-20-avg-2-plain", "plain: epoch-1.pt, step-20.pt"),
    ],
)
def test_labels(folder: Path, overrides: list[str], label: str, averaged: str) -> None:
    options = load_config(None, [f"average.{o.format(folder)}" for o in overrides]).average
    content = make_average(folder, options)
    assert (content["label"], content["averaged"]) == (label, averaged)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["num=5"], "epoch-2.pt.*average.num"),
        (["last=2"], "epoch-2.pt.*average.last"),
        (["num=1", "last=1"], ""),
        (["num=5", "unit=step"], "6 step .*step-20.pt, step-40.pt, step-60.pt.*average.num.*train.keep_last"),
        (["num=5", "unit=step", "last=40"], "6 step .*step-20.pt, step-40.pt .*average.num"),
        (["num=2", "unit=step", "last=40"], "3 step .*average.num"),
        (["num=5", "unit=step", "mode=plain"], "5 step .*average.num"),
        (["num=6", "mode=plain"], "epoch-2.pt.*average.num"),
        (["num=9", "mode=plain"], "epoch-2.pt.*average.num"),
    ],
)
def test_a_missing_end_is_named(folder: Path, overrides: list[str], named: str) -> None:
    options = load_config(None, [f"average.{o}" for o in overrides]).average
    if named:
        with pytest.raises(UserError, match=named):
            make_average(folder, options)
    else:
        assert make_average(folder, options)["label"] == "epoch-1-avg-1"


def test_the_program_takes_its_own_of_all_overrides(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--exp-dir", str(folder.parent), "average.num=2", "--output", str(tmp_path / "a.pt"), "model.encoder.num_layers=99"]
    average.main([*argv, "decode.beam=2", "train.num_epochs=1"])
    content = load_file(tmp_path / "a.pt")
    assert content["label"] == "epoch-7-avg-2" and content["config"]["model"]["encoder"]["num_layers"] == 1
    before = (tmp_path / "a.pt").read_bytes()
    for wrong in ("average.nmu=3", "nonsense.key=3", "average.num=5"):
        with pytest.raises(SystemExit):
            average.main([*argv, wrong])
        assert wrong.split("=")[0] in capsys.readouterr().err and (tmp_path / "a.pt").read_bytes() == before


def test_an_average_into_another_folder_needs_no_lock_of_the_experiment(folder: Path, tmp_path: Path) -> None:
    argv, lock = ["--exp-dir", str(folder.parent), "average.num=2"], folder.parent / ".lock"
    with lock.open("w") as file:  # as a training holds it
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            average.main(argv)
        average.main([*argv, "--output", str(tmp_path / "look" / "averaged.pt")])
    lock.unlink()
    assert load_file(tmp_path / "look" / "averaged.pt")["label"] == "epoch-7-avg-2"
