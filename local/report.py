"""Stage "report": one page that shows an experiment, to be opened in a browser.

    .venv/bin/python -m local.report --exp-dir exp/tiny [--data-dir data/tiny] [--max-mb 12] [--compare exp/other ...]

It writes EXP/report.html: WER and its errors, all wrong utterances with their audio, the training, the data, and where all
this came from. With --compare it writes EXP/compare.html instead: WER with significance, utterances that got better or worse,
configurations, trainings. A page needs no other file and no network, except for audio that is too large for it: that is linked.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.html_page import Page
from local.common.locks import reads, writes
from local.reporting.audio import AudioBudget
from local.reporting.calibration import add_calibration
from local.reporting.comparison import add_comparison
from local.reporting.cost import add_cost
from local.reporting.damped import add_damped
from local.reporting.data import add_data
from local.reporting.delay import add_delay
from local.reporting.errors import Confusions, add_errors, measured
from local.reporting.experiment import Experiment, read_experiment
from local.reporting.origin import add_origin
from local.reporting.overview import add_overview
from local.reporting.pictures import make_painter
from local.reporting.training import add_training
from local.reporting.utterances import add_utterances

FOLDER = Path(__file__).parent / "reporting"
LEAST_MB, MOST_MB = 1.0, 1000.0
UTTERANCES, DAMPED = 0.75, 0.05  # shares of the limit: for the list of utterances, and for audio of damped utterances


def megabytes(text: str) -> float:
    """Return a limit of the page's size. Raises `argparse.ArgumentTypeError` unless it is a number in the range."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not LEAST_MB <= value <= MOST_MB:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from {LEAST_MB:g} to {MOST_MB:g}")
    return value


def report(experiment: Experiment, limit: int) -> Path:
    """Write the report and return its path. limit: of its size in bytes."""
    levels, confusions = measured(experiment), Confusions()
    style, script = ((FOLDER / f"report.{form}").read_text(encoding="utf-8") for form in ("css", "js"))
    page = Page(f"Report of {experiment.exp_dir}", experiment.exp_dir, style, script)
    add_overview(page, experiment)
    add_errors(page, experiment, levels, confusions)
    add_utterances(page, experiment, levels, confusions, make_painter(experiment), int(UTTERANCES * limit))
    for add in (add_calibration, add_delay, add_cost, add_training):
        add(page, experiment)
    add_damped(page, experiment, AudioBudget(int(DAMPED * limit), page.folder))
    add_data(page, experiment)
    add_origin(page, experiment)
    return page.write("report")


def comparison(experiments: Sequence[Experiment], limit: int) -> Path:
    """Write the page that compares the first experiment with the others and return its path. limit: of its size in bytes."""
    folder = experiments[0].exp_dir
    page = Page(f"Comparison of {folder}", folder, (FOLDER / "report.css").read_text(encoding="utf-8"))
    add_comparison(page, experiments, int(UTTERANCES * limit))
    return page.write("compare")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False, exp_dir=True)
    parser.add_argument("--data-dir", type=Path, help="prepared data: speakers, audio and pictures of the utterances")
    parser.add_argument("--max-mb", type=megabytes, default=12.0, metavar="MB", help="limit of the page's size (default: 12)")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="EXP", default=[], help="others: write compare.html instead")
    args = parser.parse_args(argv)
    writes(args.exp_dir)
    if args.data_dir is not None:
        reads(args.data_dir)
    limit = int(1e6 * args.max_mb)
    experiment = read_experiment(args.exp_dir, args.data_dir)
    others = [read_experiment(other, None) for other in args.compare]
    path = comparison([experiment, *others], limit) if others else report(experiment, limit)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
