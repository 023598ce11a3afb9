"""Runs the recipe's programs, each in a fork of one process that has imported them all: 0.1 s instead of 4 s a run.

python -m tests.fault_server     a line of JSON in ({"program", "argv", "stdout", "stderr"}), one out ({"code"})
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

LIMIT = 120  # seconds, then the run counts as hanging; the longest takes 2 on an idle core
MEMORY = 8 << 30  # bytes of address space: what asks for more gets an error, and others' work lives on
PROGRAMS = {
    "manifests": "prepare_manifests", "lang": "prepare_lang", "cuts": "prepare_cuts", "noise": "prepare_noise",
    "features": "compute_features", "train": "train", "average": "average", "decode": "decode", "wer": "wer",
    "lm": "train_lm", "tune": "tune", "stream": "stream", "ngram": "ngram", "graph": "prepare_graph", "sample": "lm_sample",
}  # fmt: skip


@dataclass
class Run:
    """What became of a run. code: the exit status; -14 (SIGALRM) where it hung."""

    code: int
    out: str
    err: str


class Server:
    """The other end: a process that lives until `close`."""

    def __init__(self, folder: Path) -> None:
        """folder: for the runs' output."""
        one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}  # no thread may live when forking
        one["CUDA_VISIBLE_DEVICES"] = ""  # nor a GPU be in use
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault_server"], cwd=ROOT, env={**os.environ, **one}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

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
    """The forked process: becomes the program, as a shell would have started it."""
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
            os.killpg(pid, signal.SIGKILL)  # whatever it left behind
        print(json.dumps({"code": code}), flush=True)


if __name__ == "__main__":
    serve()
