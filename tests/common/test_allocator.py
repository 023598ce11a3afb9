"""Memory goes back to the system, and what is kept for shapes that do not come again is little."""

from __future__ import annotations

import platform
import subprocess
import sys

from local.common.allocator import HUGE_PAGES
from tests.conftest import ROOT

import pytest
import torch

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")


def output(program: str, *args: str) -> str:
    """Of a Python program in a process of its own, whose memory nobody else uses."""
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


# A first block of 30 MB, freed, makes glibc take all smaller ones from its heap; the last pieces keep the heap's end up.
FREEING = """
import os, sys, torch
from benchmarks.bench_memory import resident
from local.common.allocator import release_free_memory
size, count = int(sys.argv[1]), int(sys.argv[2])
torch.ones(7_500_000)
start = resident(os.getpid())[0]
pieces = [torch.ones(size) for _ in range(count)]
kept = [torch.ones(size), *(torch.ones(1000) for _ in range(100))]
full = resident(os.getpid())[0]
del pieces
freed = resident(os.getpid())[0]
release_free_memory()
print(full - start, freed - start, resident(os.getpid())[0] - start)
"""


@glibc
@pytest.mark.parametrize(("size", "count"), [(30_000, 2000), (600_000, 100)])
def test_free_pages_go_back_to_the_system(size: int, count: int) -> None:
    full, freed, released = map(float, output(FREEING, str(size), str(count)).split())
    assert full > 0.95 * size * count * 4 / 2**20
    assert freed > 0.9 * full  # glibc left alone keeps all of it
    assert released < 0.05 * full


SHAPES = """
import os, sys, torch
from benchmarks.bench_memory import resident
import local.train
if sys.argv[1] == "True":
    local.train.tune_memory()
torch.set_num_threads(2)
weight = torch.randn(8, 8, 3, 3)
for height in range(4, 34):
    for width in range(4, 34):
        torch.conv2d(torch.ones(2, 8, height, width), weight)
    if height == 8:
        start = resident(os.getpid())[0]
print(resident(os.getpid())[0] - start)
"""


@glibc
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_compiled_operations_for_past_shapes_do_not_pile_up() -> None:
    """750 shapes of a convolution: as oneDNN is, it keeps an operation for each."""
    bounded, default = (float(output(SHAPES, str(tuned))) for tuned in (True, False))
    assert default > 20.0 and bounded < 0.7 * default, f"{bounded:.1f} and {default:.1f} MiB"


@pytest.mark.skipif(not HUGE_PAGES.is_dir(), reason="this kernel has no huge pages")
def test_the_trainers_large_tensors_ask_for_huge_pages() -> None:
    """Also after all that local/train.py imports: torch asks only if its first tensor found the variable."""
    program = (
        "import local.train, torch; local.train.tune_memory(); kept = torch.ones(25_000_000)\n"
        "print('hg' in open('/proc/self/smaps').read().split())"
    )
    assert output(program) == "True\n"
