"""The memory benchmark reads /proc and computes growth correctly; the memory of a short training does not grow."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

from benchmarks.bench_memory import children, growth, last_step, resident, run, windows
from local.common.errors import UserError
from tests.killed_run import SMALL, prepared_corpus

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc, which Linux has")


def sample(step: int, trainer: float) -> dict[str, float]:
    return {"step": step, "seconds": step / 10, "trainer": trainer, "worker": 5.0}


def test_resident_memory_is_that_of_the_process() -> None:
    before = resident(os.getpid())
    held = np.ones(64 << 17)  # 64 MiB
    after = resident(os.getpid())
    assert before is not None and after is not None and held.nbytes == 64 << 20
    assert 60 < after[0] - before[0] < 68
    assert resident(2**22 + 1) is None and children(2**22 + 1) == []


def test_a_window_keeps_the_largest_and_the_last_is_left_out() -> None:
    rows = windows([sample(0, 10), sample(50, 30), sample(50, 20), sample(100, 25)])
    assert [(r["step"], r["trainer"]) for r in rows] == [(0, 10), (50, 30)]


def test_growth_is_from_the_first_to_the_last_quarter_after_the_warm_up() -> None:
    rows = [sample(50 * i, value) for i, value in enumerate([900, 100, 100, 100, 500, 500, 120, 120])]
    assert growth(rows, "trainer", warm_up=50) == pytest.approx(0.2)
    assert growth(rows, "worker", warm_up=50) == 0
    with pytest.raises(UserError, match="300 steps"):
        growth(rows, "trainer", warm_up=300)


def test_an_incomplete_line_does_not_count(tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    assert last_step(table) == 0
    table.write_text("epoch,step,loss\n1,50,0.1\n1,1")
    assert last_step(table) == 50


@pytest.mark.slow
def test_a_short_training_keeps_its_memory(tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text("{}\n")
    (tmp_path / "exp").mkdir()
    data = prepared_corpus(tmp_path)
    args = argparse.Namespace(
        conf=tmp_path / "conf.yaml", data_dir=data, steps=240, window=10, overrides=[*SMALL, "data.num_workers=1"]
    )
    rows = run(args, tmp_path / "exp")
    assert rows[-1]["trainer"] > 50
    for key in ("trainer", "worker"):  # a short training still fills caches; 2000 steps must stay within 3 %
        assert abs(growth(rows, key, warm_up=60)) < 0.1
