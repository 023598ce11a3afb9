"""Report problems and how to fix them, one line each; change nothing. ./run.sh doctor calls it.

    .venv/bin/python -m local.doctor --corpus tiny --data-dir data/tiny --exp-dir exp/tiny --conf egs/tiny/conf/tiny.yaml

The last line is a summary. Exit status: 0 if there is no error (with --strict: and no warning), else 1. docs/doctor.md lists
the checks.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from local.common.cli import make_parser, program
from local.common.errors import UserError, described
from local.health import environment, hardware
from local.health.finding import Finding, Run, error, guarded, note

if TYPE_CHECKING:
    from local.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
STATES = ("given", "whole", "old", "unfinished", "missing")  # of .venv, see `Run`


class Examination:
    """Calls checks, prints what they find, and counts it."""

    def __init__(self) -> None:
        self.checks, self.counts, self.notes, self.known = 0, Counter[str](), list[str](), set[Finding]()

    def call(self, checks: Iterable[Callable[..., Iterable[Finding]]], *args: object) -> None:
        """Call each of `checks` with `args`."""
        for check in checks:
            self.checks += 1
            for finding in guarded(check(*args)):
                self.add(finding)

    def add(self, finding: Finding) -> None:
        """Print a finding, once if several checks have it; keep a note for the summary."""
        if finding in self.known:
            return
        self.known.add(finding)
        self.counts[finding.level] += 1
        if finding.level == "note":
            self.notes.append(finding.what)
        else:
            print(finding, flush=True)

    def summary(self) -> str:
        """Return the last line."""
        counts = [(self.counts[level], level) for level in ("error", "warning")]
        found = " and ".join(f"{n} {level}{'s' if n > 1 else ''}" for n, level in counts if n) or "nothing found"
        return "; ".join([f"doctor: {self.checks} checks, {found}", *self.notes])


def examine(args: argparse.Namespace, seen: Examination) -> None:
    """Call all checks that can be called: the later ones need packages, a configuration, and what they look at."""
    run = Run(ROOT, args.environment, args.corpus, args.data_dir, args.exp_dir, args.corpus_dir, nproc=args.nproc)
    seen.call(environment.CHECKS, run)
    if run.environment in ("missing", "unfinished"):
        seen.call(hardware.CHECKS, run)
        return
    seen.call(environment.PACKAGE_CHECKS, run)
    try:
        examine_run(run, args, seen)
    except (ImportError, OSError, RuntimeError) as e:  # of a library
        if not isinstance(e, ImportError) or not seen.counts["error"]:  # else a line names the package
            seen.add(error(f"a library fails: {described(e)}", "fix it, or let ./run.sh make a new .venv"))
        seen.add(note("the configuration, the data and the experiment are not checked"))


def examine_run(run: Run, args: argparse.Namespace, seen: Examination) -> None:
    """Call the checks that need packages. What was not looked at becomes a note."""
    from local.config import load_config
    from local.corpus.corpus_yaml import load_corpus
    from local.health import configuration, experiment, mix
    from local.health.sizes import hours_of

    import torch

    prepared = (run.data_dir / "corpus.yaml").is_file() and (run.data_dir / "cuts").is_dir()
    yaml = run.data_dir if prepared else ROOT / "egs" / run.corpus
    try:
        cfg = load_config(args.conf, args.overrides)
        corpus = load_corpus(yaml / "corpus.yaml", cfg.data)
        hours = hours_of(cfg, run.data_dir, corpus.train) + mix.other_hours(cfg, run.data_dir)
    except UserError as e:
        seen.add(error(str(e)))
        seen.call(hardware.CHECKS, run)
        seen.add(note("the configuration, the data and the experiment are not checked"))
        return
    nproc = run.nproc or max(1, torch.cuda.device_count())  # as local/train.py
    run = replace(run, cfg=cfg, parts=tuple(corpus.parts()), hours=hours, nproc=nproc)
    seen.call((*environment.RUN_CHECKS, *configuration.FIRST_CHECKS), run)
    if args.conf is None:
        seen.call(hardware.CHECKS, replace(run, cfg=None))
        seen.add(note("stage prepare will choose the configuration, which is not checked yet"))
    else:
        seen.call((*hardware.CHECKS, *hardware.RUN_CHECKS, *configuration.CHECKS), run)
    if prepared:
        seen.call(mix.CHECKS, run)
        examine_data(run, cfg, args.all, seen)
    else:
        seen.add(note(f"{run.data_dir} is not prepared: its data are not checked"))
    if (run.exp_dir / "checkpoints").is_dir() or (run.exp_dir / "train.csv").is_file():
        seen.call(experiment.CHECKS, run)


def examine_data(run: Run, cfg: Config, every: bool, seen: Examination) -> None:
    """Call the checks of prepared data, the quick ones first. every: read all audio, not a sample."""
    from local.health import audio, duplicates, fit, parts, text

    for module in (parts, text, duplicates, fit, audio):
        seen.call(module.CHECKS, run.data_dir, cfg, every)
    if (checkpoint := run.exp_dir / "averaged.pt").is_file():
        seen.call(fit.MODEL_CHECKS, run.data_dir, cfg, every, checkpoint)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Print the findings and the summary."""
    parser = make_parser(__doc__, data_dir=True, exp_dir=True)
    parser.add_argument("--corpus", required=True, help="a folder of egs/")
    parser.add_argument("--corpus-dir", type=Path, help="folder of the audio")
    parser.add_argument("--nproc", type=int, default=0, help="processes that train together; 0: one per GPU")
    parser.add_argument("--environment", choices=STATES, default="given", help="what ./run.sh finds as .venv")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for warnings, too")
    parser.add_argument("--all", action="store_true", help="read all audio, not a sample")
    args = parser.parse_intermixed_args(argv)
    seen = Examination()
    examine(args, seen)
    print(seen.summary())
    sys.exit(1 if seen.counts["error"] or args.strict and seen.counts["warning"] else 0)


if __name__ == "__main__":
    main()
