"""Stop if a data folder holds another corpus than the one that run.sh or prepare.sh was asked for.

.venv/bin/python -m local.check_data --data-dir data/my_audio --corpus-yaml egs/custom/corpus.yaml [--corpus-dir my_audio]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.corpus.corpus_yaml import load_corpus, other_corpus


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False, data_dir=True)
    parser.add_argument("--corpus-yaml", type=Path, required=True, help="egs/<corpus>/corpus.yaml")
    parser.add_argument("--corpus-dir", type=Path, help="folder of the audio")
    parser.add_argument("--other", default="--data-dir and --exp-dir", help="options that name other folders, for the message")
    args = parser.parse_args(argv)
    if why := other_corpus(args.data_dir, load_corpus(args.corpus_yaml).name, args.corpus_dir):
        raise UserError(f"{args.data_dir} {why}; name other folders by {args.other}, or remove {args.data_dir}")


if __name__ == "__main__":
    main()
