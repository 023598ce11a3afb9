"""Say what will not work and how to mend it, one line each; change nothing. ./run.sh doctor calls it.

    .venv/bin/python -m local.doctor --corpus tiny --data-dir data/tiny --exp-dir exp/tiny --conf egs/tiny/conf/tiny.yaml

The last line is a summary. Exit status: 0 if there is no error (with --strict: and no warning), else 1. docs/doctor.md lists
the checks.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from local.common.cli import make_parser, program
from local.health import environment
from local.health.finding import Finding, Run, guarded

ROOT = Path(__file__).resolve().parent.parent
Call = Callable[[], Iterable[Finding]]  # a check with its arguments


def calls(args: argparse.Namespace) -> Iterator[Call]:
    """Yield the checks that can run: those of data, configuration and experiment need .venv, and what they look at."""
    run = Run(ROOT, args.environment, args.corpus, args.data_dir, args.exp_dir, args.corpus_dir, nproc=args.nproc)
    yield from (lambda check=check: check(run) for check in environment.CHECKS)


def summary(checks: int, counts: Counter[str], notes: Sequence[str]) -> str:
    """Return the last line."""
    found = [f"{counts[level]} {level}{'s' if counts[level] > 1 else ''}" for level in ("error", "warning") if counts[level]]
    return "; ".join([f"doctor: {checks} checks, {' and '.join(found) or 'nothing found'}", *notes])


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Print the findings and the summary."""
    parser = make_parser(__doc__, data_dir=True, exp_dir=True)
    parser.add_argument("--corpus", required=True, help="a folder of egs/")
    parser.add_argument("--corpus-dir", type=Path, help="folder of the audio")
    parser.add_argument("--nproc", type=int, default=0, help="processes that train together; 0: one per GPU")
    states = ("given", "whole", "old", "unfinished", "missing")
    parser.add_argument("--environment", choices=states, default="given", help="what ./run.sh finds as .venv")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for warnings, too")
    parser.add_argument("--all", action="store_true", help="read all audio, not a sample")
    args = parser.parse_intermixed_args(argv)
    counts, notes, checks = Counter[str](), list[str](), 0
    for check in calls(args):
        checks += 1
        for finding in guarded(check()):
            counts[finding.level] += 1
            if finding.level == "note":
                notes.append(finding.what)
            else:
                print(finding, flush=True)
    print(summary(checks, counts, notes))
    sys.exit(1 if counts["error"] or args.strict and counts["warning"] else 0)


if __name__ == "__main__":
    main()
