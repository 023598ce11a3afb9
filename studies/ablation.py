"""The same training with each control of the gradient (filter, clip, none) and each seed, and what came out of it.

studies/ablation.py [--conf FILE] --data-dir data/tiny --exp-dir exp/tiny [key.sub=value ...]

Each run is an experiment of its own in EXP/ablation/<control>-<seed>: trained, averaged and decoded by the programs of
run.sh, several runs at once, each with one thread. A run that is finished is not made again, one that was stopped goes
on. One seed gives all controls the same first weights and the same batches. Section `ablation` of the configuration
says what is run; average.num is at most half of the epochs, so that the first epochs stay out of the average. A training
that is given up for its non-finite steps counts as diverged. The report: see studies/ablation_report.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.errors import UserError
from local.common.processes import cores
from local.config import config_from_dict, config_hash, load_config, to_dict
from local.config.schema import Config
from local.corpus.corpus_yaml import load_corpus
from local.data.tokenizer import lang_dir
from studies.ablation_report import Outcome, read_outcome, write_report

import yaml

ROOT = Path(__file__).resolve().parent.parent
TRAINING = ("model", "gradient", "loss", "optim", "train", "features", "augment", "data")  # sections a training depends on
DECODING = ("average", "decode")
GIVEN_UP = "(train.max_bad_steps is "  # in the last line of a training that was given up
STARTED, DONE, DIVERGED = "started", "done", "diverged"


@dataclass(frozen=True)
class Run:
    """One training: its control, seed and folder, and what it adds to the configuration."""

    control: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """As its folder is called."""
        return self.folder.name


@dataclass(frozen=True)
class Marker:
    """RUN/ablation.yaml: how far the run is, a hash of the prepared data ("" where not known), the configuration."""

    status: str
    data: str
    config: dict[str, Any]

    def changed(self, now: Marker, sections: Sequence[str], where: Path) -> list[str]:
        """Which of these sections differ from those of `now`; keys that this one lacks (of an older version) count as
        what conf/base.yaml says."""
        before = to_dict(config_from_dict(self.config, where=str(where)))
        return [section for section in sections if before[section] != now.config[section]]


def runs_of(cfg: Config, overrides: Sequence[str], folder: Path) -> list[Run]:
    """All runs that section `ablation` asks for, seed by seed, so that an unfinished study can be compared too."""
    epochs = cfg.ablation.num_epochs
    common = [
        *(o for o in overrides if not o.startswith("ablation.")),
        f"train.num_epochs={epochs}", "train.num_threads=1", "decode.num_threads=1",
        f"data.num_workers={0 if cfg.data.num_workers == 0 else 1}", f"decode.methods=[{cfg.ablation.method}]",
        f"average.num={min(cfg.average.num, max(1, epochs // 2))}",
    ]  # fmt: skip
    return [
        Run(control, seed, folder / f"{control}-{seed}", (*common, f"gradient.control={control}", f"train.seed={seed}"))
        for seed in cfg.ablation.seeds
        for control in cfg.ablation.controls
    ]


def data_hash(data_dir: Path, cfg: Config) -> str:
    """A hash of what the prepared data are: tokens and the parts' lists."""
    corpus = load_corpus(data_dir / "corpus.yaml", cfg.data)
    kind = "features" if cfg.features.type == "precomputed" else "cuts"
    files = [lang_dir(data_dir, cfg.lang) / "bpe.model", *(data_dir / kind / f"{part}.jsonl.gz" for part in corpus.parts())]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing; prepare.sh makes it")
    return config_hash(*(file.read_bytes().hex() for file in files))


def say(line: str) -> None:
    """Print a line whole: `print` writes the line's end by itself, and another thread's text comes between."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Runner:
    """Makes runs; `stop` ends the programs that are running."""

    def __init__(self, conf: str | None, data_dir: Path) -> None:
        self.conf, self.data_dir = conf, data_dir
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.lock = threading.Lock()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        self.env["PYTHONUNBUFFERED"] = "1"  # so that the log's last line is what a program said last

    def stop(self) -> None:
        """End what runs; nothing more is started."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()

    def make(self, run: Run) -> str:
        """Train, average, decode, as far as it is not done. Returns DONE or DIVERGED, raises `UserError` for else."""
        cfg = load_config(self.conf, run.overrides)
        now = Marker(STARTED, data_hash(self.data_dir, cfg), to_dict(cfg))
        before = read_marker(run.folder)
        if before is not None:
            changed = [f"section {name}" for name in before.changed(now, TRAINING, run.folder)]
            changed += ["the prepared data"] if before.data not in ("", now.data) else []
            if changed:
                raise UserError(f"{run.folder}: {', '.join(changed)} changed since; remove it or use another --exp-dir")
            same = not before.changed(now, DECODING, run.folder)
            if before.status == DIVERGED or before.status == DONE and same:
                say(f"{run.name}: {before.status} already")
                return before.status
        write_marker(run.folder, now)
        started = time.perf_counter()
        say(f"{run.name}: runs, see {run.folder}/log.txt")
        status = self._execute(run)
        write_marker(run.folder, replace(now, status=status))
        say(f"{run.name}: {status}, {(time.perf_counter() - started) / 60:.1f} min")
        return status

    def _execute(self, run: Run) -> str:
        common = ["--conf", self.conf] if self.conf else []
        data = ["--data-dir", str(self.data_dir)]
        exp = ["--exp-dir", str(run.folder)]
        averaged = ["--checkpoint", str(run.folder / "averaged.pt")]
        log = run.folder / "log.txt"
        if not self._program("train.py", [*common, *data, *exp, *run.overrides], log):
            last = last_line(log)
            if GIVEN_UP in last:
                return DIVERGED
            raise UserError(f"{run.name}: training failed: {last} ({log})")
        shutil.rmtree(run.folder / "decode", ignore_errors=True)  # of other methods or parts
        for name, arguments in (("average.py", [*exp, *common]), ("decode.py", [*averaged, *data, *exp, *common])):
            if not self._program(name, [*arguments, *run.overrides], log):
                raise UserError(f"{run.name}: local/{name} failed: {last_line(log)} ({log})")
        return DONE

    def _program(self, name: str, arguments: list[str], log: Path) -> bool:
        """Run one of local/; whether it ended well. Its output goes to the end of `log`."""
        with log.open("ab") as output:
            with self.lock:
                if self.stopped:
                    raise UserError("stopped")
                command = [sys.executable, str(ROOT / "local" / name), *arguments]
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.env)
                self.running.add(process)
            code = process.wait()
        with self.lock:
            self.running.discard(process)
            if self.stopped:
                raise UserError("stopped")
        return code == 0


def read_marker(folder: Path) -> Marker | None:
    """None for a run that was not begun. A training by local/train.py alone counts as started, its data are not known.

    `UserError` for a folder with something else in it.
    """
    path, config = folder / "ablation.yaml", folder / "config.yaml"
    if path.is_file():
        return Marker(**yaml.safe_load(path.read_text(encoding="utf-8")))
    if config.is_file():
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        return Marker(STARTED, "", {key: value for key, value in values.items() if key != "run"})
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else than a run of this program; move it away")
    return None


def write_marker(folder: Path, marker: Marker) -> None:
    """Make the run's folder and its marker."""
    with atomic_write(folder / "ablation.yaml") as tmp:
        tmp.write_text(yaml.safe_dump(asdict(marker), sort_keys=False), encoding="utf-8")


def last_line(log: Path) -> str:
    """The last line of a program's output that says something."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def make_all(runs: Sequence[Run], runner: Runner, jobs: int, method: str) -> list[Outcome]:
    """All runs, `jobs` at once. `UserError` at the end, naming those that failed otherwise than by diverging."""
    failed: list[str] = []
    found: list[Outcome] = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for run, future in [(run, pool.submit(runner.make, run)) for run in runs]:
                try:
                    status = future.result()
                except UserError as e:
                    failed.append(str(e))
                    print(f"error: {e}", file=sys.stderr, flush=True)
                    continue
                found.append(read_outcome(run.folder, run.control, run.seed, method, status == DIVERGED))
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed, no report: {failed[0]}")
    return found


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", help="YAML over conf/base.yaml")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_args()
    cfg = load_config(args.conf, args.overrides)
    folder = args.exp_dir / "ablation"
    runs = runs_of(cfg, args.overrides, folder)
    jobs = min(cfg.ablation.jobs or cores(), len(runs))
    print(f"{len(runs)} runs of {cfg.ablation.num_epochs} epochs, {jobs} at once", flush=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    try:
        outcomes = make_all(runs, Runner(args.conf, args.data_dir), jobs, cfg.ablation.method)
    finally:
        signal.signal(signal.SIGTERM, before)
    about = (
        f"{cfg.ablation.num_epochs} epochs of {args.data_dir}, seeds {', '.join(map(str, cfg.ablation.seeds))}, "
        f"{cfg.ablation.method}, optim {cfg.optim.name} with lr {cfg.optim.lr:g}, filter threshold "
        f"{cfg.gradient.threshold:g}, clip norm {cfg.gradient.clip_norm:g}"
    )
    listed = args.data_dir / "outliers.txt"  # by studies/stress_data.py
    planted = listed.read_text(encoding="utf-8").split() if listed.is_file() else []
    print(write_report(outcomes, about, folder, planted), end="")


if __name__ == "__main__":
    main()
