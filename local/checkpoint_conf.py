"""Write the configuration of a checkpoint as YAML, to prepare a test set for its model (command evaluate of run.sh).

    .venv/bin/python -m local.checkpoint_conf --checkpoint exp/mine/averaged.pt --out exp/mine/evaluate/my_test/checkpoint.yaml

The file has no training and dev parts, no files of noise, text and checkpoints, and the test parts of corpus.yaml: all else
is as the model was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.artifacts.checkpoint import load_averaged
from local.common.atomic import write_text
from local.common.cli import make_parser, program
from local.config import to_dict

import yaml


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False)
    parser.add_argument("--checkpoint", type=Path, required=True, help="averaged.pt, or a checkpoint of training")
    parser.add_argument("--out", type=Path, required=True, help="the YAML file to write")
    args = parser.parse_args(argv)
    cfg = load_averaged(args.checkpoint)[1]
    cfg.data.train_parts, cfg.data.dev_parts, cfg.data.test_parts = [], [], None
    cfg.augment.musan = cfg.lm.text = cfg.train.init = cfg.train.init_tokens = None
    cfg.average.checkpoints = cfg.train.init_modules = []
    text = yaml.safe_dump(to_dict(cfg), sort_keys=False, allow_unicode=True)
    write_text(args.out, f"# The configuration of {args.checkpoint}, by local/checkpoint_conf.py\n{text}")


if __name__ == "__main__":
    main()
