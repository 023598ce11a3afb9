"""Freed memory returns to the system, and little is cached for shapes that do not repeat."""

from __future__ import annotations

import platform
import subprocess
import sys

from local.common.allocator import HUGE_PAGES
from tests.conftest import ROOT

import pytest
import torch

pytestmark = pytest.mark.slow  # they test the C library, oneDNN and the kernel as much as this project
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")


def output(program: str, *args: str) -> str:
    """Run a Python program in a process of its own, whose memory nobody else uses."""
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


RESIDENT = """
import sys, torch
from pathlib import Path
from local.common.meter import proc_kib
def resident():
    return proc_kib(Path("/proc/self/status"), "RssAnon") / 1024
"""
# A first block of 30 MB, freed, makes glibc take all smaller ones from its heap; the last pieces keep the heap's end up.
FREEING = f"""{RESIDENT}
from local.common.allocator import release_free_memory
size, count = int(sys.argv[1]), int(sys.argv[2])
torch.ones(7_500_000)
start = resident()
pieces = [torch.ones(size) for _ in range(count)]
kept = [torch.ones(size), *(torch.ones(1000) for _ in range(100))]
full = resident()
del pieces
freed = resident()
release_free_memory()
print(full - start, freed - start, resident() - start)
"""


@glibc
def test_free_pages_return_to_the_system() -> None:
    size, count = 30_000, 2000
    full, freed, released = map(float, output(FREEING, str(size), str(count)).split())
    assert full > 0.95 * size * count * 4 / 2**20
    assert freed > 0.9 * full  # without release_free_memory glibc keeps all of it
    assert released < 0.05 * full


SHAPES = f"""{RESIDENT}
import local.train
if sys.argv[1] == "True":
    local.train.tune_memory()
torch.set_num_threads(2)
weight = torch.randn(8, 8, 3, 3)
for height in range(4, 34):
    for width in range(4, 34):
        torch.conv2d(torch.ones(2, 8, height, width), weight)
    if height == 8:
        start = resident()
print(resident() - start)
"""


@glibc
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_compiled_operations_for_past_shapes_do_not_pile_up() -> None:
    """Without tune_memory, oneDNN keeps an operation for each of 750 shapes of a convolution."""
    bounded, default = (float(output(SHAPES, str(tuned))) for tuned in (True, False))
    assert default > 20.0 and bounded < 0.7 * default, f"{bounded:.1f} and {default:.1f} MiB"


@pytest.mark.skipif(not HUGE_PAGES.is_dir(), reason="this kernel has no huge pages")
def test_large_tensors_of_the_trainer_ask_for_huge_pages() -> None:
    """Also after all imports of local/train.py: torch asks only if its first tensor found the variable."""
    program = (
        "import local.train, torch; local.train.tune_memory(); kept = torch.ones(25_000_000)\n"
        "print('hg' in open('/proc/self/smaps').read().split())"
    )
    assert output(program) == "True\n"
