"""Estimate an n-gram language model of words or of BPE tokens, and write it in ARPA format.

    python local/ngram.py --text data/tiny/lang_bpe_80/transcript.txt --order 2 --unit token --out data/tiny/lm/token_2gram.arpa

It is meant for transcripts: all counts are held in memory. PyPI has no estimator that installs without a compiler; a model
of much text is better made by KenLM's lmplz or SRILM, whose ARPA files the other programs read as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from local.artifacts.arpa import estimate, read_sentences, token_sentences, write_arpa
from local.common.cli import program
from local.data.tokenizer import SPECIAL, Tokenizer


@program
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a sentence a line")
    parser.add_argument("--order", type=int, default=2)
    parser.add_argument("--unit", choices=["token", "word"], default="token")
    parser.add_argument("--bpe-model", type=Path, help="for tokens; default: bpe.model beside the text")
    parser.add_argument("--out", type=Path, required=True, help="the ARPA file to write")
    args = parser.parse_args(argv)
    texts = read_sentences(args.text)
    if args.unit == "token":
        tokenizer = Tokenizer.from_file(args.bpe_model or args.text.parent / "bpe.model")
        # All tokens, <unk> too, but those that never are in a text: whatever is recognised has a probability.
        vocabulary = [token for token in tokenizer.tokens if token not in SPECIAL]
        model = estimate(token_sentences(texts, tokenizer), args.order, vocabulary)
    else:
        model = estimate((text.split() for text in texts), args.order)
    write_arpa(model, args.out)
    sizes = ", ".join(f"{len(level)} {n}-grams" for n, level in enumerate(model.probs, 1))
    print(f"{args.out}: {sizes} of {args.unit}s from {len(texts)} texts")


if __name__ == "__main__":
    main()
