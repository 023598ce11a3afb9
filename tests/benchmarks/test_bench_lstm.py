"""The benchmark of the LSTM runs end to end on a CPU, and counts kernels as its docstrings say."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.bench_lstm import Layer, launched, padded, parts
from tests.conftest import ROOT

import pytest
import torch


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench_lstm.py", *args]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def test_counts_kernels_and_the_gaps_between_them() -> None:
    trace = [
        {"cat": "kernel", "name": "gemm", "ts": 1000.0, "dur": 500.0},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0.0, "dur": 9000.0},
        {"cat": "kernel", "name": "RNN_blockPersist_fp_LSTM", "ts": 2000.0, "dur": 1000.0},
        {"cat": "kernel", "name": "copy", "ts": 2500.0, "dur": 1000.0},  # half of it beside another
        {"name": "without a category", "ts": 0.0},
    ]
    assert launched(trace) == {"kernels": 3, "busy_ms": 2.0, "idle_ms": 0.5, "persistent": True}
    assert launched(trace[:2])["persistent"] is False and launched([]) == {
        **{"kernels": 0, "busy_ms": 0.0, "idle_ms": 0.0, "persistent": False}
    }


@pytest.mark.parametrize(("rows", "sizes"), [(40, [40]), (83, [88]), (128, [128]), (166, [88, 88]), (300, [104, 104, 104])])
def test_parts_fit_the_persistent_algorithm(rows: int, sizes: list[int]) -> None:
    found = parts(torch.zeros(2, rows, 3), "parts")
    assert [padded(part.size(1)) for part in found] == sizes and sum(part.size(1) for part in found) == rows
    assert [part.size(1) for part in parts(torch.zeros(2, rows, 3), "merged")] == [rows]


def test_all_cases_are_the_same_layer(one_thread: None) -> None:
    layer = Layer(argparse.Namespace(size="small", frames=30, device="cpu"), 130)
    for case, within in {"float32:standard": 1e-5, "float32:merged": 1e-5, "float32:parts": 1e-5, "bf16:merged": 0.05}.items():
        assert 0 < layer.difference(case) < within


@pytest.mark.slow
def test_writes_tables(tmp_path: Path) -> None:
    cases = "float32:standard,bf16:merged,float32:parts"
    sizes = ["--size", "small", "--utterances", "2,3", "--frames", "60", "--repeats", "1", "--threads", "1"]
    run = bench(*sizes, "--cases", cases, "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "lstm_cpu.json").read_text())
    assert [(r["utterances"], r["case"]) for r in result["layers"]] == [(n, c) for n in (2, 3) for c in cases.split(",")]
    assert [r["case"] for r in result["steps"]] == cases.split(",")[:2] * 2
    for record in result["layers"]:
        assert 0 < record["all"] == pytest.approx(record["forward"] + record["backward"])
    text = (tmp_path / "lstm_cpu.md").read_text()
    assert text in run.stdout and text.count("\n| 3 | ") == 5 and "| encoder backward, ms |" in text


@pytest.mark.parametrize("case", ["fp16:merged", "bf16:folded", "int8:standard", "bf16"])
def test_names_the_impossible_case(case: str) -> None:
    run = bench("--cases", case)
    assert run.returncode == 1 and run.stderr.startswith("error: ") and "Traceback" not in run.stderr
    assert ("fp16" if case.startswith("fp16") else "--cases") in run.stderr
