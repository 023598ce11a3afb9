"""The pruned loss needs no more memory for more classes, except for the output matrix and its gradient."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

import pytest

PROGRAM = """
import sys
import torch
from local.common.allocator import release_free_memory
from local.common.meter import Meter
from model.loss.native import backend as native

torch.set_num_threads(1)


def loss(n, t, u, c, j=512, s=5):
    normal = lambda *shape: torch.randn(*shape).requires_grad_()
    starts = (torch.arange(t) * (u + 1) // t).clamp(max=u + 1 - s)
    return lambda x=(normal(n, t, j), normal(n, u + 1, j), normal(c, j), normal(c)): native.pruned_loss(
        *x, torch.randint(1, c, (n, u)), (starts[:, None] + torch.arange(s)).expand(n, t, s),
        torch.tensor([[0, 0, u, t]] * n)
    ).sum().backward()


c = int(sys.argv[1])
loss(1, 20, 8, c)()
step = loss(8, 300, 50, c)
release_free_memory()
meter = Meter(torch.device("cpu"))
base = meter.in_use()
with meter.of("pruned"):
    step()
print(meter.peak_mib["pruned"] - base - c * 512 * 4 / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory can be reset on Linux only")
def test_independent_of_the_classes() -> None:
    few, many = (
        float(subprocess.run([sys.executable, "-c", PROGRAM, c], cwd=ROOT, check=True, capture_output=True).stdout)
        for c in ("500", "5000")
    )
    assert few < 100
    assert many < 1.1 * few
