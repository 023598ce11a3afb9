"""Numbers over steps: reading, thinning."""

from __future__ import annotations

from pathlib import Path

from local.common.errors import UserError
from local.reporting.curves import drawable, read_curves, thinned

import numpy as np
import pytest


def written(folder: Path, text: str) -> Path:
    path = folder / "train.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_thinned_line_keeps_ends_and_extremes() -> None:
    """Of 10,001 points each of 300 stands for about 33: the median of their values is drawn, and lowest and highest."""
    rng = np.random.default_rng(1)
    x, y = np.arange(10_001.0), rng.normal(size=10_001)
    y[777], y[5555] = 50.0, -50.0
    line = thinned(x, y, 300)
    assert len(line.x) == len(line.y) == len(line.low) == len(line.high) == 300 and np.all(np.diff(line.x) > 0)
    assert (line.x[0], line.x[-1], line.y[0], line.y[-1]) == (0, 10_000, y[0], y[-1])
    assert (line.high.max(), line.low.min()) == (50, -50) and np.abs(line.y[1:-1]).max() < 1
    assert line.high.argmax() == np.abs(line.x - 777).argmin() and np.all((line.low <= line.y) & (line.y <= line.high))


def test_a_short_line_stays() -> None:
    x, y = np.arange(300.0), np.arange(300.0)[::-1]
    line = thinned(x, y, 300)
    assert np.array_equal(line.x, x) and all(np.array_equal(values, y) for values in (line.y, line.low, line.high))


def test_rows_are_sorted_and_the_last_of_a_step_counts(tmp_path: Path) -> None:
    """A restart wrote step 20 again; step 10 comes after it. Two rows are damaged: a cell is missing, no step."""
    text = "epoch,step,loss\n1,20,5\n1,10,nan\n1,20,6\n1,30\n1,x,7\n\n2,40,\n2,50,inf\n"
    curves = read_curves(written(tmp_path, text))
    assert curves is not None and curves.steps.tolist() == [10, 20, 40, 50] and curves.damaged == 2
    assert curves.column("loss")[1] == 6 and np.isnan(curves.column("loss")[[0, 2]]).all()
    assert curves.last("loss") == 6 and curves.last("none") is None and np.isnan(curves.column("none")).all()
    assert curves.named("lo").keys() == {"ss"}


@pytest.mark.parametrize("text", ["", "epoch,step,loss\n", "step\nx\n", "step\nnan\n"])
def test_a_file_without_rows_is_none(tmp_path: Path, text: str) -> None:
    assert read_curves(written(tmp_path, text)) is None
    assert read_curves(tmp_path / "missing.csv") is None


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"step\n\xff\n", b"step\n" + b"1" * 200_000 + b"\n", b"step\n\x00\n"])
def test_what_is_no_table_of_steps_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv"):
        read_curves(tmp_path / "train.csv")


def test_what_can_be_drawn() -> None:
    values = np.array([1.0, 0.0, -1.0, 1e300, np.inf, np.nan])
    assert drawable(values).tolist() == [True, True, True, False, False, False]
    assert drawable(values, log=True).tolist() == [True, False, False, False, False, False]
