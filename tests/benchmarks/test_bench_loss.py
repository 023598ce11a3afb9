"""The loss benchmark runs end to end, and its batches are as described."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.bench_loss import make_batches
from tests.conftest import ROOT

import numpy as np
import pytest


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench_loss.py", *args]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def test_batches() -> None:
    lengths = [(t, t // 5) for t in range(20, 420)]
    drawn = make_batches(lengths, "random", 4, 0.2, seed=1)
    assert [len(batch) for batch in drawn] == [6] * 4
    ordered = make_batches(lengths, "sorted", 5, 0.1, seed=1)
    assert len(ordered) == 5
    for batch in ordered:
        assert len(batch) * max(t for t, _ in batch) <= 1000
        assert batch == sorted(batch)


@pytest.mark.slow
def test_writes_table_and_plot(tmp_path: Path) -> None:
    np.savez(tmp_path / "lengths.npz", T_U=np.array([[12, 3], [20, 5], [17, 0], [9, 9]], dtype=np.int32))
    run = bench(
        *("--backends", "native,torchaudio", "--mode", "random", "--lengths", str(tmp_path / "lengths.npz")),
        *("--batches", "2", "--repeats", "1", "--classes", "20", "--width", "16", "--out", str(tmp_path / "out")),
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out" / "loss_random_cpu_float32.json").read_text())
    assert len(result["records"]) == 4
    for backend in ("native", "torchaudio"):
        assert max(result["differences"][backend].values()) < 1e-5
        assert backend in result["versions"]
    assert "| pruned loss |" in run.stdout
    assert (tmp_path / "out" / "loss_random_cpu_float32.png").stat().st_size > 0


def test_names_the_missing_file() -> None:
    run = bench("--lengths", "no-such-file.npz")
    assert run.returncode == 1 and run.stderr.startswith("error: no-such-file.npz:") and "Traceback" not in run.stderr
