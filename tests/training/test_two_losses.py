"""Training with the CTC head and with two copies of each utterance: batches, memory, processes, resuming, records."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from local.artifacts.averaging import make_average
from local.artifacts.checkpoint import load_file, model_from
from local.common.errors import UserError
from local.common.processes import Processes
from local.config import load_config
from local.config.presets import batches_per_epoch
from local.data.tokenizer import BLANK_ID
from local.training import losses as losses_module
from local.training.memory_plan import PassMeter, Shape, probe
from local.training.trainer import Trainer
from local.training.validation import Validator
from model.build import build_model
from model.search import get_search
from tests.common import test_processes
from tests.common.test_processes import (
    EXACT,
    SMALL,
    assert_same_training,
    in_processes,
    module,
    needs_launcher,
    one_after_another,
    trained,
)
from tests.training.test_max_duration import AUTO, fixed

import pytest
import torch

CPU = torch.device("cpu")
CTC = ["loss.ctc_scale=0.3"]
CR = [*CTC, "loss.cr_scale=0.2"]
data = test_processes.data  # its fixture: a prepared corpus of 20 utterances, 60 with their copies
pytestmark = pytest.mark.usefixtures("one_thread")


def columns(exp: Path, name: str = "train.csv") -> dict[str, list[str]]:
    with (exp / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [row[key] for row in rows] for key in rows[0]}


# ---- batches ----


def test_both_copies_count_as_audio(data: Path) -> None:
    """A pass has no more seconds than asked for; an epoch has twice the steps, and each utterance once in each."""
    for limits in (["train.max_duration=12"], ["train.max_duration=6", "train.batch_seconds=24"]):
        limit = 100 * float(limits[0].split("=")[1])
        alone, twice = module(data, *CTC, *limits), module(data, *CR, *limits)
        batches = list(twice.train_dataloader(1))
        assert sorted(i for b in batches for i in b.ids) == sorted(i for b in alone.train_dataloader(1) for i in b.ids)
        assert all(2 * b.inputs[..., 0].numel() <= limit + 4 * len(b) for b in batches if len(b) > 1)
        assert all(b.second is not None and b.second.shape == b.inputs.shape for b in batches)
        assert 1.5 * alone.batches_per_epoch() <= twice.batches_per_epoch() == sum(b.ends_step for b in batches)
        assert [b.ids for b in alone.valid_dataloader()] == [b.ids for b in twice.valid_dataloader()]
    estimates = [batches_per_epoch(10.0, module(data, *keys).cfg) for keys in (CTC, CR)]
    assert estimates[1] == 2 * estimates[0]


# ---- memory ----


def test_the_plan_counts_both_copies(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fixed(monkeypatch, 30.0)
    sizes = []
    for keys in (CTC, CR):
        dm = module(data, AUTO, *keys)
        sizes.append(Trainer(dm.cfg, dm, tmp_path / str(len(keys)), CPU).max_duration)
        copies = dm.cfg.loss.copies
        assert {shape.copies for shape in asked} == {copies}
        assert all(shape.seconds == pytest.approx(copies * shape.rows * shape.frames / 100) for shape in asked)
        asked.clear()
    # As many seconds; a head takes a few bytes.
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05) and sizes[0] < 31


def test_probes_of_two_copies_have_the_seconds_of_one() -> None:
    """About, because a pass has whole utterances; and the measured model gets both copies."""
    plain, twice = (probe(lambda shape: shape.seconds, 4.0, 30, 4e9, copies) for copies in (1, 2))
    assert [s.seconds for s, _ in twice] == pytest.approx([s.seconds for s, _ in plain], rel=0.3)
    measure = PassMeter(load_config(None, [*SMALL, *CR, "model.encoder.num_layers=1"]), 20, CPU)
    seen: list[Any] = []
    forward = measure.model.forward

    def recorded(x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        seen.append((x.shape, options["second"].shape))
        return forward(x, *arguments, **options)

    measure.model.forward = recorded  # type: ignore[method-assign]
    measure(Shape(3, 100, 5, copies=2))
    assert seen == [((3, 100, 80), (3, 100, 80))]


def test_a_pass_without_memory_is_halved_with_its_second_copies(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*EXACT, *CR, "gradient.control=none", "train.max_duration=24", "train.max_steps=5"]
    plain = trained(data, tmp_path / "plain", *options)
    forward = losses_module.forward_losses
    split: list[int] = []

    def limited(model: Any, batch: Any, **more: Any) -> Any:
        if model.training and len(batch) > 2:
            split.append(len(batch))
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(model, batch, **more)

    monkeypatch.setattr("local.training.step.forward_losses", limited)
    halved = trained(data, tmp_path / "halved", *options)
    assert split and "halved" in halved.text
    assert_same_training(plain, halved)


@pytest.mark.slow
def test_accumulated_passes_are_one_large_batch(data: Path, tmp_path: Path) -> None:
    options = [*EXACT, *CR, "gradient.control=none", "train.batch_seconds=36", "train.max_steps=8"]
    large = trained(data, tmp_path / "large", *options, "train.max_duration=36")
    assert_same_training(large, trained(data, tmp_path / "parts", *options, "train.max_duration=9"))


# ---- processes, resuming ----


@needs_launcher
def test_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    """All five losses, the weights and the dev losses."""
    options = [*EXACT, *CR, "train.max_duration=16", "train.max_steps=4"]
    alone = trained(data, tmp_path / "alone", *options, module_of=one_after_another(2))
    runs = in_processes(2, lambda p: trained(data, tmp_path / "runs", *options, processes=p))
    for run in runs:
        assert_same_training(alone, run)
        assert all(torch.equal(value, runs[0].weights[k]) for k, value in run.weights.items())
    assert all(sums[3] > 0 and sums[4] > 0 for sums in alone.sums)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted(data: Path, tmp_path: Path, workers: int) -> None:
    """With dropout and with masks and time warping of both copies."""
    options = [*CR, f"data.num_workers={workers}", "train.max_steps=6", "augment.time_warp_factor=20"]
    whole = trained(data, tmp_path / "whole", *options)
    first = trained(data, tmp_path / "parts", *options, "train.max_steps=3")
    parts = trained(data, tmp_path / "parts", *options)
    assert first.sums + parts.sums == whole.sums and len(first.sums) == 3 < len(whole.sums)
    assert all(torch.equal(value, parts.weights[k]) for k, value in whole.weights.items())
    other = trained(data, tmp_path / "other", *options, "augment.time_warp_factor=0", "train.max_steps=1")
    assert other.sums[0] != whole.sums[0], "the warping must count"


def refused(data: Path, exp: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as e:
        trained(data, exp, *overrides)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_training_with_a_head_cannot_become_one_without(data: Path, tmp_path: Path) -> None:
    short = ["train.max_steps=1"]
    trained(data, tmp_path / "off", *short)
    trained(data, tmp_path / "on", *CTC, *short)
    more = ["train.max_steps=2"]
    for name, now, values in (("off", CTC, "was 0, is 0.3"), ("on", ["loss.ctc_scale=0"], "was 0.3, is 0")):
        said = refused(data, tmp_path / name, *now, *more)
        assert "step-1.pt" in said and f"loss.ctc_scale {values}" in said
    # Another weight, and two copies from here on, are changes as any other.
    text = trained(data, tmp_path / "on", "loss.ctc_scale=0.1", "loss.cr_scale=0.1", *more).text
    assert "loss.ctc_scale was 0.3, is 0.1" in text and "loss.cr_scale was 0.0, is 0.1" in text


# ---- what a training leaves ----


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return a training of two epochs with both losses."""
    exp = tmp_path_factory.mktemp("both")
    found = trained(data, exp, *CR, "train.num_epochs=2", "train.log_every=1")
    return SimpleNamespace(exp=exp, data=data, **vars(found))


def test_the_records_have_both_losses(run: SimpleNamespace) -> None:
    train, valid = columns(run.exp), columns(run.exp, "valid.csv")
    for name, place in (("ctc_loss", 3), ("consistency_loss", 4)):
        expected = [sums[place] / sums[5] for sums in run.sums]
        assert [float(v) for v in train[name]] == pytest.approx(expected, rel=1e-4) and min(expected) > 0
    assert all(float(v) > 0 for v in valid["ctc_loss"]) and "consistency_loss" not in valid
    assert all(float(v) > 0 for v in train["gradient_norm_ctc_head"])
    # The loss that is minimised, once the pruned loss has its full weight.
    last = {name: float(values[-1]) for name, values in train.items()}
    parts = 0.5 * last["simple_loss"] + last["pruned_loss"] + 0.3 * last["ctc_loss"] + 0.2 * last["consistency_loss"]
    assert last["loss"] == pytest.approx(parts, rel=1e-4)
    assert run.text.count(", CTC ") == 2


def test_the_validation_decodes_all_frames(data: Path) -> None:
    skip = "decode.blank_skip=0.5", "decode.by_method.greedy_search.blank_skip=0.9", "decode.blank_penalty=0.25"
    dm = module(data, *CTC, *skip)
    validator = Validator(build_model(dm.cfg, dm.tokenizer.vocab_size).eval(), dm.cfg, dm, Processes(), CPU)
    options = validator._decoder().recognisers["greedy_search"].options
    assert "blank_skip" not in options and options["blank_penalty"] == 0.25


def test_the_head_is_averaged_and_decodes(run: SimpleNamespace) -> None:
    cfg = load_config(None, [*SMALL, *CR, "average.num=1"])
    content = make_average(run.exp / "checkpoints", cfg.average)
    name = "ctc_head.output_linear.weight"
    weights = [load_file(run.exp / "checkpoints" / f"epoch-{n}.pt")["model"][name] for n in (1, 2)]
    assert not torch.equal(content["model"][name].float(), weights[1])
    assert (content["model"][name] - weights[1]).norm() < (weights[0] - weights[1]).norm()
    model, _, _ = model_from(content, run.exp / "averaged.pt")
    batch = next(iter(module(run.data).valid_dataloader()))
    with torch.no_grad():
        out, lens, _ = model.encoder(batch.inputs, batch.input_lens)
        assert model.ctc_head is not None
        best = model.ctc_head(out).argmax(-1)
    found = get_search("ctc_greedy_search")(model, out, lens)
    for hypothesis, row, length in zip(found, best, lens.tolist(), strict=True):
        kept = row[:length].unique_consecutive()
        assert hypothesis.tokens == kept[(kept != BLANK_ID) & (kept != model.unk_id)].tolist()


def test_a_ctc_loss_that_is_not_finite_names_its_utterance(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = next(iter(module(data, *CTC).train_dataloader(1))).ids[0]
    forward = losses_module.forward_losses

    def spoilt(model: Any, batch: Any, **more: Any) -> Any:
        found = forward(model, batch, **more)
        scale = torch.tensor([math.inf if i == victim else 1.0 for i in batch.ids])
        return found._replace(ctc=found.ctc * scale)

    monkeypatch.setattr("local.training.step.forward_losses", spoilt)
    found = trained(data, tmp_path, *CTC, "train.max_steps=2")
    assert found.bad_steps == 1 and re.search(rf"step 1 .*loss.* {victim};", found.text)
