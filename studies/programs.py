"""Runs of a study: programs of the recipe, several at once, each with one thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from local.common.errors import UserError
from local.common.signals import PARENT

ROOT = Path(__file__).resolve().parent.parent
Run = TypeVar("Run")
Result = TypeVar("Result")


class Programs:
    """The programs that are running; `stop` ends them."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.lock = threading.Lock()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        self.env[PARENT] = str(os.getpid())  # whose end, also by SIGKILL, ends them
        self.env["PYTHONUNBUFFERED"] = "1"  # so that the log shows the progress and ends with the error, if any

    def stop(self) -> None:
        """End the running programs and start no other."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()

    def run(self, command: Sequence[str], log: Path, cwd: Path | None = None) -> int:
        """Run a command, append its output to `log`, and return its exit status. Raises `UserError` after `stop`.

        A process of its own: runs are parallel, a run has one thread, and `stop` can end it at any time.
        """
        with log.open("ab") as output:
            with self.lock:
                if self.stopped:
                    raise UserError("stopped")
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.env, cwd=cwd)
                self.running.add(process)
            exit_status = process.wait()
        with self.lock:
            self.running.discard(process)
            if self.stopped:
                raise UserError("stopped")
        return exit_status


def last_line(log: Path) -> str:
    """Return the last line of a program's output that is not blank: its error."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def make_all(make: Callable[[Run], Result], runs: Sequence[Run], programs: Programs, jobs: int) -> list[Result]:
    """Return make(run) of all runs, `jobs` of them at once; an exception other than `UserError` stops the programs of all.

    Raises:
        UserError: some runs failed; raised after all runs ended.
    """
    found: list[Result] = []
    failed: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in [pool.submit(make, run) for run in runs]:
                try:
                    found.append(future.result())
                except UserError as e:
                    failed.append(str(e))
                    print(f"error: {e}", file=sys.stderr, flush=True)
        except BaseException:
            programs.stop()
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed, no report: {failed[0]}")
    return found
