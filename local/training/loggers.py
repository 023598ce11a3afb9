"""Where the numbers of train.csv and valid.csv go as curves: key train.logger.

TensorBoard writes EXP/tensorboard. Weights & Biases and MLflow are used if they are installed. Their own environment
variables say where they write (WANDB_MODE, WANDB_PROJECT; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME). Without these,
project and run have the name of the experiment's folder, and MLflow writes EXP/mlflow.db. EXP/logger_run keeps the run's id,
so that a resumed training continues its run.
"""

from __future__ import annotations

import abc
import importlib
import os
import re
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from local.common.atomic import write_text
from local.common.errors import UserError, described

RUN_FILE = "logger_run"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "none": ""}  # to install, by train.logger


class Logger(Protocol):
    """A place for curves."""

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Add a point to the curve of each name."""

    def close(self) -> None:
        """Write what is left; the training has ended."""


class NoLogger:
    """Writes nothing."""

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Drop the values."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoard:
    """Writes EXP/tensorboard. What a killed run wrote after step `step` disappears from the curves."""

    def __init__(self, exp_dir: Path, settings: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(exp_dir / "tensorboard"), purge_step=step + 1)

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the points, so that they can be seen at once."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class Tracker(abc.ABC):
    """What Weights & Biases and MLflow share: one run per experiment, and a training that a lost server does not end."""

    name = ""  # of the module

    def __init__(self, exp_dir: Path, settings: dict[str, Any], step: int) -> None:
        """Start the run, or continue it. Raises `UserError` if that fails."""
        self.module, self.exp_dir, self.settings = importlib.import_module(self.name), exp_dir, settings
        self.title, self.file, self.failed = exp_dir.resolve().name, exp_dir / RUN_FILE, False
        tracker, _, run = self.file.read_text(encoding="utf-8").strip().partition(" ") if self.file.exists() else ("",) * 3
        try:
            run = self.start(run if tracker == self.name else "")
        except Exception as e:  # of any type: of the package, of its network library
            raise UserError(
                f"key 'train.logger': {self.name} does not start ({described(e)}); fix that (offline: {self.offline}), "
                f"or set train.logger=none; {self.file} names the run that is continued; without it a new one starts"
            ) from None
        write_text(self.file, f"{self.name} {run}\n")

    offline = ""  # how to work without a network, for the message

    @abc.abstractmethod
    def start(self, run: str) -> str:
        """Continue the run of this id, or start one if it is ""; return its id."""

    @abc.abstractmethod
    def send(self, step: int, values: dict[str, float]) -> None:
        """Send the values."""

    @abc.abstractmethod
    def end(self) -> None:
        """End the run."""

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Send the values. After a failure nothing more is sent: each attempt may wait for minutes."""
        self._try(lambda: self.send(step, values))

    def close(self) -> None:
        """End the run."""
        self._try(self.end)

    def _try(self, call: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            call()
        except Exception as e:
            self.failed = True
            text = f"{self.name} failed ({described(e)}); it gets no more numbers of this run; train.csv and valid.csv have all"
            print(f"warning: {text}", file=sys.stderr)


class WeightsAndBiases(Tracker):
    """Weights & Biases; it keeps its files in EXP/wandb."""

    name, offline = "wandb", "WANDB_MODE=offline"

    def start(self, run: str) -> str:
        """Continue or start the run; its numbers are of rising steps, earlier ones are dropped."""
        chosen = run or uuid.uuid4().hex[:16]
        project = os.environ.get("WANDB_PROJECT") or self.title
        folder, config = str(self.exp_dir), self.settings
        self.run = self.module.init(project=project, name=self.title, id=chosen, resume="allow", dir=folder, config=config)
        return chosen

    def send(self, step: int, values: dict[str, float]) -> None:
        """Send the values."""
        self.run.log(values, step=step)

    def end(self) -> None:
        """End the run."""
        self.run.finish()


class MLflow(Tracker):
    """MLflow; without a server it keeps EXP/mlflow.db."""

    name, offline = "mlflow", "no MLFLOW_TRACKING_URI"

    def start(self, run: str) -> str:
        """Continue the run, or start one and write the settings, which a run holds once."""
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            self.module.set_tracking_uri(f"sqlite:///{self.exp_dir.resolve() / 'mlflow.db'}")
        if not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            self.module.set_experiment(self.title)
        if run:
            self.module.start_run(run_id=run)
            return run
        started = self.module.start_run(run_name=self.title)
        self.module.log_params(allowed(self.settings))
        return str(started.info.run_id)

    def send(self, step: int, values: dict[str, float]) -> None:
        """Send the values."""
        self.module.log_metrics(allowed(values), step=step)

    def end(self) -> None:
        """End the run."""
        self.module.end_run()


def allowed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values by names that MLflow takes: folders of data.mix may have other characters."""
    return {re.sub(r"[^-/\w. ]", "_", name): value for name, value in values.items()}


LOGGERS: dict[str, Callable[[Path, dict[str, Any], int], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "none": lambda exp_dir, settings, step: NoLogger(),
}


def check_logger(name: str) -> None:
    """Raise `UserError` if the package of train.logger=`name` cannot be imported."""
    package = PACKAGES[name]
    try:
        if package:
            importlib.import_module(package)
    except ImportError as e:
        raise UserError(
            f"key 'train.logger' is {name}, but Python cannot import {package} ({described(e)}); "
            f"install it: {sys.executable} -m pip install {package}; or set train.logger=none"
        ) from None


def make_logger(name: str, exp_dir: Path, settings: dict[str, Any], step: int) -> Logger:
    """Return the logger of train.logger=`name` for a training that has done `step` steps.

    settings: keys and values of the configuration. Raises `UserError` if it cannot start.
    """
    return LOGGERS[name](exp_dir, settings, step)
