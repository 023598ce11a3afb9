"""Test short trainings: reproducible, with the trainer's losses; gradients by sequence; both sections on a toy corpus."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from local.common.html_page import Page
from local.config import load_config
from local.config.schema import Config
from local.data.datamodule import AsrDataModule
from local.training.trainer import Trainer
from model.build import build_model
from model.encoder.subsampling import subsampled
from studies import norms, optimisers
from studies import short_training as short
from tests.toy_experiment import SMALL, make_trainable, toy_tokenizer, write_toy_lang

import pytest
import torch
from lhotse import SupervisionSet
from torch import nn

TINY = ("data.num_workers=0", "train.warm_step=2", "model.encoder.num_layers=2", *SMALL[:3])
PLAIN_NORMS = ("basic", "layer", "group", "instance", "none")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the toy corpus with the same three utterances in the training and the dev part."""
    data, cuts = make_trainable(tmp_path_factory.mktemp("toy"))
    for part in ("train", "test"):
        cuts.to_file(data / "cuts" / f"{part}.jsonl.gz")
    write_toy_lang(data)
    (data / "manifests").mkdir()
    SupervisionSet.from_segments(s for c in cuts for s in c.supervisions).to_file(data / "manifests/supervisions_test.jsonl.gz")
    return data


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Use a model of two layers of 16, in this process."""
    monkeypatch.setattr(short, "SMALL", (*TINY, "lm.dim=8", "lm.hidden=8", "lm.num_layers=1", "lm.batch_tokens=20"))


def small(*overrides: str) -> Config:
    return short.small_config(load_config(None), *overrides)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_batches_are_nested_and_follow_the_seed(data_dir: Path) -> None:
    cfg = small()

    def ids(cfg: Config, size: int) -> list[list[str]]:
        return [batch.ids for batch, _ in zip(short.Speech(cfg, data_dir).batches(size), range(12), strict=False)]

    large = ids(cfg, 3)
    assert large == ids(cfg, 3) != ids(small("train.seed=7"), 3)
    assert ids(cfg, 2) == [batch[:2] for batch in large]
    assert all(sorted(batch) == ["a-1", "c-3", "d-4"] for batch in large) and len({tuple(batch) for batch in large}) > 1


def test_groups_have_utterances_of_similar_length(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech = short.Speech(small(), data_dir)
    speech.train = [cut.with_id(f"{cut.id}-{i}") for i in range(8) for cut in speech.train]
    monkeypatch.setattr(short, "LARGEST", 8)
    epoch = [batch for batch, _ in zip(speech.batches(8), range(3), strict=False)]
    assert all(len(set(batch.input_lens.tolist())) == 1 for batch in epoch)
    assert len({i for batch in epoch for i in batch.ids}) == 24  # every utterance once


def test_losses_are_the_trainers(data_dir: Path, tmp_path: Path) -> None:
    """Compare the weights after two steps of the trainer and of the study; the second step has the pruned loss."""
    cfg = small("train.warm_step=1", "augment.speed_perturb=false", "augment.spec_augment=false", "gradient.control=clip")
    trainer = Trainer(cfg, AsrDataModule(cfg, data_dir, toy_tokenizer()), tmp_path, torch.device("cpu"))
    speech = short.Speech(cfg, data_dir)
    batches = [batch for batch, _ in zip(speech.batches(3), range(2), strict=False)]
    torch.manual_seed(cfg.train.seed)
    model = build_model(cfg, speech.tokenizer.vocab_size)
    optimizer = optimisers.make_optimizer(model.parameters(), cfg.optim)
    seen = torch.get_rng_state()
    short.train_recogniser(model, optimizer, speech, cfg, 3, lambda step: {"loss": 0.0}, steps=2, every=2)
    torch.set_rng_state(seen)
    trainer.model.train()
    trainer.schedule.lr_batches = 1e9  # the study's rate is constant
    for batch in batches:
        sums = trainer.train_pass(batch)
        assert sums is not None and sums.utterances == 3
    for (name, a), b in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("norm", PLAIN_NORMS)
def test_sequence_gradients_do_not_depend_on_the_batch(data_dir: Path, norm: str) -> None:
    """Compare one padded batch with batches of one utterance, and with a gradient only through the LSTM."""
    cfg = small(f"model.encoder.norm={norm}", *norms.PLAIN)
    speech = short.Speech(cfg, data_dir)
    same = norm == "instance"  # it uses the padding too, so its batch must have no padding
    speech.dev = [speech.dev[0].with_id(str(i)) for i in range(2)] if same else speech.dev
    torch.manual_seed(0)
    model = build_model(cfg, speech.tokenizer.vocab_size).double()
    model.encoder.encoder_embed.register_forward_pre_hook(lambda module, args: (args[0].double(),))
    together = norms.gradients_at_lstms(model, speech.held_out(), cfg.loss)
    alone = norms.gradients_at_lstms(model, speech.held_out(1), cfg.loss)
    assert together.shape == (2, len(speech.dev))
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=0)
    if norm != "basic":
        return
    (batch,) = speech.held_out(1)[:1]  # add a variable to the input of one layer's LSTM only
    frames = int(subsampled(batch.input_lens[0]))
    for i, layer in enumerate(model.encoder.encoder.layers):
        delta = torch.zeros(frames, 1, 16, dtype=torch.float64, requires_grad=True)
        hook = layer.lstm.register_forward_pre_hook(lambda module, args, delta=delta: (args[0] + delta, *args[1:]))
        short.utterance_losses(model, batch, cfg.loss, warmup=2.0)["loss"].sum().backward()
        hook.remove()
        assert delta.grad is not None
        torch.testing.assert_close(delta.grad.square().mean().sqrt(), alone[i, 0], rtol=1e-9, atol=0)


def test_spread_by_numpy_like_arithmetic(data_dir: Path) -> None:
    cfg = small(*norms.PLAIN)
    speech = short.Speech(cfg, data_dir)
    torch.manual_seed(0)
    model = build_model(cfg, speech.tokenizer.vocab_size)
    rows = norms.gradient_spread(model, speech.held_out(1), cfg.loss)
    squares = [sum(float(p.grad.square().sum()) for p in layer.parameters()) for layer in model.encoder.encoder.layers]
    for row, rms, square in zip(rows, norms.gradients_at_lstms(model, speech.held_out(1), cfg.loss), squares, strict=True):
        low, middle, high = sorted(rms.tolist())
        assert row["median_rms"] == pytest.approx(middle)
        assert row["max_over_median"] == pytest.approx(high / middle)
        assert row["p95_over_median"] == pytest.approx((0.1 * middle + 0.9 * high) / middle)
        assert row["parameter_gradient_norm"] == pytest.approx(math.sqrt(square))
    assert norms.layer_ratio(rows) == pytest.approx(math.sqrt(max(squares) / min(squares)))


def test_measuring_changes_nothing(data_dir: Path) -> None:
    """Check that a run is reproducible and that measuring the gradient changes no weights or batch statistics."""
    job = norms.NormRun(small("model.encoder.norm=batch", "gradient.control=none"), data_dir, 2, 4)
    first, second = norms.run(job), norms.run(job)
    assert first == second
    cfg, speech = job.cfg, short.Speech(job.cfg, data_dir)
    torch.manual_seed(cfg.train.seed)
    model = build_model(cfg, speech.tokenizer.vocab_size)
    optimizer = optimisers.make_optimizer(model.parameters(), cfg.optim)
    short.train_recogniser(model, optimizer, speech, cfg, 2, lambda step: {"loss": 0.0}, steps=4, every=4)
    assert short.held_out_losses(model, speech.held_out(), cfg.loss)["loss"] == first[0][-1]["loss"]


def test_a_non_finite_held_out_loss_ends_the_run() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)

    def loss(step: int) -> torch.Tensor:
        return model(torch.ones(1, 1)).square().sum()

    rows = short.train(model, optimizer, loss, lambda step: {"loss": loss(step).item()}, steps=50, every=2)
    assert not math.isfinite(rows[-1]["loss"]) and rows[-1]["step"] < 50
    assert all(math.isfinite(row["loss"]) for row in rows[:-1])
    assert short.extremes({"a": 2.0, "b": math.nan, "c": 1.0}) == "lowest for c (1), highest for a (2); not finite for b"
    assert optimisers.best_rate({0.1: math.nan, 0.2: 3.0, 0.4: 2.0}) == 0.4


@pytest.mark.slow
def test_jobs_in_processes_give_the_same(data_dir: Path, one_thread: None) -> None:
    jobs = [norms.NormRun(small("gradient.control=none"), data_dir, size, 2) for size in (1, 2)]
    here = short.run_all(norms.run, jobs, "here")
    torch.set_num_threads(2)
    try:
        assert short.run_all(norms.run, jobs, "there") == here
    finally:
        torch.set_num_threads(1)


def test_sections_on_a_toy_corpus(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, cfg = Page("toy", tmp_path), load_config(None, ["data.num_workers=0"])
    monkeypatch.setattr(norms, "NORMS", ("basic", "none"))
    monkeypatch.setattr(norms, "SIZES", (2, 3))
    norms.section(page, cfg, data_dir, steps=2)
    losses, spread = read_csv(tmp_path / "norms_loss.csv"), read_csv(tmp_path / "norms_spread.csv")
    assert len(losses) == 2 * 2 * 2 and len(spread) == 2 * 2 * 2 * 2  # norms x sizes x steps (x layers)
    numbers = [float(value) for row in losses + spread for key, value in row.items() if key != "norm"]
    assert all(map(math.isfinite, numbers))

    rates = {optimisers.LM: {"adam": 1e-3}, optimisers.RECOGNISER: {"eve": 1e-3, "sgd": 1e25}}
    monkeypatch.setattr(optimisers, "MIDDLE_RATE", rates)
    optimisers.section(page, cfg, data_dir, steps={optimisers.LM: 4, optimisers.RECOGNISER: 3})
    rows = read_csv(tmp_path / "optimisers.csv")
    assert {(r["task"], r["optimiser"]) for r in rows} == {(t, o) for t in rates for o in rates[t]}
    wild = [row for row in rows if row["task"] == optimisers.RECOGNISER and row["optimiser"] == "sgd"]
    assert all(math.isfinite(float(row["loss"])) for row in rows if row not in wild)
    assert not any(math.isfinite(float(row["loss"])) for row in wild if int(row["step"]) > 0)
    html = page.write("toy").read_text(encoding="utf-8")
    assert "not finite" in html and html.count("<table>") == 3 and html.count("<img") == 3
    assert {path.name for path in tmp_path.glob("*.png")} == {"norms_loss.png", "norms_spread.png", "optimisers.png"}
