"""Does the memory of a training grow? Resident memory of the trainer and its data workers over thousands of steps.

    benchmarks/bench_memory.py [--conf egs/tiny/conf/tiny.yaml] [--data-dir data/tiny] [--steps 2000] [key.sub=value ...]

Runs local/train.py on a prepared corpus, reads the memory of its processes from /proc ten times per second (Linux only) and
prints one row per `--window` steps: the largest resident memory of the trainer and of its largest worker. File pages of the
memory-mapped feature archives are the cache of the system and have columns of their own. `growth` compares the last
quarter of the windows with the first quarter after the warm-up. Writes memory.{json,md,png}.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.worker import ENVIRONMENT, ROOT, hardware, write_results
from local.common.atomic import atomic_write
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.html_page import new_figure, save_figure

INTERVAL = 0.1  # seconds between two readings
MIB = 1024.0  # kB, as /proc counts
Sample = dict[str, float]


def resident(pid: int) -> tuple[float, float] | None:
    """Return the MiB of a process without and with a file behind them; None if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    values = {key: int(rest.split()[0]) / MIB for key, _, rest in (x.partition(":") for x in lines) if key.startswith("Rss")}
    return (values["RssAnon"] + values["RssShmem"], values["RssFile"]) if values else None


def children(pid: int) -> list[int]:
    """Return the processes that process `pid` has started."""
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def last_step(table: Path) -> int:
    """Return the step of the last complete line of train.csv, or 0."""
    if not table.is_file():
        return 0
    rows = table.read_text().split("\n")[1:-1]
    return int(rows[-1].split(",")[1]) if rows else 0


def watch(process: subprocess.Popen[bytes], table: Path) -> list[Sample]:
    """Return readings until the process ends, each with the last step in train.csv."""
    samples: list[Sample] = []
    begun = time.monotonic()
    while process.poll() is None:
        own = resident(process.pid)
        workers = [r for r in map(resident, children(process.pid)) if r is not None]
        if own is not None:
            largest = max(workers, default=(0.0, 0.0))
            memory = {"trainer": own[0], "trainer_files": own[1], "worker": largest[0], "worker_files": largest[1]}
            samples.append({"step": last_step(table), "seconds": time.monotonic() - begun, **memory})
        time.sleep(INTERVAL)
    return samples


def windows(samples: Sequence[Sample]) -> list[Sample]:
    """Return for the readings between two lines of train.csv: the first step, its time, and the largest of each memory."""
    by_step: dict[float, list[Sample]] = {}
    for sample in samples:
        by_step.setdefault(sample["step"], []).append(sample)
    result = []
    for step, group in sorted(by_step.items()):
        largest = {key: max(s[key] for s in group) for key in group[0] if key not in ("step", "seconds")}
        result.append({"step": step, "seconds": group[0]["seconds"], **largest})
    return result[:-1]  # the last one is cut short by the end of the process


def growth(rows: Sequence[Sample], key: str, warm_up: int) -> float:
    """Return the relative growth of the median from the first quarter of the windows after the warm-up to the last.

    Raises `UserError` if fewer than four windows follow the warm-up.
    """
    values = [row[key] for row in rows if row["step"] >= warm_up]
    quarter = len(values) // 4
    if quarter == 0:
        raise UserError(f"{len(values)} windows follow the warm-up of {warm_up} steps; at least 4 are needed")
    first = statistics.median(values[:quarter])
    return statistics.median(values[-quarter:]) / first - 1.0 if first else 0.0


def run(args: argparse.Namespace, exp_dir: Path) -> list[Sample]:
    """Train in exp_dir and return the windows. Raises `UserError` if training fails."""
    command = [sys.executable, str(ROOT / "local" / "train.py"), "--conf", str(args.conf)]
    command += ["--data-dir", str(args.data_dir), "--exp-dir", str(exp_dir), "--nproc", "1", "train.num_epochs=1000000"]
    command += [f"train.max_steps={args.steps}", f"train.log_every={args.window}", *args.overrides]
    with (exp_dir / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)})
        samples = watch(process, exp_dir / "train.csv")
    if process.returncode:
        text = (exp_dir / "log").read_text().strip().splitlines() or ["no output"]
        raise UserError(f"training ended with status {process.returncode}: {text[-1]}")
    return windows(samples)


def table(result: dict[str, Any]) -> str:
    """Return Markdown: the growth, then a row per window."""
    o = result["options"]
    lines = [
        "# Memory of a training run",
        "",
        f"{result['date']}, {result['hardware']}, Python {result['versions']['python']}, torch {result['versions']['torch']}, "
        f"{result['versions']['libc']}; {o['conf']}, {' '.join(o['overrides'])}. Largest MiB in each window of "
        f"{o['window']} steps; file pages are the system's cache of memory-mapped features.",
        "",
        f"Growth after {o['warm_up']} steps (median of the last quarter of the windows against the first): "
        + ", ".join(f"{key} {100 * value:+.1f} %" for key, value in result["growth"].items())
        + f"; {result['seconds_per_step']:.3f} s per step.",
        "",
        "| step | seconds | trainer | its file pages | worker | its file pages |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    keys = ("trainer", "trainer_files", "worker", "worker_files")
    lines += [
        f"| {r['step']:.0f} | {r['seconds']:.0f} | " + " | ".join(f"{r[k]:.0f}" for k in keys) + " |" for r in result["windows"]
    ]
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot the memory of the trainer and of its largest worker over steps as PNG."""
    figure = new_figure(5.0)
    axes = figure.subplots()
    for key in ("trainer", "worker"):
        axes.plot([r["step"] for r in result["windows"]], [r[key] for r in result["windows"]], "o-", label=key)
    axes.set(xlabel="step", ylabel="largest resident memory in the window (MiB)", ylim=(0, None))
    axes.legend()
    save_figure(figure, path)


@program
def main() -> None:
    """Train, measure and write the table and the plot."""
    parser = make_parser(__doc__)
    parser.set_defaults(conf=Path("egs/tiny/conf/tiny.yaml"))
    parser.add_argument("--data-dir", type=Path, default=Path("data/tiny"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--window", type=int, default=50, help="steps per row of the table")
    parser.add_argument(
        "--warm-up", type=int, default=400, help="steps before growth is measured, as the loss is not complete yet"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as exp_dir:
        rows = run(args, Path(exp_dir))
    after = [row for row in rows if row["step"] >= args.warm_up]
    result = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": {
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
            "libc": " ".join(platform.libc_ver()),
        },
        "options": {k: v if isinstance(v, int | list) else str(v) for k, v in vars(args).items() if k != "out"},
        "growth": {key: growth(rows, key, args.warm_up) for key in ("trainer", "worker")},
        "seconds_per_step": (after[-1]["seconds"] - after[0]["seconds"]) / (after[-1]["step"] - after[0]["step"]),
        "windows": rows,
    }
    text = table(result)
    print(text)
    write_results(args.out, "memory", result, text)
    with atomic_write(args.out / "memory.png") as tmp:
        plot(result, tmp)


if __name__ == "__main__":
    main()
