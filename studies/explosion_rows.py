"""The rows that a training of studies/explosion.py wrote, and what they tell of the whole training."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from studies.explosion_run import DAMPED, EXPLODED

import numpy as np
from numpy.typing import NDArray

FIRST = 40  # step from which `norm_if_one` and `norm_if_most` count: the warm-up is over


@dataclass(frozen=True)
class Run:
    """A finished training: its summary and its rows, as numbers where they are numbers."""

    summary: dict[str, str]
    steps: dict[str, NDArray[np.float64]]  # by column, one value per step
    layers: dict[str, NDArray[np.float64]]
    sequences: dict[str, NDArray[np.float64]]

    def value(self, name: str) -> float:
        """Return a number of the summary; nan if it has none."""
        return float(self.summary.get(name) or "nan")

    def by_layer(self, name: str) -> NDArray[np.float64]:
        """Return the columns name_0, name_1, ... of the steps, (steps, layers)."""
        columns = [column for column in self.steps if column.startswith(f"{name}_")]
        return np.stack([self.steps[f"{name}_{i}"] for i in range(len(columns))], axis=1)

    def gradients(self) -> NDArray[np.float64]:
        """Return the gradient of every sequence at the input of every LSTM, (steps, layers, sequences)."""
        shape = (len(self.steps["step"]), 1 + int(self.sequences["layer"].max()), 1 + int(self.sequences["sequence"].max()))
        return self.sequences["gradient_rms"].reshape(shape)

    @property
    def control(self) -> str:
        """The control with its number: `filter 25`, `clip 5`, `none`."""
        keys = dict(key.split("=", 1) for key in self.summary["keys"].split())
        name = keys.get("gradient.control", "none")
        default = {"filter": "25", "clip": "5"}.get(name, "")
        found = keys.get("gradient.threshold", keys.get("gradient.clip_norm", default))
        return f"{name} {float(found):g}" if found else name


def read_run(folder: Path) -> Run:
    """Read what `studies.explosion.write_result` wrote."""
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        (summary,) = csv.DictReader(file)
    return Run(summary, *(read_numbers(folder / f"{name}.csv") for name in ("steps", "layers", "sequences")))


def read_numbers(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a table of numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    return dict(zip(head, np.array(rows, dtype=np.float64).T, strict=True))


def damped_share(run: Run) -> float:
    """Return the mean share of sequences and layers whose gradient is far above the median."""
    return float(np.mean(run.steps["share_damped"]))


def healthy_steps(run: Run) -> float:
    """Return how far healthy layers move in a step in which another has an outlier / in the step before, if that has none.

    The median over these layers and steps; nan without any such step.
    """
    gradients, moved = run.gradients(), run.by_layer("step_layer")
    outlier = (gradients.max(axis=2) > DAMPED * np.median(gradients, axis=2)) | ~np.isfinite(gradients).all(axis=2)
    some = outlier.any(axis=1)
    first = some[1:] & ~some[:-1]
    healthy = first[:, None] & ~outlier[1:] & (moved[:-1] > 0)
    return float(np.median((moved[1:] / np.maximum(moved[:-1], 1e-30))[healthy])) if healthy.any() else math.nan


def lower_steps(run: Run) -> float:
    """Return how far a step moves the weights of the lower half of the layers, in learning rates: the mean over all steps."""
    return float(np.mean(lower_and_upper(run)[0]))


def upper_steps(run: Run) -> float:
    """Return the same of the upper half."""
    return float(np.mean(lower_and_upper(run)[1]))


def lower_and_upper(run: Run) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps of the lower half of the layers and of the upper half, both (steps, layers)."""
    moved = run.by_layer("step_layer")
    half = moved.shape[1] // 2
    return moved[:, :half], moved[:, half:]


def norm_if_one(run: Run) -> float:
    """Return the norm of a layer's gradient / its usual value in steps in which one sequence of the batch explodes.

    The largest of the layers, the median of the steps; nan without any such step. A sequence explodes if its gradient at the
    input of an LSTM is above `EXPLODED` times the layer's usual one: the median of the batch, and of the steps.
    """
    count, norms = _exploding(run)
    return float(np.median(norms[count == 1])) if (count == 1).any() else math.nan


def norm_if_most(run: Run) -> float:
    """Return the same of steps in which more than half of the batch explodes."""
    count, norms = _exploding(run)
    most = count > run.gradients().shape[2] / 2
    return float(np.median(norms[most])) if most.any() else math.nan


def _exploding(run: Run) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return by step the number of sequences that explode in a layer, and the largest norm of a layer / its usual one."""
    gradients, norms = (
        np.nan_to_num(values, nan=np.inf, posinf=np.inf) for values in (run.gradients(), run.by_layer("gradient_norm_layer"))
    )
    middle = (gradients.shape[2] - 1) // 2  # torch's median, as the filter takes it
    usual = np.median(np.sort(gradients, axis=2)[:, :, middle], axis=0)
    count = (gradients > EXPLODED * usual[None, :, None]).sum(axis=2).max(axis=1)
    ratio = (norms / np.median(norms, axis=0)).max(axis=1)
    return count[FIRST:], ratio[FIRST:]


MEASURES = (damped_share, lower_steps, upper_steps, healthy_steps, norm_if_one, norm_if_most)
