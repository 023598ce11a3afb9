"""The streaming benchmark runs end to end with a small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

import numpy as np
import pytest
import soundfile

SIZES = ["num_layers=2", "d_model=32", "rnn_hidden_size=48", "dim_feedforward=64"]


@pytest.mark.slow
def test_small_model(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    command = [sys.executable, "-m", "benchmarks.bench_stream", "--chunks", "0.16", "--threads", "1", "--streams", "1", "3"]
    command += ["--seconds", "0.32", "--rounds", "1", "--out", str(tmp_path), "--audio", str(tmp_path / "a.wav")]
    command += ["--sizes", *(f"model.encoder.{size}" for size in SIZES), "model.joiner.dim=32"]
    run = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "stream.json").read_text())["rows"]
    assert {(r["backend"], r["streams"]) for r in rows} == {
        ("weights read", 1),
        *((backend, n) for backend in ("torch", "onnxruntime", "onnxruntime-int8") for n in (1, 3)),
    }
    assert all(r["rtf"] > 0 for r in rows)
    assert all(r["final"] > 0 for r in rows if r["streams"] == 1 and r["backend"] != "weights read")
    assert "| 0.16 | 1 |" in (tmp_path / "stream.md").read_text() and "onnxruntime-int8" in run.stdout
