"""The soak of tests/soak.py in a short form; it runs for 30 minutes by hand: python -m tests.soak."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
def test_a_killed_run_equals_the_whole_one_and_leaves_nothing() -> None:
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.8", "--pace", "0.5", "2", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and done.stdout.endswith("PASSED\n"), done.stdout + done.stderr
