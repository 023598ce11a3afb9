"""The doctor's checks of an experiment: its tokens and checkpoints, and curves of healthy and sick trainings."""

from __future__ import annotations

import math
import random
import zipfile
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import provenance
from local.common.atomic import PREFIX, atomic_write
from local.data.summary import Summary
from local.data.tokenizer import train_tokenizer
from local.health.experiment import (
    CHECKS,
    check_bad_steps,
    check_checkpoints,
    check_dev_wer,
    check_leftovers,
    check_masks,
    check_overfitting,
    check_range,
    check_stalled,
    check_tokens,
    check_unfinished,
)
from local.health.finding import Run
from local.health.sizes import hours_of
from local.training.resume_checks import write_config
from tests.conftest import ROOT
from tests.health.examined import config, found, healthy, one, write_csv

import pytest

HEAD = ["epoch", "step", "loss", "pruned_loss", "filter_median_mask_0", "filter_share_below_half_0", "filter_median_mask_1"]
STEPS = range(20, 1280, 20)  # of tiny: 7 epochs of 182 batches, a warm-up of 200
VALID = ["epoch", "step", "simple_loss", "pruned_loss", "wer"]


def learning(step: int) -> float:
    """Return tiny's pruned loss after so many batches, about."""
    return 4.4 if step < 200 else 0.003 + 0.7 * math.exp(-(step - 200) / 120)


def lost(step: int) -> float:
    """Return that of an encoder which no longer hears anything: the entropy of the tokens."""
    return 4.4 if step < 200 else 0.115 + 0.001 * math.sin(step)


def curves(run: Run, loss: Any, wers: list[Any] | None = None, **columns: Any) -> Run:
    """Write train.csv with a loss for each step, and valid.csv with a WER for each epoch; tokens per second as tiny has."""
    rows = [{"epoch": 1 + step // 182, "step": step, "pruned_loss": loss(step), **columns} for step in STEPS]
    write_csv(run.exp_dir / "train.csv", rows, HEAD)
    wers = ["", 87, 9, 10, 2.3, 1.1, 1.1] if wers is None else wers
    valid = [{"epoch": n, "step": 182 * n, "pruned_loss": loss(182 * n), "wer": wer} for n, wer in enumerate(wers, 1)]
    write_csv(run.exp_dir / "valid.csv", valid, VALID)
    run.data_dir.mkdir(parents=True, exist_ok=True)
    Summary(run.data_dir, {"tokens": {"80": {"train": {"per second": 2.04, "hours": 1.69}}}}).write()
    return run


def tokens(run: Run, texts: list[str], saved: list[str]) -> Run:
    """Write bpe.model of `texts`, and config.yaml of a training with the tokens of `saved`."""
    lang = run.data_dir / "lang_bpe_80"
    lang.mkdir(parents=True, exist_ok=True)
    (lang / "bpe.model").write_bytes(train_tokenizer(texts, 20).model)
    run.exp_dir.mkdir(exist_ok=True)
    origin = provenance(config(), train_tokenizer(saved, 20))
    write_config(origin, run.exp_dir / "config.yaml", max_duration=40.0, parameters=2)
    return run


def test_tokens_fires(tmp_path: Path) -> None:
    other = tokens(healthy(tmp_path), ["ONE TWO"], ["SIX"])
    one(check_tokens, other, "error", f"{tmp_path}/exp/checkpoints", "tokens", "--exp-dir")
    model = tokens(healthy(tmp_path, "model.encoder.num_layers=5"), ["SIX"], ["SIX"])
    one(check_tokens, model, "error", "model.encoder.num_layers was 4, is 5")
    (tmp_path / "exp" / "config.yaml").write_text("run: 1\n", encoding="utf-8")
    one(check_tokens, model, "error", "config.yaml")
    (tmp_path / "exp" / "config.yaml").write_text("{", encoding="utf-8")
    one(check_tokens, model, "error", "config.yaml")


def test_tokens_is_quiet(tmp_path: Path) -> None:
    assert found(check_tokens, healthy(tmp_path)) == []
    assert found(check_tokens, tokens(healthy(tmp_path, "optim.lr=0.004"), ["SIX"], ["SIX"])) == []


def checkpoints(run: Run, *names: str) -> Run:
    (run.exp_dir / "checkpoints").mkdir(parents=True)
    for name in names:
        (run.exp_dir / "checkpoints" / f"{name}.pt").touch()
    return run


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["average.num=5"], ["epoch-2.pt", "average.num"]),
        (["average.num=5", "average.mode=plain"], ["epoch-3.pt", "average.num"]),
        (["average.last=2"], ["epoch-2.pt", "average.last"]),
        (["average.unit=step", "train.max_steps=1000"], ["step", "average.num"]),
    ],
)
def test_range_fires(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    """What averaging itself would say, before it reads any checkpoint."""
    run = checkpoints(healthy(tmp_path, *overrides), "epoch-4", "epoch-5", "epoch-6", "epoch-7", "step-1000")
    one(check_range, run, "error", *words)


@pytest.mark.parametrize("overrides", [["average.num=3"], ["average.num=7"], ["average.last=5", "average.num=1"]])
def test_range_is_quiet(tmp_path: Path, overrides: list[str]) -> None:
    """All is there, or the training is not done yet."""
    names = ("epoch-4", "epoch-5", "epoch-6", "epoch-7", "step-1000")
    run = checkpoints(healthy(tmp_path, *overrides), *(names if overrides != ["average.num=7"] else ["epoch-7"]))
    assert found(check_range, run) == []
    (tmp_path / "exp" / "checkpoints" / "epoch-7.pt").unlink()
    assert found(check_range, healthy(tmp_path, "average.num=6")) == []


def saved(tmp_path: Path, size: int) -> Run:
    """Write two checkpoints as torch does, as zip files; of the second the first `size` bytes."""
    run = healthy(tmp_path)
    (run.exp_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name in ("epoch-1.pt", "step-9.pt"):
        with zipfile.ZipFile(run.exp_dir / "checkpoints" / name, "w") as file:
            file.writestr("data.pkl", bytes(5000))
    path = run.exp_dir / "checkpoints" / "step-9.pt"
    path.write_bytes(path.read_bytes()[:size])
    return run


@pytest.mark.parametrize("size", [0, 3000])
def test_checkpoints_fires(tmp_path: Path, size: int) -> None:
    damaged = one(check_checkpoints, saved(tmp_path, size), "warning", f"{tmp_path}/exp/checkpoints", "step-9.pt")
    assert "epoch-1" not in str(damaged)


def test_checkpoints_is_quiet(tmp_path: Path) -> None:
    assert found(check_checkpoints, healthy(tmp_path)) == [] == found(check_checkpoints, saved(tmp_path, 10**6))


def test_bad_steps_fires(tmp_path: Path) -> None:
    (tmp_path / "exp" / "bad").mkdir(parents=True)
    for name in ("step-7.pt", "step-7-1.pt", "step-120.pt"):
        (tmp_path / "exp" / "bad" / name).touch()
    one(check_bad_steps, healthy(tmp_path), "warning", "2 steps", "7, 120", f"{tmp_path}/exp/bad")


def test_bad_steps_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "exp" / "bad").mkdir(parents=True)
    assert found(check_bad_steps, healthy(tmp_path)) == []


def test_stalled_fires(tmp_path: Path) -> None:
    one(check_stalled, curves(healthy(tmp_path), lost, ["", 100, 100, 100]), "warning", "train.csv", "0.115", "1.4 per token")
    one(check_stalled, curves(healthy(tmp_path), lost, [""]), "warning", "train.csv")


def test_stalled_is_quiet(tmp_path: Path) -> None:
    """A training that has learnt; one that falls still; one whose WER is fair; the warm-up alone; no file."""
    assert found(check_stalled, curves(healthy(tmp_path), learning)) == []
    falling = curves(healthy(tmp_path), lambda step: 4.4 if step < 200 else 0.4 - 0.0002 * step, ["", 100, 99])
    assert found(check_stalled, falling) == []
    assert found(check_stalled, curves(healthy(tmp_path), lost, ["", 90, 70, 55, 55])) == []
    assert found(check_stalled, curves(healthy(tmp_path, "train.warm_step=600"), lost, [])) == []
    assert found(check_stalled, healthy(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("columns", "layers"),
    [
        ({"filter_median_mask_0": 0.2, "filter_median_mask_1": 0.96}, "layer 0"),
        ({"filter_median_mask_0": 0.96, "filter_share_below_half_0": 0.4}, "layer 0"),
        ({"filter_median_mask_0": 0.3, "filter_median_mask_1": 0.1}, "layers 0, 1"),
    ],
)
def test_masks_fires(tmp_path: Path, columns: dict[str, float], layers: str) -> None:
    one(check_masks, curves(healthy(tmp_path), learning, **columns), "warning", layers, "gradient.threshold")


def test_masks_is_quiet(tmp_path: Path) -> None:
    masks = {"filter_median_mask_0": 0.96, "filter_share_below_half_0": 0.03, "filter_median_mask_1": 0.96}
    assert found(check_masks, curves(healthy(tmp_path), learning, **masks)) == []
    assert found(check_masks, curves(healthy(tmp_path), learning)) == []  # gradient.control=clip has no masks
    assert found(check_masks, healthy(tmp_path / "none")) == []


def rising(step: int) -> float:
    """Return a loss that is lowest in epoch 4 of 7."""
    return 0.05 + abs(step - 728) / 2000


@pytest.mark.parametrize("wers", [[""] * 7, ["", 90, 40, 30, 31, 32, 35]])
def test_overfitting_fires(tmp_path: Path, wers: list[Any]) -> None:
    one(check_overfitting, curves(healthy(tmp_path), rising, wers), "warning", "valid.csv", "epoch 4", "average.last=4")


def test_overfitting_is_quiet(tmp_path: Path) -> None:
    """A falling loss; a rising one while the WER falls; a rise within noise."""
    assert found(check_overfitting, curves(healthy(tmp_path), learning)) == []
    assert found(check_overfitting, curves(healthy(tmp_path), rising, ["", 90, 40, 30, 29, 28, 27])) == []
    assert found(check_overfitting, curves(healthy(tmp_path), lambda step: 0.05 + step / 1e6, [""] * 7)) == []


@pytest.mark.parametrize("wers", [["", 100, 100, 100, 100, 100, 100], ["", 90, 80, 99, 97, 96, 100.0]])
def test_dev_wer_fires(tmp_path: Path, wers: list[Any]) -> None:
    one(check_dev_wer, curves(healthy(tmp_path), lost, wers), "warning", "valid.csv", "100 %")


@pytest.mark.parametrize("wers", [["", 100, 100, 100, 94], ["", 100, 100, 100], ["", "", "", "", ""], None])
def test_dev_wer_is_quiet(tmp_path: Path, wers: list[Any] | None) -> None:
    """It falls; the warm-up is hardly over; nothing is decoded; tiny's."""
    assert found(check_dev_wer, curves(healthy(tmp_path), lost, wers)) == []


def test_unfinished_fires(tmp_path: Path) -> None:
    """The figures of tiny with seed 43, which finds the alignments late; its test WER is 54 %."""
    run = curves(healthy(tmp_path), learning, ["", 100, 98.3, 100, 61.6, 24.9, 16.9])
    one(check_unfinished, run, "warning", "valid.csv", "24.9", "16.9", "train.num_epochs")


@pytest.mark.parametrize("wers", [None, ["", 87, 40, 20, 12, 8, 5], ["", 100, 98.3, 100, 61.6, 24.9]])
def test_unfinished_is_quiet(tmp_path: Path, wers: list[Any] | None) -> None:
    """Without a large fall, and while it still trains."""
    assert found(check_unfinished, curves(healthy(tmp_path), learning, wers)) == []


def test_leftovers_fires(tmp_path: Path) -> None:
    run = healthy(tmp_path)
    places = [run.exp_dir, run.exp_dir / "checkpoints", run.data_dir / "cuts"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{PREFIX}123-file.pt").touch()
    (run.data_dir / f"{PREFIX}123-lang_bpe_80").mkdir()
    one(check_leftovers, run, "warning", "4 unfinished", str(run.data_dir))
    assert len(list(tmp_path.rglob(f"{PREFIX}*"))) == 4  # all of them are still there


def test_leftovers_is_quiet(tmp_path: Path) -> None:
    """What a living program writes is not a leftover."""
    run = healthy(tmp_path)
    assert found(check_leftovers, run) == []
    with atomic_write(run.exp_dir / "averaged.pt") as path:
        assert path.is_file() and found(check_leftovers, run) == []


def test_a_damaged_table_is_an_error(tmp_path: Path) -> None:
    run = curves(healthy(tmp_path), learning)
    (run.exp_dir / "train.csv").write_bytes(b"epoch,step\n1,\xff\n")
    one(check_masks, run, "error", "train.csv")


@pytest.mark.parametrize("seed", range(20))
def test_no_table_ends_a_check(tmp_path: Path, seed: int) -> None:
    """Lines, columns and values that are missing, doubled or no numbers, and a summary of other shape."""
    run, rng = curves(healthy(tmp_path, "train.warm_share=0.1"), rising, ["", 90, 40, 30, 31, 32, 35]), random.Random(seed)
    for name in ("train.csv", "valid.csv"):
        cells = [line.split(",") for line in (run.exp_dir / name).read_text().splitlines()]
        for _ in range(rng.randint(1, 30)):
            row = rng.choice(cells[:2] if rng.random() < 0.3 else cells)
            row[rng.randrange(len(row))] = rng.choice(["", "nan", "-inf", "1e999", "x", "0", "-5", "step", "\t", "1,1"])
        (run.exp_dir / name).write_text("\n".join(",".join(row) for row in cells[: rng.randint(0, 80)]), encoding="utf-8")
    summary = rng.choice(["[]", "{}", '{"tokens": []}', '{"tokens": {"80": {"train": {"per second": "x"}}}}'])
    (run.data_dir / "summary.json").write_text(summary, encoding="utf-8")
    for check in CHECKS:
        assert all(finding.level in ("error", "warning") for finding in found(check, run))
    assert hours_of(run.config, run.data_dir, ["train"]) == 0


def test_a_finished_tiny_has_nothing(tmp_path: Path) -> None:
    """If this machine has trained tiny: the true curves of a healthy training."""
    if not (ROOT / "exp" / "tiny" / "averaged.pt").is_file():
        pytest.skip("needs exp/tiny, which ./run.sh makes")
    run = healthy(tmp_path, exp_dir=ROOT / "exp" / "tiny", data_dir=ROOT / "data" / "tiny")
    checks = (check_stalled, check_masks, check_overfitting, check_dev_wer, check_bad_steps)
    assert [finding for check in checks for finding in found(check, run)] == []
