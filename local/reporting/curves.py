"""Numbers over the steps of a training (train.csv, valid.csv) or over epochs (lm/log.csv), fit to be drawn."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.common.errors import UserError, reason
from local.common.text_files import read_lines

import numpy as np

MOST_POINTS = 300  # of a line in a drawing, which is about as many pixels wide
BAND = 0.2  # opacity of the band behind a long line
LARGEST = 1e30  # a larger number is not drawn: matplotlib's axes overflow
# Colours that can be seen on white and on black.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b82c4", "#e07b1f", "#3a9e5c", "#d1495b", "#9467bd", "#888888"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, "#17a2a2", "#b8860b", "#c2559d", "#7a9a01", "#8d6e63", GREY)
LEGEND = 68  # letters in a line of a legend, with the marks before them
WIDTH, HEIGHT, LOW = 5.5, 3.4, 2.8  # inches of a drawing that can still be read on a phone; height of a simple one


@dataclass(frozen=True)
class Curves:
    """The columns of a table by name: floats, one per row, NaN if missing or huge. `damaged` rows were left out."""

    steps: np.ndarray
    columns: dict[str, np.ndarray]
    damaged: int = 0

    def column(self, name: str) -> np.ndarray:
        """Return a column; NaN in every row if the table has no such column."""
        return self.columns.get(name, np.full(len(self.steps), np.nan))

    def named(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the columns whose names begin with `prefix`, by the rest of their names, in the order of the table."""
        return {name.removeprefix(prefix): values for name, values in self.columns.items() if name.startswith(prefix)}

    def last(self, name: str) -> float | None:
        """Return the last finite number of a column; None if there is none."""
        values = self.column(name)
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None


def read_curves(path: Path, key: str = "step") -> Curves | None:
    """Return the numbers of a CSV file in the order of its column `key`; None without a file or without a row.

    Of several rows of the same step, the last one counts: a training that was killed may have written a step twice. Rows with
    another number of cells, or without a step, are left out. Raises `UserError` if the file is not CSV or lacks the column.
    """
    if not path.is_file():
        return None
    try:
        head, *rows = list(csv.reader(read_lines(path))) or [[]]
    except csv.Error as e:
        raise UserError(f"{path}: not CSV ({reason(e)}); remove it to make the report without it") from None
    if not head:
        return None
    if key not in head:
        raise UserError(f"{path}:1: no column '{key}'; remove the file to make the report without it")
    place, damaged = head.index(key), 0
    found: dict[float, list[float]] = {}
    for row in filter(None, rows):
        numbers = [_number(text) for text in row]
        if len(row) == len(head) and np.isfinite(numbers[place]):
            found[numbers[place]] = numbers
        else:
            damaged += 1
    if not found:
        return None
    steps = np.array(sorted(found))
    table = np.array([found[step] for step in steps]).T
    return Curves(steps, dict(zip(head, table, strict=True)), damaged)


def _number(text: str) -> float:
    """Return the number of a cell; NaN for what is none, and for one that is too large to be drawn."""
    try:
        value = float(text)
    except ValueError:
        return float("nan")
    return value if abs(value) < LARGEST else float("nan")


def drawable(values: np.ndarray, log: bool = False) -> np.ndarray:
    """Return which numbers can be drawn: finite, not huge, and above 0 on a logarithmic axis."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(values) & (np.abs(values) < LARGEST) & ((values > 1 / LARGEST) | (not log))


@dataclass(frozen=True)
class Line:
    """A line of few points: x and y, and the lowest and highest value of the points that each of them stands for."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> Line:
    """Return a line of at most `most` points: both ends, and between them the median of each stretch; no stretch if few."""
    if len(x) <= most:
        return Line(x, y, y, y)
    ends, middle = [np.array([0]), np.array([len(x) - 1])], np.arange(1, len(x) - 1)
    stretches = [ends[0], *np.array_split(middle, most - 2), ends[1]]
    columns = ((x[s[len(s) // 2]], np.median(y[s]), y[s].min(), y[s].max()) for s in stretches)
    return Line(*np.array(list(columns)).T)


def draw(axes: Any, x: np.ndarray, y: np.ndarray, band: bool = True, **style: Any) -> bool:
    """Draw what can be drawn of a line, on a logarithmic axis if `axes` has one; return whether there was anything.

    band: a long line has a pale band from its lowest to its highest values behind it.
    """
    good = drawable(y, axes.get_yscale() == "log") & drawable(x)
    if not good.any():
        return False
    line = thinned(x[good], y[good])
    style = {"linewidth": 1.3, "marker": "o" if len(line.x) == 1 else "", **style}
    axes.plot(line.x, line.y, **style)
    if band and len(line.x) < good.sum():
        axes.fill_between(line.x, line.low, line.high, color=style.get("color"), alpha=BAND, linewidth=0)
    return True


def shades(count: int) -> list[Any]:
    """Return colours for layers in their order, from blue over purple to orange; all can be seen on white and on black."""
    from matplotlib.colors import LinearSegmentedColormap  # takes half a second

    scale = LinearSegmentedColormap.from_list("layers", [BLUE, PURPLE, RED, ORANGE])
    return [scale(i / max(count - 1, 1)) for i in range(count)]


def finish(axes: Any) -> None:
    """Give a drawing a grid, and a legend above the lines if it has labels: beside them, a phone has no room."""
    axes.grid(alpha=0.3)
    if labels := axes.get_legend_handles_labels()[1]:
        columns = max(1, min(len(labels), LEGEND // (max(map(len, labels)) + 5)))
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2, "handlelength": 1.2}
        axes.legend(fontsize=9, ncols=columns, frameon=False, columnspacing=1.0, **place)
