"""Search for trainings in which the gradient explodes without a planted fault, and compare filter, clipping and nothing.

.venv/bin/python -m studies.explosion --conf egs/mini_librispeech/conf/baseline.yaml --data-dir data/mini_librispeech
    --exp-dir exp/explosion [--axes rate,control] [--seconds 600] [--jobs N] [--report] [key.sub=value ...]

The trainings are those of studies/explosion.yaml, or of --grid: models of 12 narrow layers on real speech, joined to 20 s.
Each has a limit of CPU time and stops earlier if it shows nothing. A finished one is skipped, so this program can be stopped
and called again; one that was stopped begins again. Each writes EXP/runs/NAME: a row for each step, layer and sequence.
EXP/map.csv has one row for each training, EXP/explosion.html the plots.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from local.common.cli import choose_device, make_parser, program
from local.common.csv_table import write_table
from local.common.errors import UserError
from local.common.locks import reads, writes
from local.common.processes import cores
from local.common.text_files import read_yaml
from local.config import config_hash, load_config, to_dict
from local.config.schema import Config
from studies.explosion_data import Joined, Setting
from studies.explosion_report import write_page
from studies.explosion_run import Result, run, setting_config
from studies.short_training import Row, run_all, write_csv

import torch

GRID = Path(__file__).resolve().parent / "explosion.yaml"
FIELDS = {f.name: f.type for f in fields(Setting)}
_speech: dict[Path, Joined] = {}  # of this process: reading it takes as long as several steps


@dataclass(frozen=True)
class Job:
    """One training. limit: seconds of CPU time. folder: for its rows. config: a hash of what all trainings depend on."""

    cfg: Config
    data_dir: Path
    setting: Setting
    limit: float
    folder: Path
    config: str


def read_grid(path: Path) -> list[Setting]:
    """Return the settings of a grid, in its order.

    Raises:
        UserError: an axis has an unknown field, or a value of a wrong type.
    """
    grid, found = read_yaml(path), []
    for axis, values in grid.items() if isinstance(grid, dict) else [("", None)]:
        if not isinstance(values, dict):
            raise UserError(f"{path}: axis '{axis}' must have names with values, it has {values}")
        lists = [value if isinstance(value, list) else [value] for value in values.values()]
        for chosen in itertools.product(*lists):
            found.append(make_setting(path, str(axis), dict(zip(values, chosen, strict=True))))
    return found


def make_setting(path: Path, axis: str, values: dict[str, Any]) -> Setting:
    """Return the setting with these values; its name lists them."""
    keys = tuple(f"{name}={value}" for name, value in values.items() if "." in name)
    own = {name: value for name, value in values.items() if "." not in name}
    for name, value in own.items():
        wanted = {"float": (int, float), "int": (int,), "bool": (bool,)}.get(str(FIELDS.get(name)))
        if wanted is None or not isinstance(value, wanted) or isinstance(value, bool) != (wanted == (bool,)):
            raise UserError(
                f"{path}: axis '{axis}': '{name}: {value}' is not a field and value of a setting; see studies/explosion_data.py"
            )
        own[name] = float(value) if wanted == (int, float) else value
    short = " ".join(f"{name.split('.')[-1]}={value}" for name, value in values.items())
    return Setting(f"{axis} {short}", axis, keys, **own)


def folder_of(exp_dir: Path, setting: Setting) -> Path:
    """Return the folder of a training's rows."""
    return exp_dir / "runs" / re.sub(r"[^\w.=-]+", "_", setting.name)


def make(job: Job) -> Row:
    """Make a training and write its rows, unless it is finished; return its summary. Raises `UserError` as `finished` does."""
    if (row := finished(job)) is not None and not is_left(job):
        return row
    if job.data_dir not in _speech:
        _speech[job.data_dir] = Joined(job.cfg, job.data_dir)
    result = run(job.cfg, _speech[job.data_dir], job.setting, job.limit)
    result.summary |= {"limit": job.limit, "config": job.config}
    write_result(job.folder, result)
    return result.summary


def write_result(folder: Path, result: Result) -> None:
    """Write the rows of a training; summary.csv last, it says that the training is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("steps", "layers", "sequences"):
        write_csv(folder / f"{name}.csv", getattr(result, name))
    write_csv(folder / "summary.csv", [result.summary])


def finished(job: Job) -> Row | None:
    """Return the summary of a finished training, as texts; None if it is not finished.

    Raises:
        UserError: the folder has a training of another setting, configuration or data folder.
    """
    path = job.folder / "summary.csv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    now = {**asdict(job.setting), "keys": " ".join(job.setting.keys), "config": job.config}
    texts = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in now.items()}
    if changed := [name for name, text in texts.items() if row.get(name) != text]:
        raise UserError(f"{job.folder}: {', '.join(changed)} changed since; remove the folder to make this training again")
    return row


def is_left(job: Job) -> bool:
    """Return whether a training is to be made: it is not finished, or it ended at a limit below that of the job."""
    row = finished(job)
    return row is None or (row["ended"] == "time" and float(row["limit"]) < job.limit)


def write_map(exp_dir: Path, rows: Sequence[Row]) -> None:
    """Write map.csv, one row for each finished training; a training without a finite loss has no dev_loss."""
    write_table(exp_dir / "map.csv", list(dict.fromkeys(name for row in rows for name in row)), rows)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Make the trainings that are not finished, and write the map and the page."""
    parser = make_parser(__doc__, data_dir=True, exp_dir=True)
    parser.add_argument("--grid", type=Path, default=GRID, help="the list of trainings")
    parser.add_argument("--axes", help="only these of the grid, as NAME,NAME")
    parser.add_argument("--seconds", type=float, default=600.0, help="CPU time of a training at most (%(default)s)")
    parser.add_argument("--jobs", type=int, default=cores(), help="trainings at the same time (%(default)s)")
    parser.add_argument("--report", action="store_true", help="train nothing; write the map and the page of what is there")
    args = parser.parse_args(argv)
    if args.jobs < 1 or args.seconds <= 0:
        raise UserError("--jobs must be at least 1, --seconds above 0")
    writes(args.exp_dir, new=True)
    reads(args.data_dir)
    cfg = load_config(args.conf, args.overrides)
    settings = read_grid(args.grid)
    if args.axes and (unknown := set(args.axes.split(",")) - {setting.axis for setting in settings}):
        raise UserError(f"--axes: {', '.join(sorted(unknown))} not in {args.grid}")
    choose_device(1)  # for its threads; the study runs on the CPU
    config = config_hash(to_dict(cfg), str(args.data_dir))
    jobs = [Job(cfg, args.data_dir, s, args.seconds, folder_of(args.exp_dir, s), config) for s in settings]
    chosen = [job for job in jobs if not args.axes or job.setting.axis in args.axes.split(",")]
    if not args.report:
        waiting = [job for job in chosen if is_left(job)]
        for setting in {job.setting.keys: job.setting for job in waiting}.values():
            setting_config(cfg, setting)  # a wrong key stops the program now
        hours = len(waiting) * args.seconds / 3600
        print(f"{len(waiting)} of {len(chosen)} trainings to make, at most {hours:.1f} hours of one core", flush=True)
        torch.set_num_threads(args.jobs)  # run_all starts as many processes, of one thread each
        if waiting:
            run_all(make, waiting, "explosion")
    rows = [row for job in jobs if (row := finished(job)) is not None]
    if not rows:
        raise UserError(f"{args.exp_dir}: no training is finished yet")
    write_map(args.exp_dir, rows)
    print(f"{len(rows)} trainings; wrote {write_page(args.exp_dir, [job.folder for job in jobs if finished(job) is not None])}")


if __name__ == "__main__":
    main()
