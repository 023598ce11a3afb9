"""Run the recipe's programs, each in a fork of one process that has imported them all: 0.1 s instead of 4 s per run.

python -m tests.fault_server     reads lines of JSON ({"program", "argv", "stdout", "stderr"}), answers each with {"code"}
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

LIMIT = 120  # seconds until a run counts as hanging; the longest takes 2 on an idle core
MEMORY = 8 << 30  # bytes of address space of a run, so that it cannot use up the machine's memory
PROGRAMS = {
    **{"manifests": "prepare_manifests", "lang": "prepare_lang", "cuts": "prepare_cuts", "noise": "prepare_noise"},
    **{"features": "compute_features", "lm": "train_lm", "graph": "prepare_graph", "sample": "lm_sample"},
    **{name: name for name in ("train", "average", "decode", "wer", "tune", "stream", "ngram")},
}


@dataclass
class Run:
    """The result of a run. code: the exit status; -14 (SIGALRM) if it hung."""

    code: int
    out: str
    err: str


class Server:
    """The client of a server process, which lives until `close`."""

    def __init__(self, folder: Path) -> None:
        """Start the server. folder: for the runs' output."""
        one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}  # a process with threads must not fork
        one["CUDA_VISIBLE_DEVICES"] = ""  # nor may one that uses a GPU
        self._out, self._err = folder / "stdout", folder / "stderr"
        command, pipe = [sys.executable, "-m", "tests.fault_server"], subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **one}, text=True, stdin=pipe, stdout=pipe)

    def run(self, program: str, argv: Sequence[object]) -> Run:
        """Run `local/<program>.py` with these arguments."""
        request = {"program": program, "argv": [*map(str, argv)], "stdout": str(self._out), "stderr": str(self._err)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())["code"]
        texts = (path.read_bytes().decode("utf-8", "backslashreplace") for path in (self._out, self._err))
        return Run(code, *texts)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def child(request: dict) -> None:
    """Become the program, in the forked process."""
    os.setsid()
    signal.alarm(LIMIT)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [request["program"], *request["argv"]]
    code: object = 0
    try:
        importlib.import_module(f"local.{PROGRAMS[request['program']]}").main()
    except SystemExit as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
        code = 70
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def serve() -> None:
    """Answer requests until the input ends."""
    import torch

    torch.set_num_threads(1)
    for module in PROGRAMS.values():
        importlib.import_module(f"local.{module}")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # processes that the run left behind
        print(json.dumps({"code": code}), flush=True)


if __name__ == "__main__":
    serve()
