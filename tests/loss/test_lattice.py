"""The two recursions, compiled and in torch operations, agree with each other and with autograd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from model.kernels import numba_available
from model.loss import lattice
from model.loss.lattice import band_recursion, band_recursion_torch
from tests.conftest import ROOT
from tests.loss.definition import lattice_total

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

numba_only = pytest.mark.skipif(not numba_available(), reason="numba is not installed")


def random_band(seed: int, n: int, t: int, s: int) -> tuple[torch.Tensor, ...]:
    """Return px, py, starts, boundary of a random band; some have no path."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(1, t + 1, (n,), generator=generator)
    rises = torch.randint(0, s, (n, t), generator=generator)
    rises[:, 0] = 0
    starts = rises.cumsum(1)
    end = starts.gather(1, frames[:, None] - 1).squeeze(1)
    tokens = end + torch.randint(0, s, (n,), generator=generator)
    boundary = torch.stack([0 * tokens, 0 * tokens, tokens, frames], 1)
    px, py = (torch.randn(n, t, s, generator=generator, dtype=torch.float64) * 3 - 4 for _ in range(2))
    return px, py, starts, boundary


@numba_only
@settings(max_examples=60)
@given(seed=st.integers(0, 100_000), n=st.integers(1, 5), t=st.integers(1, 12), s=st.integers(1, 6))
def test_recursions_agree(seed: int, n: int, t: int, s: int) -> None:
    band = random_band(seed, n, t, s)
    for a, b in zip(band_recursion(*band), band_recursion_torch(*band), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    total, px_occ, py_occ = band_recursion(*band, occupation=False)
    torch.testing.assert_close(total, band_recursion(*band)[0])
    assert px_occ is None and py_occ is None


INTERPRETED = """
import torch
from model.kernels import lattice_gpu
from model.loss.lattice import band_recursion_torch
from tests.loss.test_lattice import random_band
for seed in range(40):
    band = random_band(seed, 1 + seed % 4, 1 + seed % 9, 1 + seed % 6)
    want = band_recursion_torch(*band)
    for a, b in zip(lattice_gpu.band_recursion(*band), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    total, *none = lattice_gpu.band_recursion(*band, occupation=False)
    assert torch.equal(total.isinf(), want[0].isinf()) and none == [None, None]
px, py, starts, boundary = random_band(5, 3, 8, 4)
boundary[:, 3], boundary[:, 2] = 8, starts[:, -1]
for value in (torch.nan, torch.inf):
    py[1, 4] = value
    total, px_occ, _ = lattice_gpu.band_recursion(px, py, starts, boundary)
    assert total.isfinite().tolist() == [True, False, True] and px_occ[[0, 2]].isfinite().all()
print("agree")
"""


def test_the_gpus_kernel_interpreted() -> None:
    """Triton's interpreter runs it on the CPU; test_cuda.py tests it compiled."""
    pytest.importorskip("triton", reason="Triton comes with torch on Linux only")
    command, variables = [sys.executable, "-W", "ignore", "-c", INTERPRETED], {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, check=False, timeout=300)
    assert run.stdout == "agree\n", run.stderr


@pytest.mark.parametrize("recursion", [band_recursion, band_recursion_torch])
def test_full_lattice(recursion) -> None:
    """With starts 0 and S = U + 1, total and occupations equal the definition's."""
    px, py, starts, _ = random_band(3, 1, 6, 4)
    px.requires_grad_()
    py.requires_grad_()
    boundary = torch.tensor([[0, 0, 3, 5]])
    want = lattice_total(px[0, :5, :3].t(), py[0, :5].t())
    want.backward()
    total, px_occ, py_occ = recursion(px.detach(), py.detach(), torch.zeros_like(starts), boundary)
    torch.testing.assert_close(total[0], want.detach())
    torch.testing.assert_close(px_occ[:, :-1], px.grad)
    torch.testing.assert_close(py_occ, py.grad)


@pytest.mark.parametrize("recursion", [band_recursion, band_recursion_torch])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_stays_in_its_utterance(recursion, value: float) -> None:
    px, py, starts, boundary = random_band(5, 3, 8, 4)
    boundary[:, 3], boundary[:, 2] = 8, starts[:, -1]
    py[1, 4] = value
    total, px_occ, _ = recursion(px, py, starts, boundary)
    assert torch.isfinite(total[[0, 2]]).all() and not torch.isfinite(total[1])
    assert torch.isfinite(px_occ[[0, 2]]).all()


@numba_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_can_run_it() -> None:
    """A data-loading worker is forked after the parent's threads were started."""
    band = random_band(1, 4, 10, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        want = band_recursion(*band)[0]
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.alarm(60)  # ends a deadlock
                torch.set_num_threads(2)
                status = int(not torch.equal(band_recursion(*band)[0], want))
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)


def test_torch_replaces_triton_if_it_does_not_work(capsys: pytest.CaptureFixture[str]) -> None:
    """On a CPU it does not work."""
    assert lattice.on_gpu.__wrapped__(torch.device("cpu")) is lattice.band_recursion_torch
    assert "Triton" in capsys.readouterr().err
