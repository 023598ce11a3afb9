"""Signals that end a program, where Python drops the exceptions that they raise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from local.common import signals
from local.common.signals import Stopped, ending_signals, held_back
from tests.conftest import ROOT

import pytest

PROGRAM = """
import os, signal, sys, time
from local.common.cli import program

def told(*_):
    os.kill(os.getpid(), signal.{signal})

class Deleted:
    __del__ = told

def fork():
    os.register_at_fork(after_in_parent=told)
    if os.fork() == 0:
        os._exit(0)

@program
def main():
    {moment}
    time.sleep(20)
    print("still here")

main()
"""


@pytest.mark.parametrize("moment", ["fork()", "Deleted()"])
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_is_not_lost_where_python_drops_exceptions(moment: str, number: str, status: int) -> None:
    command = [sys.executable, "-c", PROGRAM.format(signal=number, moment=moment)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    assert "still here" not in done.stdout and "Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_the_alarm_of_others_is_left_alone() -> None:
    from local.common.signals import ending_signals

    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with ending_signals():
            pass
        end = time.monotonic() + 20
        while not rung and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert rung == [signal.SIGALRM]


@pytest.mark.parametrize("moment", ["work", "wait", "end", "never"])
def test_a_signal_held_back_ends_no_work(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "AGAIN", 1e6)  # however slow the machine is
    done: list[str] = []

    def work(name: str) -> None:
        if name == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(name)

    def run() -> None:
        with ending_signals(), held_back() as may_stop:
            with held_back():  # blocks can be nested
                work("work")
            try:
                with may_stop():
                    work("wait")
            finally:
                work("end")

    try:
        if moment == "never":
            run()
        else:
            with pytest.raises(Stopped) as stopped:
                run()
            assert stopped.value.number == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)  # the same wish: the terminal and run.sh both send it
    finally:
        signals._as_before()
    assert done == (["work", "end"] if moment in ("work", "wait") else ["work", "wait", "end"])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
