"""List all experiments: WER by set, hours, parameters, training time, date, and what differs from base.yaml.

    .venv/bin/python -m local.experiments [--exp-root exp]

It prints the table and writes it to ROOT/INDEX.md. An experiment is a folder with wer.json or train.csv, at any depth. One
that is damaged has dashes and the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.common.atomic import write_text
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.reporting.index import index


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False)
    parser.add_argument("--exp-root", type=Path, default=Path("exp"), help="the folder of all experiments (default: exp)")
    args = parser.parse_args(argv)
    if not args.exp_root.is_dir():
        raise UserError(f"--exp-root {args.exp_root}: no such folder; name the folder that holds the experiments")
    text = index(args.exp_root)
    write_text(args.exp_root / "INDEX.md", text)
    print(text, end="")


if __name__ == "__main__":
    main()
