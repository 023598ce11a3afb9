"""The trainer: resuming is exact, bad steps are skipped and named, its checkpoints give averages."""

from __future__ import annotations

import csv
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from local import average as average_program
from local.artifacts.checkpoint import load_averaged, load_file, save_file
from local.common.errors import TrainingDiverged, UserError
from local.config import load_config
from local.config.schema import Config
from local.data.batch import Batch
from local.data.tokenizer import train_tokenizer
from local.training.trainer import Trainer
from model.average import average_plain

import pytest
import torch
import yaml

SMALL = [
    *("model.encoder.num_layers=2", "model.encoder.d_model=16", "model.encoder.rnn_hidden_size=24"),
    *("model.encoder.dim_feedforward=32", "model.decoder.dim=16", "model.joiner.dim=16", "train.warm_step=2"),
    *("train.average_period=1", "train.log_every=2", "train.num_epochs=3", "average.num=2", "train.save_every=3"),
]
TOKENIZER = train_tokenizer(["ONE TWO THREE", "TWO FOUR", "FIVE ONE"] * 5, 20)


class Batches(list):  # type: ignore[type-arg]
    """Replaces `local.data.datamodule.Batches`: a list of batches, two counts and a reason."""

    num_cuts, epoch_cuts, skipped, last_problem, max_lost = 8, 8, 0, "", 1.0


class RandomData:
    """Replaces AsrDataModule: four batches of random features per epoch; the utterance `poison` is infinite."""

    tokenizer, data_dir, notes = TOKENIZER, Path("data/random"), ()

    def __init__(self, poison: str | None = None, dev: tuple[str, ...] = ("dev",)) -> None:
        self.poison = poison
        self.corpora = [SimpleNamespace(mark="", data_dir=self.data_dir, corpus=SimpleNamespace(dev=dev))]

    def batch(self, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        inputs, tokens = torch.randn(2, 60, 80, generator=generator), torch.randint(3, 10, (2, 4), generator=generator)
        batch = Batch(
            inputs, torch.tensor([60, 47]), tokens, torch.tensor([4, 3]), [f"{seed}-a", f"{seed}-b"], ["ONE TWO", "FIVE"]
        )
        if self.poison in batch.ids:
            batch.inputs[batch.ids.index(self.poison)] = float("inf")
        return batch

    def batches_per_epoch(self) -> int:
        return 4

    def identity(self) -> dict[str, Any]:
        return {"cuts": 8, "hours": 0.1, "noises": 0, "hash": "0"}

    def feature_floor(self) -> torch.Tensor:
        return torch.full((80,), -1.0)

    def valid_ids(self, corpus: None = None) -> list[str]:
        return ["7-b", "7-a"]

    def valid_texts(self, corpus: None = None) -> list[str]:
        return ["ONE TWO", "FIVE"]

    def train_dataloader(self, epoch: int, skip_batches: int = 0) -> Batches:
        return Batches(self.batch(100 * epoch + i) for i in range(skip_batches, 4))

    def valid_dataloader(self, corpus: None = None) -> Batches:
        return Batches([self.batch(7)])


def trainer(exp_dir: Path, *overrides: str, poison: str | None = None) -> Trainer:
    cfg: Config = load_config(None, [*SMALL, *overrides])
    return Trainer(cfg, RandomData(poison), exp_dir, torch.device("cpu"))  # type: ignore[arg-type]


def weights(exp_dir: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(exp_dir / "checkpoints" / name)["model"]


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_resumed_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    """After any number of steps, also within an epoch: the same bits, dropout and balancers included."""
    trainer(tmp_path / "whole").run()
    trainer(tmp_path / "parts", f"train.max_steps={stop}").run()
    resumed = trainer(tmp_path / "parts")
    assert resumed.step == stop
    resumed.run()
    whole, parts = (load_file(tmp_path / d / "checkpoints" / "epoch-3.pt") for d in ("whole", "parts"))
    for section in (("model",), ("average", "state")):
        a, b = whole, parts
        for key in section:
            a, b = a[key], b[key]
        assert all(torch.equal(a[k], b[k]) for k in a), section
    assert whole["progress"] == parts["progress"]
    rows = [list(csv.reader((tmp_path / d / "valid.csv").open())) for d in ("whole", "parts")]
    assert rows[0] == rows[1]
    steps = [row[1] for row in csv.reader((tmp_path / "parts" / "train.csv").open())]
    assert len(steps) == len(set(steps))


def test_a_resumed_training_takes_the_rate_that_it_announces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, "train.max_steps=2", "optim.lr=0.003").run()
    lr = trainer(tmp_path, "train.max_steps=3", "optim.lr=0.003").schedule.get_last_lr()[0]
    capsys.readouterr()
    again = trainer(tmp_path, "train.max_steps=3", "optim.lr=0.0015", "optim.weight_decay=0.01", "train.average_period=5")
    assert again.schedule.get_last_lr() == [lr / 2] and again.optimizer.param_groups[0]["weight_decay"] == 0.01
    lines = {line.split()[1]: line for line in capsys.readouterr().err.splitlines()}
    assert "from here on" in lines["optim.lr"] and "only at the start" in lines["train.average_period"]


def test_a_training_may_have_no_dev_part(tmp_path: Path) -> None:
    cfg = load_config(None, SMALL)
    Trainer(cfg, RandomData(dev=()), tmp_path, torch.device("cpu")).run()  # type: ignore[arg-type]
    assert (tmp_path / "checkpoints" / "epoch-3.pt").is_file() and not (tmp_path / "valid.csv").exists()


def test_a_validation_is_not_waiting_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(
        tmp_path, "train.log_every=1", "train.valid_every=2", "train.save_every=0", "train.num_epochs=1", "train.warm_step=1"
    )
    plain = run.train_pass

    def timed(batch: Batch) -> Any:
        time.sleep(0.05)
        return plain(batch)

    monkeypatch.setattr(run, "train_pass", timed)
    monkeypatch.setattr(run, "validate", lambda: time.sleep(2.0))
    run.run()
    shares = {row["step"]: float(row["data_wait_share"]) for row in csv.DictReader((tmp_path / "train.csv").open())}
    assert shares["3"] < 0.5


def test_a_damaged_checkpoint_is_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path).run()
    newest = tmp_path / "checkpoints" / "epoch-3.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    again = trainer(tmp_path)
    assert "epoch-3.pt: damaged" in capsys.readouterr().err
    assert again.step == 12  # from step-12.pt, written before the last validation
    again.run()
    assert load_file(newest)["progress"]["step"] == 12


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, "train.max_steps=1").run()
    with pytest.raises(UserError, match=r"step-1\.pt .*model\.joiner\.dim was 16, is 24"):
        trainer(tmp_path, "model.joiner.dim=24")


def config_of(exp_dir: Path) -> dict[str, Any]:
    return yaml.safe_load((exp_dir / "config.yaml").read_text())


def test_config_yaml_describes_the_newest_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = trainer(tmp_path, "train.max_steps=3", "optim.lr=0.002")
    assert not (tmp_path / "config.yaml").exists()
    first.run()
    config = config_of(tmp_path)
    assert config["optim"]["lr"] == 0.002 and config["run"]["max_duration"] == 300.0
    assert config["run"]["parameters"] == sum(p.numel() for p in first.model.parameters())
    assert config["run"]["train_hours"] == 0.1  # of the data's identity
    assert config["run"]["tokens_hash"] == load_file(tmp_path / "checkpoints" / "step-3.pt")["tokens_hash"]
    trainer(tmp_path, "train.max_steps=3", "optim.lr=0.5").run()  # it has nothing to do
    assert "nothing is left to train" in capsys.readouterr().out and config_of(tmp_path) == config
    assert load_file(tmp_path / "checkpoints" / "step-3.pt")["config"]["optim"]["lr"] == 0.002
    resumed = trainer(tmp_path, "train.max_steps=4", "optim.lr=0.001")
    assert config_of(tmp_path) == config
    resumed.run()
    assert (
        config_of(tmp_path)["optim"]["lr"]
        == load_file(tmp_path / "checkpoints" / "step-4.pt")["config"]["optim"]["lr"]
        == 0.001
    )


def test_a_finished_run_leaves_its_config_as_it_is(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    before = (tmp_path / "config.yaml").read_bytes()
    trainer(tmp_path, "optim.lr=0.5", "train.save_every=0").run()
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_config_yaml_is_there_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path)
    monkeypatch.setattr(run, "train_pass", lambda batch: sys.exit(3))
    with pytest.raises(SystemExit):
        run.run()
    assert config_of(tmp_path)["model"]["joiner"]["dim"] == 16


def test_non_finite_utterance_is_named_saved_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, poison="201-b")
    run.run()
    assert re.search(r"step 6 .*loss.* 201-b;", capsys.readouterr().out)
    assert load_file(tmp_path / "bad" / "step-6.pt")["ids"] == ["201-b"]
    assert run.bad_steps == 1 and run.step == 12
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert load_file(tmp_path / "checkpoints" / "epoch-3.pt")["progress"]["bad_steps"] == 1


def test_too_many_bad_steps_stop_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"1 steps .*train\.max_bad_steps is 0.*101-a"):
        trainer(tmp_path, "train.max_bad_steps=0", poison="101-a").run()


def test_fp16_on_a_cpu_is_refused_by_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.precision"):
        trainer(tmp_path, "train.precision=fp16")


def test_bf16_trains(tmp_path: Path) -> None:
    trainer(tmp_path, "train.precision=bf16", "train.max_steps=4").run()
    assert weights(tmp_path, "step-4.pt")["joiner.output_linear.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    "override",
    [f"model.encoder.norm={n}" for n in ("layer", "batch", "group", "instance", "none")]
    + [f"model.encoder.activation={a}" for a in ("relu", "sigmoid", "tanh")]
    + [f"optim.name={o}" for o in ("adam", "adamw", "sgd", "momentum", "adagrad", "rmsprop", "scaled_adam")]
    + ["gradient.control=clip", "gradient.control=none", "model.encoder.rnn=gru", "model.encoder.rnn=rnn"],
)
def test_every_choice_trains(tmp_path: Path, override: str) -> None:
    more = ["model.encoder.rnn_hidden_size=16"] if "rnn=" in override else []
    lr = ["optim.lr=0.00001"] if "optim" in override else []
    run = trainer(tmp_path, override, *more, *lr, "train.max_steps=4")
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.run()
    after = run.model.state_dict()
    assert run.bad_steps == 0
    assert any(not torch.equal(before[k], after[k]) for k in before)
    header = next(csv.reader((tmp_path / "train.csv").open()))
    assert ("filter_mean_mask_1" in header) == ("gradient" not in override)


def run_average(exp_dir: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["average.py", "--exp-dir", str(exp_dir), *arguments])
    average_program.main()


def test_average_of_a_range_of_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints give the mean of the weights after every step of epochs 2 and 3."""
    run = trainer(tmp_path)
    seen: list[dict[str, torch.Tensor]] = []
    update = run.average.update

    def record(model: torch.nn.Module, batches: int) -> None:
        update(model, batches)
        if batches > 4:
            seen.append({k: v.clone() for k, v in model.state_dict().items()})

    monkeypatch.setattr(run.average, "update", record)
    run.run()
    run_average(tmp_path, monkeypatch)
    model, cfg, tokenizer = load_averaged(tmp_path / "averaged.pt")
    assert len(seen) == 8 and not model.training
    got = load_file(tmp_path / "averaged.pt")["model"]
    for key, value in average_plain(seen).items():
        torch.testing.assert_close(got[key], value.float())
    assert (cfg.model.joiner.dim, tokenizer.tokens) == (16, TOKENIZER.tokens)
    run_average(tmp_path, monkeypatch, "average.num=3")  # from the first batch on
    run_average(tmp_path, monkeypatch, "average.unit=step", "average.num=1")


def test_plain_average_of_named_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path).run()
    names = [str(tmp_path / "checkpoints" / f"epoch-{n}.pt") for n in (1, 3)]
    run_average(tmp_path, monkeypatch, "average.mode=plain", f"average.checkpoints=[{','.join(names)}]")
    expected = average_plain([weights(tmp_path, "epoch-1.pt"), weights(tmp_path, "epoch-3.pt")])
    got = load_file(tmp_path / "averaged.pt")["model"]
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value.float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["average.last=9"], "epoch-9.pt"), (["average.last=3", "average.num=0"], "average.num")],
)
def test_average_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    trainer(tmp_path).run()
    with pytest.raises(SystemExit):
        run_average(tmp_path, monkeypatch, *arguments)
    assert message in capsys.readouterr().err
    (tmp_path / "checkpoints" / "epoch-1.pt").unlink()
    with pytest.raises(SystemExit):
        run_average(tmp_path, monkeypatch, "average.num=2")
    assert "epoch-1.pt" in capsys.readouterr().err


def test_old_epochs_are_removed_except_those_that_averaging_needs(tmp_path: Path) -> None:
    trainer(tmp_path, "train.num_epochs=5", "train.keep_last=1", "average.num=2").run()
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("epoch-*.pt")) == ["epoch-3.pt", "epoch-4.pt", "epoch-5.pt"]


def test_files_keep_floats_exactly(tmp_path: Path) -> None:
    content = {"model": {}, "a": [0.1, (1e-300, True, None)], "t": torch.tensor(0.5, dtype=torch.float64), "n": 3, "s": "x"}
    save_file(content, tmp_path / "f.pt")
    assert load_file(tmp_path / "f.pt") == content
