"""local/train.py as a process that tests can stop, inspect and kill, a small corpus for it, and a comparison of two runs."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_file
from local.compute_features import main as compute_features
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from tests.conftest import ROOT
from tests.speech_tree import make_part

import torch

SECTIONS = ("model", "average", "optimizer", "schedule", "progress", "rng", "telemetry")  # of a checkpoint
PATIENCE = 600.0  # seconds to wait for a moment; the machine may be busy
SMALL = [
    *(f"model.encoder.{key}=16" for key in ("d_model", "rnn_hidden_size", "dim_feedforward")),
    *("model.encoder.num_layers=2", "model.decoder.dim=16", "model.joiner.dim=16", "features.type=precomputed"),
    *("data.num_buckets=3", "train.max_duration=12", "train.warm_step=10", "train.num_threads=1"),
]


def prepared_corpus(root: Path) -> Path:
    """Prepare data with stored features of three speeds: parts tr (24 utterances) and te (36)."""
    (root / "corpus.yaml").write_text("name: t\nsource: librispeech\ntrain: [tr]\ndev: [te]\ntest: [te]\n")
    make_part(root / "audio", "tr", utterances=12)
    make_part(root / "audio", "te", speakers=3, utterances=12)
    folders = ["--corpus-yaml", str(root / "corpus.yaml"), "--corpus-dir", str(root / "audio")]
    prepare_manifests([*folders, "--data-dir", str(root / "data")])
    for program in (prepare_cuts, prepare_lang, compute_features):
        program(["--data-dir", str(root / "data")])
    return root / "data"


class Run:
    """local/train.py in a process group of its own, which includes its data workers; its output goes to EXP/log."""

    def __init__(self, data: Path, exp_dir: Path, overrides: Sequence[str]) -> None:
        self.exp_dir, self.log = exp_dir, exp_dir / "log"
        command = [sys.executable, str(ROOT / "local" / "train.py"), "--data-dir", str(data), "--exp-dir", str(exp_dir)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *overrides],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )

    def output(self) -> str:
        return self.log.read_text()

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for a moment; fail if training ends before it."""
        give_up = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None, f"training has ended:\n{self.output()}"
            assert time.monotonic() < give_up, f"{PATIENCE} s have passed:\n{self.output()}"
            time.sleep(0.0005)

    def to_the_end(self) -> None:
        try:
            assert self.process.wait(PATIENCE) == 0, self.output()
        finally:
            self.clear()

    def clear(self) -> None:
        """End it if it still runs, so that a failed test leaves no process."""
        if self.process.poll() is None:
            self.kill(whole_group=True)

    def until_training(self) -> None:
        self.until(lambda: "training " in self.output())

    def kill_within(self, inside: Callable[[], bool], whole_group: bool) -> None:
        """Kill while `inside` holds. All processes are stopped first, so that it still holds at the kill."""
        while True:
            self.until(inside)
            os.killpg(self.process.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            while state(self.process.pid) != "T" and time.monotonic() < stopped + 5:
                time.sleep(0.0005)
            if inside():
                return self.kill(whole_group)
            os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self, whole_group: bool) -> None:
        """Send SIGKILL to the trainer, with `whole_group` also to its workers."""
        if whole_group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
            os.killpg(self.process.pid, signal.SIGCONT)
        self.process.wait()


def state(pid: int) -> str | None:
    """Return the letter of a process's state in /proc; None if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def of_group(group: int) -> list[int]:
    """Return the processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def steps(table: Path) -> list[int]:
    """Return the steps of a CSV file's complete lines."""
    lines = table.read_text().split("\n")[:-1] if table.is_file() else []
    return [int(line.split(",")[1]) for line in lines[1:]]


def last_step(table: Path) -> int:
    return max(steps(table), default=0)


def assert_equal(a: Any, b: Any, where: str) -> None:
    """Compare types, keys, values and bits at any depth."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        assert a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8)), where
    else:
        assert a == b, where


def assert_as_if_whole(exp_dir: Path, whole: Path, epochs: int, note: str) -> None:
    """Compare weights, averages, optimiser, generators and tables of both experiments, except times."""
    name = f"epoch-{epochs}.pt"
    ours, expected = (load_file(d / "checkpoints" / name) for d in (exp_dir, whole))
    for section in SECTIONS:
        assert_equal(ours[section], expected[section], f"{section}, {note}")
    for table in ("train.csv", "valid.csv"):
        rows = []
        for folder in (exp_dir, whole):
            with (folder / table).open(newline="") as f:
                read = list(csv.DictReader(f))
            for row in read:
                for key in ("data_wait_share", "frames_per_second"):
                    row.pop(key, None)
            rows.append(read)
        assert rows[0] == rows[1], f"{table}, {note}"
    total = expected["progress"]["step"]
    assert steps(exp_dir / "train.csv") == list(range(1, total + 1)), note
