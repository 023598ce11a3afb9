"""A program while it imports its libraries: Ctrl-C and too little memory give one line."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT

import pytest

PROGRAMS = [[str(ROOT / "local" / "train.py")], ["-m", "local.wer"], ["-m", "studies.ablation"]]
# Instead of a library. A signal just before one long sleep would wait for its end.
SLOW = """
import os, time
open(os.environ["STARTED"], "w").close()
for _ in range(400):
    time.sleep(0.05)
"""


def started(arguments: list[str], folder: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "STARTED": str(folder / "started")}
    pipe = subprocess.PIPE
    command = [sys.executable, *arguments, "--data-dir", "none", "--exp-dir", "none"]
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=folder, preexec_fn=before)


@pytest.mark.parametrize("arguments", PROGRAMS)
def test_ctrl_c_while_a_program_imports(tmp_path: Path, arguments: list[str]) -> None:
    for library in ("torch", "numpy", "yaml", "omegaconf"):
        (tmp_path / f"{library}.py").write_text(SLOW)
    process = started(arguments, tmp_path)
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=10)
    assert (process.returncode, out, errors) == (130, "", "interrupted\n")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems ignore this limit")
@pytest.mark.parametrize("megabytes", [300, 1000])
def test_too_little_memory_for_the_libraries(tmp_path: Path, megabytes: int) -> None:
    limit = megabytes * 10**6
    process = started(PROGRAMS[0], tmp_path, lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert "ulimit -v" in errors and f"{megabytes} MB" in errors


HIDDEN = """
import mmap, sys
from local.common.cli import program
taken = [mmap.mmap(-1, 700 * 10**6)]
@program
def main():
    raise {}
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems ignore this limit")
@pytest.mark.parametrize(
    "error",
    ["OSError('Could not find/load shared object file')", "RuntimeError('could not create a primitive')", "MemoryError()"],
)
def test_an_error_that_hides_its_reason(tmp_path: Path, error: str) -> None:
    """As llvmlite and oneDNN raise them."""
    (tmp_path / "program.py").write_text(HIDDEN.format(error))
    for limit, lines in ((10**9, 1), (resource.RLIM_INFINITY, 1 if error == "MemoryError()" else 10)):
        process = started(
            [str(tmp_path / "program.py")], tmp_path, lambda limit=limit: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        )
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1 and ("Traceback" in errors) == (lines > 1), errors
        assert lines > 1 or errors.count("\n") == 1 and ("1000 MB" in errors) == (limit == 10**9)


def test_other_errors_keep_their_traceback_and_other_programs_their_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import none_such\n")
    _, errors = started(PROGRAMS[0], tmp_path).communicate(timeout=60)
    assert "Traceback" in errors and "none_such" in errors
    code = "import signal, local; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
