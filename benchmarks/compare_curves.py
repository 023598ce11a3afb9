"""Compare the losses of two trainings.

    .venv/bin/python -m benchmarks.compare_curves exp/a exp/b [--first 50] [--out benchmarks/results]

Reads the train.csv of two experiments (made with train.log_every=1), prints the largest relative difference of each loss
over the first steps and over all steps that both have, and writes curves_<a>_<b>.{md,png} to --out.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.errors import UserError
from local.common.html_page import new_figure, save_figure

import numpy as np

LOSSES = ("loss", "simple_loss", "pruned_loss")


def read(folder: Path) -> dict[int, dict[str, float]]:
    """Return the losses by step. Raises UserError if the file is missing or lacks steps."""
    path = folder / "train.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such file; train with train.log_every=1 first")
    with path.open(encoding="utf-8", newline="") as f:
        rows = {int(row["step"]): {k: float(row[k]) for k in LOSSES} for row in csv.DictReader(f)}
    steps = sorted(rows)
    if len(steps) < 2 or steps != list(range(1, len(steps) + 1)):
        raise UserError(f"{path}: steps are missing; train with train.log_every=1")
    return rows


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return |a - b| / |b| of curves (steps,)."""
    return np.abs(a - b) / np.abs(b)


@program
def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs=2, type=Path)
    parser.add_argument("--first", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    args = parser.parse_args()
    curves = [read(folder) for folder in args.experiments]
    steps = sorted(set(curves[0]) & set(curves[1]))
    first, second = (folder.name for folder in args.experiments)
    lines = [f"# {first} against {second}: largest relative difference over {len(steps)} steps", ""]
    lines += [f"| loss | steps 1 to {args.first} | all |", "|---|--:|--:|"]

    figure = new_figure(4.0, 11.0, layout=None)
    left, right = figure.subplots(1, 2)
    for color, loss in enumerate(LOSSES):
        a, b = (np.array([curve[step][loss] for step in steps]) for curve in curves)
        off = difference(a, b)
        lines.append(f"| {loss} | {off[: args.first].max():.2e} | {off.max():.2e} |")
        left.plot(steps, a, f"C{color}-", label=f"{loss}, {first}")
        left.plot(steps, b, "k:", linewidth=1, label=second if color == 0 else None)
        right.semilogy(steps, off, f"C{color}-", label=loss)
    left.set(xlabel="step", ylabel="loss per frame (nats)")
    right.set(xlabel="step", ylabel="relative difference")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.tight_layout()
    text = "\n".join(lines) + "\n"
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"curves_{first}_{second}"
    with atomic_write(args.out / f"{stem}.md") as tmp:
        tmp.write_text(text, encoding="utf-8")
    with atomic_write(args.out / f"{stem}.png") as tmp:
        save_figure(figure, tmp, dpi=110)


if __name__ == "__main__":
    main()
