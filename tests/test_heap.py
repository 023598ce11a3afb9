"""Freed memory goes back to the system even where something that lives on lies behind it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from local.heap import HUGE_PAGES
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt and malloc_trim are glibc's")
# A first block of 30 MB, freed, makes glibc take all smaller ones from its heap; the last piece keeps the heap's end up.
PROGRAM = """
import os, sys, torch
from benchmarks.bench_memory import resident
from local.heap import keep_large_blocks_apart, release_free_memory
size, count, apart = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
if apart:
    keep_large_blocks_apart()
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


@pytest.mark.parametrize(("size", "count", "apart"), [(30_000, 2000, False), (600_000, 100, False), (600_000, 100, True)])
def test_free_pages_go_back_to_the_system(size: int, count: int, apart: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, str(size), str(count), str(apart)]
    full, freed, released = map(
        float, subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    )
    assert full > 0.95 * size * count * 4 / 2**20
    assert freed < 0.05 * full if apart else freed > 0.9 * full  # glibc left alone keeps all of it
    assert released < 0.05 * full


@pytest.mark.skipif(not HUGE_PAGES.is_dir(), reason="this kernel has no huge pages")
def test_the_trainers_large_tensors_ask_for_huge_pages() -> None:
    """Also after all that local/train.py imports: torch asks only if its first tensor found the variable."""
    program = (
        "import local.train, torch; local.train.keep_large_blocks_apart(); kept = torch.ones(25_000_000)\n"
        "print('hg' in open('/proc/self/smaps').read().split())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "True\n"
