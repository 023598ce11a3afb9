"""Stage "lm": train a language model over the recogniser's tokens, for decoding with it.

    .venv/bin/python -m local.train_lm --conf egs/tiny/conf/tiny.yaml --data-dir data/tiny --exp-dir exp/tiny lm.text=book.txt

It trains on lm.text in its normal form (default: the training transcripts), stops when the perplexity of the dev parts no
longer falls, and resumes an interrupted training. It writes EXP/lm/lm.pt (the model of the best epoch), EXP/lm/last.pt (for
resuming), EXP/lm/log.csv and EXP/lm/perplexity.json. Perplexities count the end of each sentence as a token and as a word. It
also writes EXP/lm/bigram.arpa, the token bigram of the training transcripts, which LODR subtracts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.artifacts.arpa import write_bigram
from local.common.cli import choose_device, make_parser, program
from local.common.errors import UserError
from local.common.locks import reads, writes
from local.common.text_files import is_file, iterate_lines
from local.config import load_config
from local.corpus.corpus_yaml import load_corpus
from local.data.text import TextNormaliser
from local.data.tokenizer import Tokenizer, lang_dir
from local.data.transcripts import read_texts
from local.training.lm_text import tokenize
from local.training.lm_trainer import LmTrainer


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    args = make_parser(__doc__, data_dir=True, exp_dir=True).parse_args(argv)
    writes(args.exp_dir, new=True)
    reads(args.data_dir)
    cfg = load_config(args.conf, args.overrides)
    device, lang = choose_device(cfg.train.num_threads), lang_dir(args.data_dir, cfg.lang)
    tokenizer, transcripts = Tokenizer.from_file(lang / "bpe.model"), lang / "transcript.txt"
    source = Path(cfg.lm.text) if cfg.lm.text else transcripts
    if cfg.lm.text and not is_file(source):
        raise UserError(f"key 'lm.text': there is no file {source}")
    lines = iterate_lines(source, "stage lang of prepare.sh")
    train = tokenize(map(TextNormaliser(cfg.lang), lines) if cfg.lm.text else lines, tokenizer, str(source))
    parts = load_corpus(args.data_dir / "corpus.yaml", cfg.data).dev
    if not parts:
        raise UserError("key 'lm.train' needs a dev part, and data.dev_parts is empty; name one, or set lm.train=false")
    dev = tokenize(read_texts(args.data_dir, parts), tokenizer, f"dev parts {', '.join(parts)}")
    write_bigram(transcripts, tokenizer, args.exp_dir / "lm" / "bigram.arpa")
    LmTrainer(cfg, tokenizer, train, dev, args.exp_dir / "lm", device).run()


if __name__ == "__main__":
    main()
