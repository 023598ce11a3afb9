"""run.sh and prepare.sh that are told to end, or killed: their programs end too, and the log keeps their last lines."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT
from tests.killed_run import state
from tests.test_stages import SCRIPT, place

import pytest

assert place  # the fixture
PATIENCE = 30.0  # seconds
WORKER = """
import os, sys, time
from pathlib import Path
from local.common.cli import program

@program
def main():
    Path("pid").write_text(str(os.getpid()))
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("tidied")
        Path("tidied").touch()

main()
"""


@pytest.fixture
def worker(place: Path) -> Path:
    (place / "worker.py").write_text(WORKER)
    return place


def until(reached: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < give_up, f"waited {PATIENCE} s for {what}"
        time.sleep(0.02)


def ended(pid: int) -> bool:
    return state(pid) in (None, "Z")


def pid_in(path: Path) -> int:
    until(lambda: path.is_file() and path.read_text(), path.name)
    return int(path.read_text())


def staged(place: Path, start: Callable[..., subprocess.Popen]) -> tuple[subprocess.Popen, int]:
    """Start a script with one stage, the worker; return it and the worker's number."""
    script = SCRIPT + "stage first -- program worker\necho after"
    shell = start(["bash", "-c", script, "test", str(place)])
    number = pid_in(place / "pid")
    until(lambda: "begun" in (place / "log" / "first.log").read_text(), "the worker")
    return shell, number


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGHUP, 129, "stopped by SIGHUP"),
    ],
)
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_ends_the_program_too(
    worker: Path, started: Callable[..., subprocess.Popen], number: int, status: int, line: str, group: bool
) -> None:
    """The whole group gets Ctrl-C, and whatever a service manager sends; the script alone gets `kill`."""
    shell, pid = staged(worker, started)
    (os.killpg if group else os.kill)(shell.pid, number)
    out, err = shell.communicate(timeout=PATIENCE)
    assert shell.returncode == status
    assert ended(pid) and (worker / "tidied").is_file()
    assert [text for text in err.splitlines() if not text.startswith("+")] == [line]  # one message, and no traceback
    assert "tidied" in out and "after" not in out
    log = (worker / "log" / "first.log").read_text()
    assert "tidied" in log and line in log
    assert not (worker / ".done" / "first").exists()


def test_a_killed_script_leaves_no_program(worker: Path, started: Callable[..., subprocess.Popen]) -> None:
    shell, pid = staged(worker, started)
    shell.kill()
    shell.wait()
    until(lambda: ended(pid), "the end of the program")
    assert (worker / "tidied").is_file()
    until(lambda: "stopped by SIGTERM" in (worker / "log" / "first.log").read_text(), "the last lines of the log")


def test_python_may_be_a_script_that_waits_for_it(worker: Path, started: Callable[..., subprocess.Popen]) -> None:
    """Such as one that loads modules of a cluster first; the program's parent is then not the script of the stage."""
    wrapper = worker / "wrapper"
    wrapper.write_text(f'#!/bin/sh\n{sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    script = SCRIPT + f"python={wrapper}; stage first -- program worker"
    shell = started(["bash", "-c", script, "test", str(worker)])
    until(lambda: (worker / "pid").is_file() or shell.poll() is not None, "the worker")
    pid = pid_in(worker / "pid")
    shell.terminate()
    shell.wait(PATIENCE)
    until(lambda: ended(pid), "the end of the program")
    assert shell.returncode == 143 and (worker / "tidied").is_file()


def test_ignored_signals_stay_ignored(worker: Path, started: Callable[..., subprocess.Popen]) -> None:
    """As under nohup."""
    script = SCRIPT + "stage first -- program worker"
    shell = started(
        ["bash", "-c", f"trap '' HUP; exec bash -c '{script.replace(chr(39), chr(39) + chr(92) + chr(39) * 2)}' t {worker}"]
    )
    pid = pid_in(worker / "pid")
    until(lambda: "begun" in (worker / "log" / "first.log").read_text(), "the worker")
    os.killpg(shell.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert shell.poll() is None and not ended(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_run_sh_ends_prepare_sh_and_its_program(worker: Path, started: Callable[..., subprocess.Popen], number: int) -> None:
    python, audio = worker / "python", worker / "audio"
    audio.mkdir()
    (worker / "shell.py").write_text("")
    python.write_text(
        "#!/bin/sh\ncase $2 in\n"
        f"  local.get_audio) echo $PPID > {worker}/prepare; cd {worker}; exec {shlex.quote(sys.executable)} worker.py ;;\n"
        f'  *) exec {shlex.quote(sys.executable)} "$@" ;;\nesac\n'
    )
    python.chmod(0o755)
    folders = [f"--data-dir={worker}/data", f"--exp-dir={worker}/exp", f"--corpus-dir={audio}"]
    run = started(["bash", "run.sh", f"--python={python}", "--corpus=custom", *folders], cwd=ROOT)
    pid, prepare = pid_in(worker / "pid"), pid_in(worker / "prepare")
    assert prepare != run.pid and not ended(prepare)
    os.kill(run.pid, number)
    run.wait(PATIENCE)
    until(lambda: ended(pid) and ended(prepare), "the end of prepare.sh and its program")
    assert run.returncode == (143 if number == signal.SIGTERM else -9)
    assert (worker / "tidied").is_file()


def test_a_program_that_is_killed_alone_fails_its_stage(worker: Path, started: Callable[..., subprocess.Popen]) -> None:
    shell, pid = staged(worker, started)
    os.kill(pid, signal.SIGKILL)
    _, err = shell.communicate(timeout=PATIENCE)
    assert shell.returncode == 1 and "first" in err.splitlines()[-1]


def test_the_second_of_two_signals_may_come_late() -> None:
    """Ctrl-C reaches the program twice, from the terminal and from run.sh: perhaps after it has said that it ends."""
    code = "import atexit, time\nfrom local.common.cli import program\natexit.register(time.sleep, 0.5)\n"
    code += "@program\ndef main():\n    print('begun', flush=True)\n    time.sleep(60)\nmain()\n"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "interrupted\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130 and process.stderr.read() == ""
