"""Memory: what is free, and what something took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from local.common.errors import UserError
from local.training.free_memory import free_bytes
from tests.conftest import ROOT

import pytest
import torch

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a pass's peak")


def system(root: Path, available: int, own: str, **limits: tuple[str, int, int]) -> Path:
    """A /proc and /sys under `root`; limits: of a control group ("" for the top, "a__b" for a/b) memory.max, current, cache."""
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


@linux
def test_free_memory_falls_by_what_is_taken() -> None:
    found, kept = [], []
    for _ in range(10):  # other programs, which run here too, may give as much back meanwhile
        before = free_bytes(CPU)
        kept.append(torch.ones(150_000_000))  # 600 MB; kept: pages given back count as free only later, but are taken first
        found.append(before - free_bytes(CPU))
        if 5e8 < found[-1] < 7e8:
            return
    pytest.fail(f"blocks of 600 MB took {found}")


@linux
def test_peaks_do_not_begin_at_those_of_the_parent() -> None:
    """ru_maxrss of a program is at least what the process that started it once had."""
    program = "import torch; from local.common.meter import Usage; u = Usage(torch.device('cpu'))\n"
    program += "with u.of('x'): pass\nprint(u.peak_mib['x'])"
    parent = f"import sys, subprocess; x = b'x' * 2 * 10**9; subprocess.run([sys.executable, '-c', {program!r}], check=True)"
    out = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert 50 < float(out) < 1500
