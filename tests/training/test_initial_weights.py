"""A training that starts from another model: what is taken, what stays, what is frozen; and what does not fit."""

from __future__ import annotations

import csv
import pathlib
from pathlib import Path
from typing import Any

from local.artifacts.averaging import make_average
from local.artifacts.checkpoint import load_file, save_file
from local.common.errors import UserError
from local.common.processes import Processes
from local.config import load_config
from local.data.tokenizer import train_tokenizer
from local.training.initial_weights import freeze, of_modules, start_from
from local.training.step import StepGradient, make_scaler
from local.training.telemetry import part_of
from local.training.trainer import Trainer
from model.build import build_model
from tests.test_train import SMALL, TOKENIZER, RandomData, trainer, weights

import pytest
import torch
from torch import nn

EXACT = ["model.encoder.dropout=0", "model.encoder.layer_dropout=0", "model.encoder.balance_prob=0"]
OTHER = train_tokenizer(["TEN ONE", "NINE FOUR TEN", "EIGHT"] * 5, 18)


QUICK = [
    "train.num_epochs=1",
    "train.warm_step=1",
    "average.num=1",
    "train.logger=none",
    "train.valid_utterances=0",
    "train.save_every=0",
]


def quick(exp_dir: Path, *overrides: str) -> Trainer:
    return trainer(exp_dir, *QUICK, *overrides)


def started(*overrides: str, vocab_size: int = TOKENIZER.vocab_size) -> nn.Module:
    """Return a model as a training with these keys starts from it; the tokens are TOKENIZER's."""
    cfg = load_config(None, [*SMALL, *overrides])
    torch.manual_seed(cfg.train.seed)
    model = build_model(cfg, vocab_size)
    if cfg.train.init is not None:
        start_from(model, cfg, TOKENIZER.tokens)
    freeze(model, cfg.train.freeze)
    return model


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an experiment of one epoch, with averaged.pt."""
    exp = tmp_path_factory.mktemp("first")
    quick(exp).run()
    save_file(make_average(exp / "checkpoints", load_config(None, [*SMALL, *QUICK]).average), exp / "averaged.pt")
    return exp


def icefall_file(first: Path, folder: Path) -> Path:
    """Write the weights as icefall's trainings do: without tokens, with a path."""
    torch.save({"model": weights(first, "epoch-1.pt"), "exp_dir": pathlib.PosixPath("exp")}, folder / "epoch-30.pt")
    return folder / "epoch-30.pt"


@pytest.mark.parametrize("name", ["averaged.pt", "checkpoints/epoch-1.pt"])
def test_the_weights_are_those_of_the_file(first: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = quick(tmp_path, f"train.init={first / name}", "train.max_steps=1")
    expected = load_file(first / name)["model"]
    assert all(torch.equal(value, expected[key]) for key, value in run.model.state_dict().items())
    assert all(torch.equal(value, expected[key].double()) for key, value in run.average.state.items())
    assert (run.step, run.epoch, run.optimizer.state) == (0, 1, {}), "nothing but weights is taken"
    assert str(first / name) in capsys.readouterr().out


def test_modules(first: Path) -> None:
    fresh, model = started(), started(f"train.init={first}/averaged.pt", "train.init_modules=[encoder]")
    theirs = load_file(first / "averaged.pt")["model"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, (theirs if key.startswith("encoder.") else fresh.state_dict())[key]), key


def test_a_file_without_tokens(first: Path, tmp_path: Path) -> None:
    """Rows cannot be told without them; the encoder has none."""
    init = f"train.init={icefall_file(first, tmp_path)}"
    with pytest.raises(UserError, match=r"epoch-30\.pt .*train\.init_tokens"):
        started(init)
    started(init, "train.init_modules=[encoder]")
    (tmp_path / "bpe.model").write_bytes(TOKENIZER.model)
    model = started(init, f"train.init_tokens={tmp_path}/bpe.model")
    expected = weights(first, "epoch-1.pt")
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    (tmp_path / "other.model").write_bytes(OTHER.model)
    with pytest.raises(UserError, match=rf"epoch-30\.pt: .*\b{TOKENIZER.vocab_size} .*other\.model .*\b{OTHER.vocab_size} "):
        started(init, f"train.init_tokens={tmp_path}/other.model")


def test_other_tokens_keep_the_rows_of_shared_pieces(first: Path, tmp_path: Path) -> None:
    shared = [token for token in OTHER.tokens if token in TOKENIZER.tokens]
    assert 5 < len(shared) < OTHER.vocab_size and OTHER.tokens != TOKENIZER.tokens
    cfg = load_config(None, [*SMALL, f"train.init={first}/averaged.pt"])
    torch.manual_seed(1)
    model = build_model(cfg, OTHER.vocab_size)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    line = start_from(model, cfg, OTHER.tokens)
    assert f" {len(shared)} of {OTHER.vocab_size} " in line and f" {TOKENIZER.vocab_size}," in line
    theirs, rows = load_file(first / "averaged.pt")["model"], 0
    for name, value in model.state_dict().items():
        if fresh[name].shape == theirs[name].shape:
            assert torch.equal(value, theirs[name]), name
            continue
        for i, token in enumerate(OTHER.tokens):
            expected = theirs[name][TOKENIZER.tokens.index(token)] if token in shared else fresh[name][i]
            assert torch.equal(value[i], expected), (name, token)
            rows += 1
    assert rows == 7 * OTHER.vocab_size


def test_a_head_that_only_one_of_them_has(first: Path, tmp_path: Path) -> None:
    """Without one in the file it keeps its initial values; one in the file is left out."""
    head = "loss.ctc_scale=0.1"
    model, fresh = started(f"train.init={first}/averaged.pt", head), started(head)
    state, name = model.state_dict(), "ctc_head.output_linear.weight"
    assert torch.equal(state[name], fresh.state_dict()[name])
    theirs = load_file(first / "averaged.pt")
    save_file({**theirs, "model": state}, tmp_path / "with.pt")
    model = started(f"train.init={tmp_path}/with.pt")
    assert all(torch.equal(value, theirs["model"][key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.encoder.d_model=24"], ["(16, 2304)", "(24, 2304)", "model.encoder.d_model=16"]),
        (["model.encoder.num_layers=3"], ["encoder.encoder.layers.2.", "model.encoder.num_layers=2"]),
        (["model.encoder.num_layers=1"], ["encoder.encoder.layers.1.", "model.encoder.num_layers=2"]),
        (["model.joiner.dim=8", "model.decoder.context_size=3"], ["model.joiner.dim=16", "model.decoder.context_size=2"]),
        (["features.num_mel_bins=40"], ["(16, 2304)", "(16, 1024)", "features.num_mel_bins=80"]),
        (["model.encoder.num_layers=3", "train.init_modules=[encoder]"], ["encoder.encoder.layers.2."]),
        (["train.init_modules=[encoder, joint]"], ["train.init_modules", "'joint'", "joiner"]),
        (["train.freeze=[encoder.encoder.layers.2]"], ["train.freeze", "'encoder.encoder.layers.2'"]),
        (["train.freeze=[encoder, decoder, joiner, simple_am_proj, simple_lm_proj]"], ["train.freeze"]),
    ],
)
def test_what_does_not_fit(first: Path, overrides: list[str], named: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        started(f"train.init={first}/averaged.pt", *overrides)
    assert all(part in str(caught.value) for part in named) and "\n" not in str(caught.value), caught.value
    if "train." not in str(overrides):
        assert f"{first}/averaged.pt: " in str(caught.value)


def test_keys_that_need_a_file() -> None:
    for key in ("train.init_modules=[encoder]", "train.init_tokens=bpe.model"):
        with pytest.raises(UserError, match=key.partition("=")[0]):
            load_config(None, [key])


def test_prefixes_end_where_parts_of_names_end() -> None:
    names = ["a.layers.1.w", "a.layers.10.w", "a.layers.1_scale"]
    assert of_modules(names, ["a.layers.1"], "k") == names[:1] == of_modules(names, ["a.layers.1."], "k")
    assert of_modules(names, ["a"], "k") == names and of_modules(names, [names[1]], "k") == [names[1]]


def test_a_resumed_training_does_not_read_the_file(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It equals one that was not interrupted, with frozen parts as well."""
    start = tmp_path / "start.pt"
    start.write_bytes((first / "averaged.pt").read_bytes())
    options = [f"train.init={start}", "train.freeze=[encoder.encoder.layers.0]", "train.warm_step=0"]
    quick(tmp_path / "whole", *options).run()
    quick(tmp_path / "parts", *options, "train.max_steps=2").run()
    start.unlink()
    resumed = quick(tmp_path / "parts", *options)
    assert resumed.step == 2
    resumed.run()
    a, b = (weights(tmp_path / name, "epoch-1.pt") for name in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    capsys.readouterr()
    quick(tmp_path / "parts", "train.init=other.pt", *options[1:])
    assert "train.init was" in capsys.readouterr().err


FROZEN = {
    "encoder": ["encoder"],
    "the first layer and all below": ["encoder.encoder_embed", "encoder.encoder.layers.0"],
    "a layer": ["encoder.encoder.layers.1"],
    "all but the encoder": ["decoder", "joiner", "simple_am_proj", "simple_lm_proj"],
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_parts_do_not_change(first: Path, tmp_path: Path, name: str) -> None:
    """They stay bit for bit in the checkpoints and in their average; the optimiser and the log know nothing of them."""
    prefixes = FROZEN[name]
    options = [f"train.init={first}/averaged.pt", "train.warm_step=0", f"train.freeze=[{','.join(prefixes)}]"]
    run = quick(tmp_path, *options, "train.num_epochs=2", "average.num=1")
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.run()
    after = weights(tmp_path, "epoch-2.pt")
    averaged = make_average(tmp_path / "checkpoints", run.cfg.average)["model"]
    frozen = {key for key in before if any(key.startswith(f"{prefix}.") for prefix in prefixes)}
    assert all(torch.equal(before[key], averaged[key]) for key in frozen)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    trained = {key for key, _ in run.model.named_parameters()} - frozen
    assert moved <= trained and trained - moved <= {"decoder.embedding.scale"}  # it is at Eve's largest value
    assert len(run.optimizer.state) == len(trained)
    with (tmp_path / "train.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    logged = {column.removeprefix("gradient_norm_") for column in row if column.startswith("gradient_norm_")}
    assert logged == {part_of(key) for key in trained}
    if name.startswith("the first"):
        assert float(row["filter_min_mask_0"]) == 1.0 > float(row["filter_min_mask_1"])


def test_the_gradient_filter_acts_above_frozen_layers(tmp_path: Path) -> None:
    """The gradient of what is left is the one that it has if nothing is frozen; a low threshold makes the filter damp."""

    def gradients(frozen: list[str]) -> dict[str, torch.Tensor]:
        run = quick(tmp_path, *EXACT, "gradient.threshold=0.1")
        freeze(run.model, frozen)
        step = StepGradient(run.model, run.cfg, make_scaler("float32", run.device), run.masks, Processes(), run.device)
        run.model.train()
        step.add(RandomData().batch(1), 2.0)
        return {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}

    everything, rest = gradients([]), gradients(FROZEN["the first layer and all below"])
    assert 0 < len(rest) < len(everything) and not any(name in rest for name in everything if "layers.0." in name)
    assert all(torch.equal(everything[name], value) for name, value in rest.items())


def test_the_pruned_loss_counts_from_the_first_batch(first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.warm_step"):
        quick(tmp_path / "scratch", "train.warm_step=0").run()
    run = quick(tmp_path / "tuned", f"train.init={first}/averaged.pt", "train.warm_step=0")
    assert run.warmup == 2.0
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.model.train()
    run.train_pass(RandomData().batch(1))
    assert not torch.equal(before["joiner.output_linear.weight"], run.model.joiner.output_linear.weight)
    assert run.step == 1 and run.warmup == 2.0


@pytest.mark.parametrize(("keys", "warned"), [([], False), (["loss.lm_scale=0.125"], True), (["loss.am_scale=0.5"], True)])
def test_another_smoothing_of_the_simple_loss_is_a_warning(first: Path, keys: list[str], warned: bool) -> None:
    """The weights of the simple loss depend on it: with another one, the bounds of the pruned loss are wrong at first."""
    for more in ([], ["train.init_modules=[encoder]"]):
        cfg = load_config(None, [*SMALL, f"train.init={first}/averaged.pt", *keys, *more])
        text = start_from(build_model(cfg, TOKENIZER.vocab_size), cfg, TOKENIZER.tokens)
        assert ("loss.am_scale=0 loss.lm_scale=0.25" in text) == (warned and not more)


def test_frozen_parts_and_a_warm_up_without_what_is_left(tmp_path: Path) -> None:
    run = quick(tmp_path, "train.freeze=[encoder, decoder, simple_am_proj, simple_lm_proj]")
    with pytest.raises(UserError, match=r"train\.freeze.*train\.warm_step=0"):
        run.run()


def test_the_shipped_configuration(first: Path, tmp_path: Path) -> None:
    conf = tmp_path / "mine.yaml"
    conf.write_text(f"include: [train/finetune.yaml]\ntrain: {{init: {first}/averaged.pt}}\n")
    cfg, base = load_config(conf), load_config()
    assert cfg.train.warm_step == 0 and cfg.train.warm_share == 0 and cfg.optim.lr <= base.optim.lr / 3
    assert cfg.train.num_epochs < base.train.num_epochs and cfg.average.num < cfg.train.num_epochs


def test_wrong_values_of_the_types(first: Path, tmp_path: Path) -> None:
    """A weight of whole numbers is not one of this model."""
    content: dict[str, Any] = load_file(first / "averaged.pt")
    content["model"]["joiner.encoder_proj.weight"] = content["model"]["joiner.encoder_proj.weight"].long()
    save_file(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: 'joiner\.encoder_proj\.weight'"):
        started(f"train.init={tmp_path}/x.pt")
