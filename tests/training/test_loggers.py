"""train.logger: what the packages are called with; a package that is missing; a server that is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from local.common.errors import UserError
from local.config import load_config
from local.training.loggers import LOGGERS, RUN_FILE, check_logger, make_logger
from tests.conftest import ROOT
from tests.test_train import trainer

import pytest

Calls = list[tuple[str, dict[str, Any]]]
SETTINGS = {"train.seed": 42, "data.train_parts": None}


class Fake(ModuleType):
    """A module whose functions note how they are called; those in `broken` raise."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: Calls = []
        self.broken: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, {**{str(i): value for i, value in enumerate(args)}, **kwargs}))
            if name in self.broken:
                raise ConnectionError("the server is away\nand more")
            return self if name == "init" else SimpleNamespace(info=SimpleNamespace(run_id="run7"))

        return call

    def named(self, name: str) -> list[dict[str, Any]]:
        return [values for called, values in self.calls if called == name]


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return module


wandb = pytest.mark.parametrize("fake", ["wandb"], indirect=True)
mlflow = pytest.mark.parametrize("fake", ["mlflow"], indirect=True)
both = pytest.mark.parametrize("fake", ["wandb", "mlflow"], indirect=True)


@wandb
def test_wandb_is_one_run_per_experiment(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (0, 7):
        logger = make_logger("wandb", tmp_path, SETTINGS, step)
        logger.add_scalars(step + 1, {"train/loss": 0.5})
        logger.close()
    first, resumed = fake.named("init")
    assert first == resumed and len(first.pop("id")) >= 8
    name = tmp_path.name
    assert first == {"project": name, "name": name, "resume": "allow", "dir": str(tmp_path), "config": SETTINGS}
    assert fake.named("log") == [{"0": {"train/loss": 0.5}, "step": 1}, {"0": {"train/loss": 0.5}, "step": 8}]
    assert [called for called, _ in fake.calls] == ["init", "log", "finish"] * 2
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    (tmp_path / RUN_FILE).unlink()
    make_logger("wandb", tmp_path, SETTINGS, 0)
    assert fake.named("init")[2]["project"] == "ours" and fake.named("init")[2]["id"] != resumed["id"]


@mlflow
def test_mlflow_is_one_run_per_experiment(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (0, 7):
        logger = make_logger("mlflow", tmp_path, SETTINGS, step)
        logger.add_scalars(step + 1, {"valid/wer": 3.0})
        logger.close()
    assert fake.named("start_run") == [{"run_name": tmp_path.name}, {"run_id": "run7"}]
    assert fake.named("log_params") == [{"0": SETTINGS}], "once: a run's parameters cannot change"
    assert fake.named("log_metrics") == [{"0": {"valid/wer": 3.0}, "step": 1}, {"0": {"valid/wer": 3.0}, "step": 8}]
    assert fake.named("set_tracking_uri") == [{"0": f"sqlite:///{tmp_path}/mlflow.db"}] * 2
    assert fake.named("set_experiment") == [{"0": tmp_path.name}] * 2 and len(fake.named("end_run")) == 2
    fake.calls.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    make_logger("mlflow", tmp_path, SETTINGS, 0)
    assert [called for called, _ in fake.calls] == ["start_run"]


@wandb
def test_the_run_of_another_logger_is_not_continued(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("mlflow run7\n")
    make_logger("wandb", tmp_path, SETTINGS, 0)
    assert fake.named("init")[0]["id"] != "run7" and (tmp_path / RUN_FILE).read_text().startswith("wandb ")


@both
def test_a_lost_server_does_not_end_the_training(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = fake.__name__
    logger = make_logger(name, tmp_path, SETTINGS, 0)
    sent = "log" if name == "wandb" else "log_metrics"
    fake.broken = {sent}
    for step in (1, 2):
        logger.add_scalars(step, {"train/loss": 0.5})
    logger.close()
    assert len(fake.named(sent)) == 1
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and name in said and said.count("\n") == 1 and "the server is away" in said


@both
def test_a_logger_that_does_not_start_is_an_error(fake: Fake, tmp_path: Path) -> None:
    fake.broken = {"init", "start_run"}
    with pytest.raises(UserError, match=r"train\.logger.*the server is away.*logger_run"):
        make_logger(fake.__name__, tmp_path, SETTINGS, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_before_data_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"train\.logger.*pip install {name}"):
        trainer(tmp_path, f"train.logger={name}")
    assert list(tmp_path.iterdir()) == []
    check_logger("none")


@wandb
def test_a_training_sends_what_its_tables_hold(fake: Fake, tmp_path: Path) -> None:
    trainer(tmp_path, "train.logger=wandb", "train.max_steps=0", "train.num_epochs=2", "train.log_every=1").run()
    tables = {name: (tmp_path / f"{name}.csv").read_text().splitlines() for name in ("train", "valid")}
    expected = [
        (int(row.split(",")[1]), f"{name}/{column}")
        for name, (head, *rows) in tables.items()
        for row in rows
        for column, value in zip(head.split(",")[2:], row.split(",")[2:], strict=True)
        if value
    ]
    assert sorted((call["step"], key) for call in fake.named("log") for key in call["0"]) == sorted(expected)
    assert fake.named("init")[0]["config"]["train.logger"] == "wandb" and len(fake.named("finish")) == 1
    assert not (tmp_path / "tensorboard").exists()


def test_without_a_logger_tensorboard_is_not_imported() -> None:
    code = (
        "import sys; sys.modules['tensorboard'] = None; import local.train; assert 'torch.utils.tensorboard' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_every_value_of_the_key_has_a_logger(tmp_path: Path) -> None:
    for name in LOGGERS:
        assert load_config(None, [f"train.logger={name}"]).train.logger == name
    with pytest.raises(UserError, match=r"train\.logger.*tensorboard"):
        load_config(None, ["train.logger=comet"])
    make_logger("none", tmp_path, SETTINGS, 0).add_scalars(1, {"a": 1.0})
    assert list(tmp_path.iterdir()) == []
