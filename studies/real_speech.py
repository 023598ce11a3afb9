"""Train all of studies/real_speech.yaml on mini LibriSpeech, decode, and write the table of their results.

.venv/bin/python -m studies.real_speech --exp-dir exp/real_speech [--corpus-dir DIR] [--jobs N] [--runs NAME,NAME] [--report]

Each training is an experiment of run.sh, EXP/NAME-SEED, with one thread; several run at once, and EXP/NAME-SEED.log has the
output. A finished training is skipped and a stopped one resumes, so this program can be stopped and called again. EXP/table.md
has the results of all that is decoded, each compared with the run that the plan names; EXP/errors.tsv has the errors of each
utterance, for paired tests with other systems. --report writes both without training.
Data of fewer hours have some of the training speakers; tokens and language model are made from these speakers alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.processes import cores
from local.common.text_files import read_yaml
from local.corpus.librispeech import find_tree
from local.corpus.manifest_lines import read_manifest
from studies.programs import ROOT, Programs, last_line, make_all
from studies.real_speech_report import write_report

from lhotse import SupervisionSegment

CORPUS, CONF = "mini_librispeech", Path("egs/mini_librispeech/conf")
TRAIN, DEV, TEST = "train-clean-5", "dev", "dev-clean-2"
PREPARED = ("lang.", "augment.speed_perturb=")  # keys that change prepared data
OPTIONAL = ("keys", "hours", "seeds", "against")  # keys of a run in the plan, besides conf


@dataclass(frozen=True)
class Run:
    """One training: its name, configuration, changed keys, hours of speech (None: all), seed, and what to compare it with."""

    name: str
    conf: str
    keys: tuple[str, ...]
    hours: float | None
    seed: int
    against: str

    @property
    def folder(self) -> str:
        """The name of its experiment."""
        return f"{self.name}-{self.seed}"

    @property
    def data(self) -> str:
        """The name of its data folder, its own if the keys change what is prepared."""
        if any(key.startswith(PREPARED) for key in self.keys):
            return f"{CORPUS}-{self.name}"
        return CORPUS if self.hours is None else f"{CORPUS}-{self.hours}h"


def read_plan(path: Path) -> list[Run]:
    """Return the runs of a plan: the first seed of each, then the second ones. An unfinished study thus compares all runs.

    Raises `UserError` naming file and run if a key is wrong.
    """
    runs: list[tuple[int, Run]] = []
    plan = read_yaml(path)
    if not isinstance(plan, dict):
        raise UserError(f"{path}: a plan has names of runs, each with its keys, such as 'baseline: {{conf: baseline}}'")
    for name, values in plan.items():
        if not isinstance(values, dict) or not set(values) <= {"conf", *OPTIONAL} or "conf" not in values:
            raise UserError(f"{path}: run '{name}' must have conf, and may have {', '.join(OPTIONAL)}; it has {values}")
        keys, hours, against = tuple(values.get("keys", ())), values.get("hours"), str(values.get("against", next(iter(plan))))
        if against not in plan:
            raise UserError(f"{path}: run '{name}': against '{against}' is not a run of the plan")
        seeds = enumerate(values.get("seeds", [1]))
        runs += [(n, Run(str(name), str(values["conf"]), keys, hours, seed, against)) for n, seed in seeds]
    return [run for _, run in sorted(runs, key=lambda found: found[0])]


def command(run: Run, exp_dir: Path, corpus_dir: Path | None, options: Sequence[str]) -> list[str]:
    """Return the call of run.sh that makes a run; corpus_dir: the folder of its audio (None: downloaded)."""
    data, folder = ROOT / "data" / run.data, exp_dir / run.folder
    call = ["./run.sh", "--corpus", CORPUS, "--conf", str(CONF / f"{run.conf}.yaml"), "--data-dir", str(data)]
    call += ["--exp-dir", str(folder), "--python", sys.executable, "--nj", "1", "--nproc", "1", *options]
    call += ["--corpus-dir", str(corpus_dir)] if corpus_dir is not None else []
    threads = ("train.num_threads=1", "decode.num_threads=1", "data.num_workers=1")
    return [*call, *threads, *run.keys, f"train.seed={run.seed}"]


def supervisions(data_dir: Path, part: str) -> Iterator[SupervisionSegment]:
    """Yield the supervisions of a part of prepared data."""
    return read_manifest(data_dir / "manifests" / f"supervisions_{part}.jsonl.gz", SupervisionSegment, "prepare.sh")


def speakers_of(data_dir: Path, hours: float) -> list[str]:
    """Return the first training speakers by name, as many as have about `hours` together."""
    seconds: dict[str, float] = {}
    for segment in supervisions(data_dir, TRAIN):
        seconds[str(segment.speaker)] = seconds.get(str(segment.speaker), 0.0) + segment.duration
    taken: list[str] = []
    for speaker in sorted(seconds):
        total = sum(seconds[name] for name in taken)
        if abs(total + seconds[speaker] - 3600 * hours) > abs(total - 3600 * hours):
            break
        taken.append(speaker)
    return taken


def link_speakers(tree: Path, data_dir: Path, hours: float, out: Path) -> Path:
    """Make a corpus of links to training speakers of about `hours`, and to all speakers of dev and test. Return its folder.

    tree: the audio. data_dir: the prepared data of all hours.
    """
    folders = {TRAIN: (TRAIN, speakers_of(data_dir, hours)), TEST: (TEST, sorted(p.name for p in (tree / TEST).iterdir()))}
    folders[DEV] = (TRAIN, sorted({str(segment.speaker) for segment in supervisions(data_dir, DEV)}))
    for part, (source, speakers) in folders.items():
        for speaker in speakers:
            link = out / part / speaker
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to((tree / source / speaker).resolve())
    return out


def prepare(runs: Sequence[Run], exp_dir: Path, corpus_dir: Path | None, programs: Programs) -> dict[str, Path | None]:
    """Prepare the data of all runs, one after another. Return by data folder where its audio is (None: downloaded)."""
    audio: dict[str, Path | None] = {}
    smaller = any(run.hours is not None for run in runs)
    whole = [replace(runs[0], keys=(), hours=None)] if smaller else []  # its speakers are linked
    # One folder serves several configurations, of which some compute features in training and others need them stored.
    for run in {(run.data, run.conf, run.keys): run for run in (*whole, *runs)}.values():
        audio[run.data] = corpus_dir
        if run.hours is not None:
            tree = find_tree(corpus_dir or ROOT / "download")
            audio[run.data] = link_speakers(tree, ROOT / "data" / CORPUS, run.hours, exp_dir / "corpus" / f"{run.hours}h")
        execute(programs, command(run, exp_dir, audio[run.data], ["--stop-stage", "prepare"]), exp_dir / "prepare.log")
    return audio


def execute(programs: Programs, call: Sequence[str], log: Path) -> None:
    """Run a call of run.sh. Raises `UserError` with its last line if it fails."""
    status = programs.run(call, log, ROOT)
    if status != 0:
        raise UserError(f"{log.stem}: run.sh ended with status {status}: {last_line(log)} ({log})")


def train(run: Run, exp_dir: Path, audio: Path | None, programs: Programs) -> None:
    """Train, decode and score a run, as far as this is not done yet."""
    call = command(run, exp_dir, audio, ["--stage", "train", "--stop-stage", "score"])
    execute(programs, call, exp_dir / f"{run.folder}.log")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs and write the table."""
    parser = make_parser(__doc__, conf=False, exp_dir=True)
    parser.add_argument("--corpus-dir", type=Path, help="folder with train-clean-5 and dev-clean-2; else they are downloaded")
    parser.add_argument("--plan", type=Path, default=ROOT / "studies" / "real_speech.yaml", help="the list of trainings")
    parser.add_argument("--runs", help="only these of the plan, as NAME,NAME")
    parser.add_argument("--jobs", type=int, default=cores(), help="trainings at the same time; default: %(default)s")
    parser.add_argument("--report", action="store_true", help="train nothing; write the table of what is decoded")
    args = parser.parse_args(argv)
    exp_dir = args.exp_dir.resolve()
    runs = read_plan(args.plan)
    if args.runs and (unknown := set(args.runs.split(",")) - {run.name for run in runs}):
        raise UserError(f"--runs: {', '.join(sorted(unknown))} not in {args.plan}")
    chosen = [run for run in runs if not args.runs or run.name in args.runs.split(",")]
    exp_dir.mkdir(parents=True, exist_ok=True)
    if not args.report:
        programs = Programs()
        audio = prepare(chosen, exp_dir, args.corpus_dir and args.corpus_dir.resolve(), programs)
        make_all(lambda run: train(run, exp_dir, audio[run.data], programs), chosen, programs, max(1, args.jobs))
    folders: dict[str, dict[int, Path]] = {}
    for run in runs:
        folders.setdefault(run.name, {})[run.seed] = exp_dir / run.folder
    print(write_report(exp_dir, folders, {run.name: run.against for run in runs}, TEST), end="")


if __name__ == "__main__":
    main()
