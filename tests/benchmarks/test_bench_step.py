"""The step benchmark runs end to end, and counts the products of the model's parameters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.bench_step import products
from benchmarks.step_worker import PARTS, SIZES
from local.config import load_config
from model.build import build_model
from tests.conftest import ROOT

import pytest
import torch


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench_step.py", *args]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def test_products_counted_from_the_layers() -> None:
    """Compare with the sizes of the model's parameters times the rows that they multiply."""
    conf, classes, n, frames, tokens = SIZES["small"]
    model = build_model(load_config(conf, []), classes)
    total = 0.0
    sizes: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda m, x, y: sizes.append(y.shape[2] * y.shape[3] * m.weight.numel()))
        for layer in model.encoder.encoder_embed.conv
        if isinstance(layer, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        _, lens, _ = model.encoder(torch.randn(1, frames, 80), torch.tensor([frames]))
    for hook in hooks:
        hook.remove()
    total += n * sum(sizes)
    t = int(lens[0])
    per_frame = [p for name, p in model.encoder.named_parameters() if p.dim() == 2 and "conv" not in name]
    total += n * t * sum(p.numel() for p in [*per_frame, model.simple_am_proj.weight, model.joiner.encoder_proj.weight])
    total += n * t * 5 * model.joiner.output_linear.weight.numel()
    total += n * (tokens + 1) * (model.simple_lm_proj.weight.numel() + model.joiner.decoder_proj.weight.numel())
    assert products("small") == pytest.approx(6 * total, rel=1e-9)


@pytest.mark.slow
def test_writes_a_table(tmp_path: Path) -> None:
    run = bench("--sizes", "small", "--repeats", "1", "--threads", "1", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    records = json.loads((tmp_path / "step_cpu.json").read_text())["records"]
    assert [r["precision"] for r in records] == ["float32", "bf16"]
    for record in records:
        assert set(record["parts"]) == set(PARTS) and all(s >= 0 for s in record["parts"].values())
        assert sum(record["parts"].values()) - record["parts"]["data"] == pytest.approx(record["seconds"], rel=1e-6)
        assert 0 < record["share"] < 3 and record["mib"] > 10
    assert "| encoder backward, ms |" in run.stdout and (tmp_path / "step_cpu.md").is_file()


def test_names_the_unknown_size() -> None:
    run = bench("--sizes", "huge")
    assert run.returncode == 1 and run.stderr.startswith("error: --sizes: 'huge'") and "Traceback" not in run.stderr
