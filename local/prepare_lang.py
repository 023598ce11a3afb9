"""Stage 2 of prepare.sh: BPE model and tokens from the transcripts of the training parts.

Reads data/<corpus>/manifests; writes data/<corpus>/lang/{transcript.txt,bpe.model,tokens.txt}.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from local.common.atomic import atomic_write
from local.common.cli import program
from local.config import load_config
from local.corpus.corpus_yaml import load_corpus
from local.data.tokenizer import Tokenizer, train_tokenizer
from local.data.transcripts import read_texts


def write_lang(tokenizer: Tokenizer, texts: Sequence[str], folder: Path) -> None:
    """Write transcript.txt (a text a line), bpe.model and tokens.txt (`<token> <id>` a line)."""
    with atomic_write(folder / "transcript.txt") as tmp:
        tmp.write_text("".join(t + "\n" for t in texts), encoding="utf-8")
    with atomic_write(folder / "tokens.txt") as tmp:
        tmp.write_text("".join(f"{t} {i}\n" for i, t in enumerate(tokenizer.tokens)), encoding="utf-8")
    with atomic_write(folder / "bpe.model") as tmp:
        tmp.write_bytes(tokenizer.model)


@program
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--conf", type=Path)
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    args = parser.parse_args(argv)
    lang = load_config(args.conf, args.overrides).lang
    texts = read_texts(args.data_dir, load_corpus(args.data_dir / "corpus.yaml").train)
    tokenizer = train_tokenizer(texts, lang.vocab_size, lang.character_coverage)
    write_lang(tokenizer, texts, args.data_dir / "lang")
    asked = lang.vocab_size
    fewer = f" (the text has no more: lang.vocab_size={asked})" if tokenizer.vocab_size < asked else ""
    print(f"{tokenizer.vocab_size} tokens from {len(texts)} transcripts{fewer}")


if __name__ == "__main__":
    main()
