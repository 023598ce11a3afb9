"""A process that measures, in any interpreter, asked by JSON lines over pipes, so that backends can take turns."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write
from local.common.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # the script is run by its path, perhaps by another Python


class Worker:
    """A script of this folder, started for one backend; the first line it prints has versions, or {"error": ...}."""

    def __init__(self, backend: str, script: str, options: Sequence[str], k2_python: Path) -> None:
        """Start `script`. Raises UserError if the interpreter is missing or the backend does not load."""
        elsewhere = backend == "k2" and importlib.util.find_spec("k2") is None
        python = k2_python if elsewhere else Path(sys.executable)
        if not python.is_file():
            raise UserError(f"{python}: no such interpreter for k2; ./test.sh makes it, or give --k2-python")
        command = [str(python), str(ROOT / "benchmarks" / script), "--backend", backend, *options]
        self.backend = backend
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT
        )
        self.versions = self._read()
        if "error" in self.versions:
            raise UserError(f"backend {backend}: {self.versions['error']}")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the worker's answer, or {"error": ...} if it failed or died (usually of too little memory)."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": "its process has ended"}
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"process ended with status {self.process.wait()}"}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(versions: dict[str, Any], answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Run the worker's side: print the versions, then answer requests until the pipe is closed."""
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        try:
            result = answer(json.loads(line))
        except (RuntimeError, MemoryError) as e:  # too little memory is a result, too
            result = {"error": str(e).splitlines()[0]}
        print(json.dumps(result), flush=True)


def hardware() -> str:
    """Return the processor's name and the number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def write_results(out: Path, stem: str, result: Any, text: str) -> None:
    """Write `result` to out/<stem>.json and `text` to out/<stem>.md."""
    out.mkdir(parents=True, exist_ok=True)
    for suffix, content in (("json", json.dumps(result, indent=1) + "\n"), ("md", text)):
        with atomic_write(out / f"{stem}.{suffix}") as tmp:
            tmp.write_text(content, encoding="utf-8")
