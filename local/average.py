"""Stage "average": one file with averaged weights, config and tokens, all that decoding needs.

local/average.py --exp-dir exp/tiny [--conf FILE] [average.last=20 average.num=5 ...] [--output exp/tiny/averaged.pt]

average.mode=running: the mean over all batches of a range of epochs (or steps), from the running averages kept in the
checkpoints at its two ends. average.mode=plain: the mean of the range's checkpoints, or of average.checkpoints.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from local.artifacts.averaging import CHECKPOINT_KEYS, load_for_averaging, plain, running
from local.artifacts.checkpoint import check_finite, checkpoints, save_file, tokenizer_of
from local.common.cli import program
from local.common.errors import UserError
from local.config import config_from_dict, load_config


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="default: EXP_DIR/averaged.pt")
    parser.add_argument("--conf", help="takes section `average` from this YAML instead of the checkpoint's config")
    parser.add_argument("overrides", nargs="*", metavar="average.key=value")
    args = parser.parse_args()
    folder = args.exp_dir / "checkpoints"
    newest = checkpoints(folder, "epoch") or checkpoints(folder, "step")
    if not newest:
        raise UserError(f"{folder}: no checkpoints; stage 1 of run.sh makes them")
    path = newest[0][1]
    if args.conf:
        options = load_config(args.conf, args.overrides).average
    else:
        options = config_from_dict(load_for_averaging(path, running=False)["config"], args.overrides, where=str(path)).average
    state, end, what = (plain if options.mode == "plain" else running)(folder, options)
    weights = {k: v.to(end["model"][k].dtype) for k, v in state.items()}  # float64 ends here: the model's own type
    output = args.output or args.exp_dir / "averaged.pt"
    check_finite(weights, folder)
    tokenizer_of(end, folder)
    config_from_dict(end["config"], where=str(folder))
    save_file({"model": weights, "averaged": f"{options.mode}: {what}", **{k: end[k] for k in CHECKPOINT_KEYS}}, output)
    print(f"{output}: {options.mode} average of {what}")


if __name__ == "__main__":
    main()
