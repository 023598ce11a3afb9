"""Stage "average": write one file with averaged weights, config and tokens, which is all that decoding needs.

.venv/bin/python -m local.average --exp-dir exp/tiny [--conf FILE] [--output FILE] [average.last=20 average.num=5 ...]

average.mode=running: the mean over all batches of a range of epochs or steps, from the running averages at its two ends.
average.mode=plain: the mean of the checkpoints of the range, or of average.checkpoints.
With an output in another folder, it runs beside the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.artifacts.averaging import load_for_averaging, make_average
from local.artifacts.checkpoint import checkpoints, save_file
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.locks import writes
from local.config import config_from_dict, load_config


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, exp_dir=True)
    parser.add_argument("--output", type=Path, help="default: EXP_DIR/averaged.pt")
    args = parser.parse_intermixed_args(argv)
    output = args.output or args.exp_dir / "averaged.pt"
    if output.resolve().is_relative_to(args.exp_dir.resolve()):
        writes(args.exp_dir)
    folder = args.exp_dir / "checkpoints"
    newest = checkpoints(folder, "epoch") or checkpoints(folder, "step")
    if not newest:
        raise UserError(f"{folder}: no checkpoints; stage 1 (train) of run.sh makes them")
    path = newest[0][1]
    if args.conf:
        options = load_config(args.conf, args.overrides).average
    else:
        options = config_from_dict(load_for_averaging(path, running=False)["config"], args.overrides, where=str(path)).average
    content = make_average(folder, options)
    save_file(content, output)
    print(f"{output}: average {content['label']} ({content['averaged']})")


if __name__ == "__main__":
    main()
