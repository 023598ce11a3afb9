"""Estimate an n-gram language model of words or of BPE tokens, and write it in ARPA format.

    .venv/bin/python -m local.ngram --text data/tiny/lang_bpe_80/transcript.txt --out token_2gram.arpa

All counts are held in memory. For large texts use KenLM's lmplz or SRILM: the other programs read their ARPA files too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.artifacts.arpa import estimate, estimate_tokens, read_sentences, write_arpa
from local.common.cli import make_parser, program
from local.data.tokenizer import Tokenizer


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False)
    parser.add_argument("--text", type=Path, required=True, help="a file with one sentence per line, .gz too")
    parser.add_argument("--order", type=int, default=2, help="longest n-gram (default: %(default)s)")
    parser.add_argument("--unit", choices=["token", "word"], default="token", help="default: %(default)s")
    parser.add_argument("--bpe-model", type=Path, help="for tokens; default: bpe.model beside the text")
    parser.add_argument("--out", type=Path, required=True, help="the ARPA file to write")
    args = parser.parse_args(argv)
    texts = read_sentences(args.text)
    if args.unit == "token":
        tokenizer = Tokenizer.from_file(args.bpe_model or args.text.parent / "bpe.model")
        model = estimate_tokens(texts, tokenizer, args.order)
    else:
        model = estimate((text.split() for text in texts), args.order)
    write_arpa(model, args.out)
    sizes = ", ".join(f"{len(level)} {n}-grams" for n, level in enumerate(model.probs, 1))
    print(f"{args.out}: {sizes} of {args.unit}s from {len(texts)} texts")


if __name__ == "__main__":
    main()
