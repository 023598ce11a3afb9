"""Shared by all tests: reference data beside the repository, threads, hypothesis profiles, named skips."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONPATH"] = str(ROOT)  # for programs that tests start, as run.sh does

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of speech and reference numbers, $ASR_SHARED or ../shared; skip the test if it is absent."""
    path = Path(os.environ.get("ASR_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("needs ../shared (speech and reference numbers), absent here")
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: with small models, two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def why_no_k2() -> str | None:
    """Return None if k2 can be imported, else the reason to skip."""
    try:
        importlib.import_module("k2")
    except (ImportError, OSError, RuntimeError) as e:  # a k2 for another torch can raise any of these
        return f"needs k2 ({type(e).__name__}); ./test.sh makes an environment that has it"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("k2") is not None and (reason := why_no_k2()):
        pytest.skip(reason)


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a process in a session of its own; all of the session is killed afterwards."""
    made: list[subprocess.Popen] = []

    def start(command: list[str], **options: object) -> subprocess.Popen:
        made.append(
            subprocess.Popen(  # type: ignore[call-overload]
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
            )
        )
        return made[-1]

    yield start
    for process in made:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()
