"""Estimate an n-gram language model of words or of BPE tokens, and write it in ARPA format.

    .venv/bin/python -m local.ngram --text data/tiny/lang_bpe_80/transcript.txt --out token_2gram.arpa

The text gets the normal form of section lang; give the experiment's --conf if it has keys of that section.
All counts are held in memory. For large texts use KenLM's lmplz or SRILM: the other programs read their ARPA files too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from local.artifacts.arpa import estimate, estimate_tokens, read_sentences, write_arpa
from local.common.cli import make_parser, program
from local.config import load_config
from local.data.text import TextNormaliser
from local.data.tokenizer import UNK_ID, Tokenizer


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__)
    parser.add_argument("--text", type=Path, required=True, help="a file with one sentence per line, .gz too")
    parser.add_argument("--order", type=int, default=2, help="longest n-gram (default: %(default)s)")
    parser.add_argument("--unit", choices=["token", "word"], default="token", help="default: %(default)s")
    parser.add_argument("--bpe-model", type=Path, help="for tokens; default: bpe.model beside the text")
    parser.add_argument("--out", type=Path, required=True, help="the ARPA file to write")
    args = parser.parse_args(argv)
    clean = TextNormaliser(load_config(args.conf, args.overrides).lang)
    texts = read_sentences(args.text, clean, words=args.unit == "word")
    if args.unit == "token":
        tokenizer = Tokenizer.from_file(args.bpe_model or args.text.parent / "bpe.model")
        model = estimate_tokens(texts, tokenizer, args.order)
        if lacking := [text for text, ids in zip(texts, tokenizer.encode(texts), strict=True) if UNK_ID in ids]:
            characters = " ".join(tokenizer.lost_characters(lacking[0]))
            print(f"warning: {len(lacking)} texts have characters without a token, such as {characters}", file=sys.stderr)
    else:
        model = estimate((text.split() for text in texts), args.order)
    write_arpa(model, args.out)
    sizes = ", ".join(f"{len(level)} {n}-grams" for n, level in enumerate(model.probs, 1))
    print(f"{args.out}: {sizes} of {args.unit}s from {len(texts)} texts")


if __name__ == "__main__":
    main()
