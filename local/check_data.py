"""Stop if a data folder holds another corpus than the one that run.sh or prepare.sh was asked for.

.venv/bin/python -m local.check_data --data-dir data/my_audio --corpus-yaml egs/custom/corpus.yaml [--corpus-dir my_audio]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.corpus.corpus_yaml import Corpus, load_corpus


def problem(held: Corpus, name: str, corpus_dir: Path | None) -> str:
    """Return how the corpus of a data folder differs from the one asked for; "" if it does not.

    corpus_dir: the folder of the audio; None: not asked for.
    """
    if held.name != name:
        return f"holds corpus '{held.name}' of {held.corpus_dir}, not '{name}'"
    if corpus_dir is not None and held.corpus_dir is not None and Path(held.corpus_dir).resolve() != corpus_dir.resolve():
        return f"holds the corpus in {held.corpus_dir}, not the one in {corpus_dir}"
    return ""


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False, data_dir=True)
    parser.add_argument("--corpus-yaml", type=Path, required=True, help="egs/<corpus>/corpus.yaml")
    parser.add_argument("--corpus-dir", type=Path, help="folder of the audio")
    parser.add_argument("--other", default="--data-dir and --exp-dir", help="options that name other folders, for the message")
    args = parser.parse_args(argv)
    try:
        held = load_corpus(args.data_dir / "corpus.yaml")
    except UserError:
        return  # not prepared, or damaged: the stages say so
    if why := problem(held, load_corpus(args.corpus_yaml).name, args.corpus_dir):
        raise UserError(f"{args.data_dir} {why}; name other folders by {args.other}, or remove {args.data_dir}")


if __name__ == "__main__":
    main()
