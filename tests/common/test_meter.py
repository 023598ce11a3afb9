"""Memory: how much is free, and the peak of a block."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from local.common.errors import UserError
from local.common.meter import Meter, free_bytes
from tests.conftest import ROOT

import pytest
import torch

CPU = torch.device("cpu")


def system(root: Path, available: int, own: str, **limits: tuple[str, int, int]) -> Path:
    """Write a /proc and /sys under `root`.

    limits: memory.max, memory.current and the cache of each control group ("top", or "a__b" for a/b).
    """
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  9 kB\nMemFree:  1 kB\nMemAvailable:  {available} kB\n")
    (root / "proc/self/cgroup").write_text(f"3:cpu:/x\n0::{own}\n")
    for name, (most, current, cache) in limits.items():
        folder = root / "sys/fs/cgroup" / name.replace("top", "").replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in (("max", most), ("current", str(current)), ("stat", f"anon 5\ninactive_file {cache}")):
            (folder / f"memory.{file}").write_text(f"{text}\n")
    return root


def test_free_memory_is_the_least_of_machine_and_limits(tmp_path: Path) -> None:
    mib = 2**20
    assert free_bytes(CPU, system(tmp_path / "a", 5000, "/")) == 5000 * 1024
    assert free_bytes(CPU, system(tmp_path / "b", 5000, "/x", x=("max", 1, 1))) == 5000 * 1024
    assert free_bytes(CPU, system(tmp_path / "c", 5000, "/", top=(f"{4 * mib}", 2 * mib, mib))) == 3 * mib
    outer = system(tmp_path / "d", 9000, "/x/y", x__y=(f"{8 * mib}", mib, 0), x=(f"{3 * mib}", 2 * mib, 0), z=("1", 1, 0))
    assert free_bytes(CPU, outer) == mib
    with pytest.raises(UserError, match="meminfo"):
        free_bytes(CPU, tmp_path / "nothing")


@pytest.mark.slow
def test_free_memory_falls_by_the_size_of_a_tensor() -> None:
    found, kept = [], []
    for _ in range(4):  # other programs may free as much at the same moment
        before = free_bytes(CPU)
        kept.append(torch.ones(50_000_000))  # 200 MB; not freed, because the next block would reuse the pages
        found.append(before - free_bytes(CPU))
        if 1e8 < found[-1] < 3e8:
            return
    pytest.fail(f"blocks of 200 MB took {found}")


@pytest.mark.slow
def test_peaks_are_not_inherited_from_the_parent() -> None:
    """ru_maxrss of a program is at least the peak of the process that started it."""
    program = "import torch; from local.common.meter import Meter; m = Meter(torch.device('cpu'))\n"
    program += "with m.of('x'): pass\nprint(m.peak_mib['x'])"
    parent = f"import sys, subprocess; x = b'x' * 9 * 10**8; subprocess.run([sys.executable, '-c', {program!r}], check=True)"
    out = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert 50 < float(out) < 800


def test_a_meter_adds_seconds_and_keeps_the_highest_peak() -> None:
    meter = Meter(CPU)
    with meter.of("work"):
        block = torch.ones(20_000_000)  # 80 MB
    high, seconds = meter.peak_mib["work"], meter.seconds["work"]
    del block
    with meter.of("work"):
        pass
    assert meter.peak_mib["work"] == high and meter.seconds["work"] > seconds > 0
    if meter.tells_peaks():
        with meter.of("nothing"):
            pass
        assert meter.peak_mib["nothing"] < high - 50
