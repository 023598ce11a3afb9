"""Compare the controls of the gradient (filter, clip, none) over several seeds; `./run.sh ablation` runs it.

.venv/bin/python -m studies.ablation [--conf FILE] --data-dir data/tiny --exp-dir exp/tiny [key.sub=value ...]

Each run is an experiment of its own in EXP/ablation/<control>-<seed>. The programs of run.sh train, average and decode it.
Several runs proceed at once, each with one thread. A finished run is skipped, a stopped one resumes. With one seed, all
controls start from the same weights and see the same batches. Section `ablation` of the configuration lists the runs;
average.num is at most half of the epochs, so that the first epochs stay out of the average. A training that stops because
of too many non-finite steps counts as diverged. studies/ablation_report.py writes the report, with WER and curves.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write
from local.common.cli import make_parser, program
from local.common.errors import TrainingDiverged, UserError
from local.common.locks import reads, writes
from local.common.processes import cores
from local.config import config_from_dict, config_hash, load_config, to_dict
from local.config.schema import Config
from local.corpus.corpus_yaml import load_corpus
from local.data.tokenizer import lang_dir
from studies.ablation_report import read_outcome, write_report
from studies.programs import Programs, last_line, make_all

import yaml

TRAINING = ("model", "gradient", "loss", "optim", "train", "features", "augment", "data")  # sections a training depends on
DECODING = ("average", "decode")
OWN_KEYS = {  # that the study sets for its runs, and what sets them
    "train.num_epochs": "ablation.num_epochs",
    "train.seed": "ablation.seeds",
    "gradient.control": "ablation.controls",
    "decode.methods": "ablation.method",
    "train.num_threads": "ablation.jobs",
    "decode.num_threads": "ablation.jobs",
}
STARTED, DONE, DIVERGED = "started", "done", "diverged"


@dataclass(frozen=True)
class Run:
    """One training: its control, seed and folder, and its overrides of the configuration."""

    control: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.name


@dataclass(frozen=True)
class Marker:
    """RUN/ablation.yaml: the run's status, a hash of the prepared data ("": unknown), and its configuration."""

    status: str
    data: str
    config: dict[str, Any]

    def changed(self, now: Marker, sections: Sequence[str], where: Path) -> list[str]:
        """Return which of these sections differ from those of `now`.

        A key that this marker lacks, because an older version wrote it, has the value of conf/base.yaml.
        """
        before = to_dict(config_from_dict(self.config, where=str(where)))
        return [section for section in sections if before[section] != now.config[section]]


def runs_of(cfg: Config, overrides: Sequence[str], folder: Path) -> list[Run]:
    """Return all runs of section `ablation`, seed by seed, so that an unfinished study compares all controls.

    average.num is at most half of the epochs, and a run has at most one data worker.

    Raises:
        UserError: an override is one of the keys that the runs set.
    """
    if taken := [key for override in overrides if (key := override.split("=", 1)[0]) in OWN_KEYS]:
        raise UserError(f"key '{taken[0]}': the ablation sets it for each run; use {OWN_KEYS[taken[0]]}")
    epochs = cfg.ablation.num_epochs
    common = [
        *(o for o in overrides if not o.startswith("ablation.")),
        f"train.num_epochs={epochs}",
        "train.num_threads=1",
        "decode.num_threads=1",
        f"data.num_workers={0 if cfg.data.num_workers == 0 else 1}",
        f"decode.methods=[{cfg.ablation.method}]",
        f"average.num={min(cfg.average.num, max(1, epochs // 2))}",
    ]
    return [
        Run(control, seed, folder / f"{control}-{seed}", (*common, f"gradient.control={control}", f"train.seed={seed}"))
        for seed in cfg.ablation.seeds
        for control in cfg.ablation.controls
    ]


def data_hash(data_dir: Path, cfg: Config) -> str:
    """Return a hash of the prepared data: the tokens and the lists of all parts.

    Raises:
        UserError: a file is missing.
    """
    corpus = load_corpus(data_dir / "corpus.yaml", cfg.data)
    kind = "features" if cfg.features.type == "precomputed" else "cuts"
    files = [lang_dir(data_dir, cfg.lang) / "bpe.model", *(data_dir / kind / f"{part}.jsonl.gz" for part in corpus.parts())]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing; prepare.sh makes it")
    return config_hash(*(file.read_bytes().hex() for file in files))


def say(line: str) -> None:
    """Print a line and its end in one piece; with `print`, text of another thread can come between the two."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Runner:
    """Trains, averages and decodes runs by `programs`."""

    def __init__(self, conf: Path | None, data_dir: Path) -> None:
        self.conf, self.data_dir, self.programs = conf, data_dir, Programs()

    def make(self, run: Run) -> str:
        """Train, average and decode, unless this is done already. Return DONE or DIVERGED.

        Raises:
            UserError: the folder holds another run or something else, or a program failed.
        """
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
                say(f"{run.name}: already {before.status}")
                return before.status
        write_marker(run.folder, now)
        started = time.perf_counter()
        say(f"{run.name}: running, log in {run.folder}/log.txt")
        status = self._execute(run)
        write_marker(run.folder, replace(now, status=status))
        say(f"{run.name}: {status}, {(time.perf_counter() - started) / 60:.1f} min")
        return status

    def _execute(self, run: Run) -> str:
        exp, data = ["--exp-dir", str(run.folder)], ["--data-dir", str(self.data_dir)]
        exit_status = self._program("train", [*exp, *data, "--nproc", "1"], run)
        if exit_status == TrainingDiverged.exit_status:
            return DIVERGED
        self._check("train", exit_status, run)
        shutil.rmtree(run.folder / "decode", ignore_errors=True)  # it may hold other methods or sets
        self._check("average", self._program("average", exp, run), run)
        averaged = ["--checkpoint", str(run.folder / "averaged.pt")]
        self._check("decode", self._program("decode", [*averaged, *exp, *data], run), run)
        return DONE

    def _check(self, name: str, exit_status: int, run: Run) -> None:
        if exit_status != 0:
            log = log_of(run)
            raise UserError(f"{run.name}: local/{name}.py ended with status {exit_status}: {last_line(log)} ({log})")

    def _program(self, name: str, arguments: list[str], run: Run) -> int:
        """Run local/<name>.py, append its output to the run's log, and return its exit status."""
        conf = ["--conf", str(self.conf)] if self.conf else []
        return self.programs.run([sys.executable, "-m", f"local.{name}", *conf, *arguments, *run.overrides], log_of(run))


def read_marker(folder: Path) -> Marker | None:
    """Return a run's marker; None if the run has not started.

    A training that local/train.py made without the ablation counts as started, on unknown data.

    Raises:
        UserError: the folder holds something else.
    """
    path, config = folder / "ablation.yaml", folder / "config.yaml"
    if path.is_file():
        return Marker(**yaml.safe_load(path.read_text(encoding="utf-8")))
    if config.is_file():
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        return Marker(STARTED, "", {key: value for key, value in values.items() if key != "run"})
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not a run of this program; move it away")
    return None


def write_marker(folder: Path, marker: Marker) -> None:
    """Write the marker; make the run's folder if necessary."""
    with atomic_write(folder / "ablation.yaml") as tmp:
        tmp.write_text(yaml.safe_dump(asdict(marker), sort_keys=False), encoding="utf-8")


def log_of(run: Run) -> Path:
    """Return the file with the output of a run's programs."""
    return run.folder / "log.txt"


@program
def main() -> None:
    """Make the runs of section `ablation` and print the report."""
    args = make_parser(__doc__, data_dir=True, exp_dir=True).parse_args()
    writes(args.exp_dir, new=True)
    reads(args.data_dir)
    cfg = load_config(args.conf, args.overrides)
    folder = args.exp_dir / "ablation"
    runs = runs_of(cfg, args.overrides, folder)
    jobs = min(cfg.ablation.jobs or cores(), len(runs))
    print(f"{len(runs)} runs of {cfg.ablation.num_epochs} epochs, {jobs} at once", flush=True)
    runner, method = Runner(args.conf, args.data_dir), cfg.ablation.method
    states = zip(runs, make_all(runner.make, runs, runner.programs, jobs), strict=True)
    outcomes = [
        read_outcome(run.folder, run.control, run.seed, method, status == DIVERGED, cfg.score.unit) for run, status in states
    ]
    about = (
        f"{cfg.ablation.num_epochs} epochs of {args.data_dir}, seeds {', '.join(map(str, cfg.ablation.seeds))}, "
        f"{method}, optim {cfg.optim.name} with lr {cfg.optim.lr:g}, filter threshold "
        f"{cfg.gradient.threshold:g}, clip norm {cfg.gradient.clip_norm:g}"
    )
    listed = args.data_dir / "outliers.txt"  # by studies/stress_data.py
    planted = [name for name in listed.read_text(encoding="utf-8").split("\n") if name] if listed.is_file() else []
    print(write_report(outcomes, about, folder, planted), end="")


if __name__ == "__main__":
    main()
