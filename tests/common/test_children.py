"""Children die with their parent; the death of one is an error of one line; nothing stands still."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from local.common import children
from local.common.children import each_in_a_process, how_it_ended, process_pool, room_for_children
from local.common.errors import UserError
from tests.conftest import ROOT
from tests.killed_run import state

import pytest


def die(number: int) -> int:
    """Kill this process if the number is 3; answer only after a while."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return 10 * number


def refuse(number: int) -> int:
    if number == 2:
        raise OSError(errno.ENOSPC, "No space left on device", "a.wav")
    return number


def in_pool(function: Callable[[int], int]) -> list[int]:
    with process_pool(2, "some audio") as pool:
        return [future.result() for future in [pool.submit(function, number) for number in range(8)]]


def apart(function: Callable[[int], int]) -> list[int]:
    return list(each_in_a_process(function, range(8), 3, "some audio"))


@pytest.mark.parametrize("way", [in_pool, apart])
def test_a_killed_process_is_one_line(way: Callable[[Callable[[int], int]], list[int]]) -> None:
    with pytest.raises(UserError, match=r"some audio.*signal 9.*memory"):
        way(die)
    with pytest.raises(OSError, match=r"a\.wav"):
        way(refuse)
    assert way(abs) == list(range(8))


@pytest.mark.parametrize("work", ["time.sleep, 0.5", """eval, '__import__("os").kill(__import__("os").getpid(), 9)'"""])
def test_a_pool_with_much_to_do_ends(work: str) -> None:
    """What is submitted fills the pipe to the processes; with Python 3.10 the program then never ended."""
    code = "import time; from local.common.children import process_pool\nwith process_pool(2, 'numbers') as pool:\n"
    code += f"    found = [pool.submit({work}) for _ in range(2)] + [pool.submit(len, bytes(10**6)) for _ in range(9)]\n"
    code += "    time.sleep(0.2)\n    raise KeyboardInterrupt\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert "KeyboardInterrupt" in done.stderr or "signal 9" in done.stderr, done.stderr


def test_each_item_has_a_process_of_its_own() -> None:
    found = list(each_in_a_process(lambda _: os.getpid(), range(5), 2, "numbers"))
    assert len(set(found)) == 5 and os.getpid() not in found
    assert list(each_in_a_process(lambda n: time.sleep(0.2 * (n == 0)) or n, range(5), 3, "numbers")) == list(range(5))


def test_how_processes_end() -> None:
    assert how_it_ended(3) == "ended with status 3" and "signal 15" in how_it_ended(-15)
    assert "memory" in how_it_ended(-9) and "memory" not in how_it_ended(-15)
    assert f"signal {signal.SIGBUS.value}" in (bus := how_it_ended(-signal.SIGBUS)) and "memory" in bus  # /dev/shm is full


@pytest.mark.parametrize(("number", "where"), [(errno.ENOSPC, "/dev/shm"), (errno.EAGAIN, "ulimit")])
def test_no_room_for_processes(number: int, where: str) -> None:
    with pytest.raises(UserError, match=where), room_for_children():
        raise OSError(number, os.strerror(number))
    with pytest.raises(OSError, match=r"a\.wav"), room_for_children():  # a disk of the user's
        raise OSError(number, os.strerror(number), "a.wav")


PARENTS = {  # programs that print the numbers of their children, which stand still
    "pool": "with ending_signals(), process_pool(2, 'x') as pool: list(pool.map(stay, range(2)))",
    "apart": "with ending_signals(): list(each_in_a_process(stay, range(2), 2, 'x'))",
    "spawned": (
        "if __name__ == '__main__':\n"
        " with ending_signals(), process_pool(2, 'x', 'spawn') as pool: list(pool.map(stay, range(2)))"
    ),
    "command": "[subprocess.Popen(['sh', '-c', 'echo $$; exec sleep 60'], preexec_fn=end) for _ in range(2)][0].wait()",
}
PROGRAM = """
import functools, os, subprocess, sys, time
from local.common.children import die_with_parent, each_in_a_process, process_pool
from local.common.signals import ending_signals
end = functools.partial(die_with_parent, os.getpid())
def stay(_):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> Callable[[str], subprocess.Popen[str]]:
    def begin(kind: str) -> subprocess.Popen[str]:
        (tmp_path / "parent.py").write_text(PROGRAM + PARENTS[kind])
        return started([sys.executable, str(tmp_path / "parent.py")], env={**os.environ, "PYTHONPATH": str(ROOT)})

    return begin


def gone(pids: list[int], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while any(state(pid) not in (None, "Z", "X") for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("kind", PARENTS)
def test_children_die_with_their_parent(start: Callable[[str], subprocess.Popen[str]], kind: str) -> None:
    process = start(kind)
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    assert gone(pids), f"{kind}: they outlive their parent"


@pytest.mark.parametrize("kind", ["pool", "apart", "spawned"])
def test_ctrl_c_stops_all_without_a_word_of_the_children(start: Callable[[str], subprocess.Popen[str]], kind: str) -> None:
    process = start(kind)
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(2)]
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert gone(pids) and errors.count("Traceback") == 1, errors  # that of the program, which has no `program`


def test_a_parent_that_is_gone_already(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.fork()
    if pid == 0:
        children.die_with_parent(1 << 30)
        time.sleep(60)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    pid = os.fork()
    if pid == 0:
        children.LIBC = None  # as elsewhere
        children.WATCH_EVERY = 0.05
        children.die_with_parent(1 << 30)
        time.sleep(60)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
