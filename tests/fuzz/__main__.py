"""Run a fuzzer, or one case of it.

python -m tests.fuzz tables                          the cases of the tests
python -m tests.fuzz tables --seed 17                one case; prints what it does wrong and where its files are
python -m tests.fuzz tables --first 2000 --count 50000      others
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.harness import Target, run, save
from tests.fuzz.report import describe
from tests.fuzz.targets import TARGETS


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", metavar="TARGET", help=", ".join(TARGETS) + "; default: all")
    parser.add_argument("--seed", type=int, help="run this case only")
    parser.add_argument("--first", type=int, default=0, help="first seed (%(default)s)")
    parser.add_argument("--count", type=int, help="number of cases; default: as in the tests")
    parser.add_argument("--save", type=Path, help="where the files of failing cases go; default: a temporary folder")
    args = parser.parse_args()
    if unknown := set(args.target) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    failed = False
    for name in args.target or TARGETS:
        failed |= campaign(TARGETS[name], args)
    sys.exit(1 if failed else 0)


def campaign(target: Target, args: argparse.Namespace) -> bool:
    """Run the cases of one target, print the failures and return whether there are any."""
    count = target.cases if args.count is None else args.count
    numbers = range(args.first, args.first + count) if args.seed is None else [args.seed]
    times: dict[int, float] = {}
    failures = run(target, numbers, times)
    slowest = ", ".join(f"{seed} ({times[seed]:.1f} s)" for seed in sorted(times, key=times.__getitem__)[:-6:-1])
    print(
        f"{target.name}: {len(numbers)} cases, {len(failures)} failures, {sum(times.values()):.1f} s of the processor",
        flush=True,
    )
    print(f"slowest: {slowest}", flush=True)
    folder = args.save or Path(tempfile.gettempdir(), "fuzz-failures")
    if failures:
        print(describe(target, failures, folder), flush=True)
    elif args.seed is not None:
        print(f"its files: {save(target, args.seed, folder)}")
    return bool(failures)


if __name__ == "__main__":
    main()
