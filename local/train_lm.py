"""Stage "lm": a language model over the recogniser's tokens, for decoding with it.

local/train_lm.py --conf FILE --data-dir data/tiny --exp-dir exp/tiny [lm.text=book.txt ...]

Trains on the training transcripts or lm.text, stops when the perplexity of the dev parts no longer falls, and goes on
where it stopped. Writes EXP/lm/lm.pt (the best epoch's model), EXP/lm/last.pt (what is needed to go on),
EXP/lm/log.csv and EXP/lm/perplexity.json. Perplexities count the end of each sentence as a token and as a word. Besides it
writes EXP/lm/bigram.arpa, of the tokens of the training transcripts alone: what LODR subtracts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from local.artifacts.arpa import write_bigram
from local.common.cli import program
from local.config import load_config
from local.corpus.corpus_yaml import load_corpus
from local.data.tokenizer import Tokenizer, lang_dir
from local.data.transcripts import read_texts
from local.training.lm_text import read_lines, tokenize
from local.training.lm_trainer import LmTrainer

import torch


@program
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", help="YAML over conf/base.yaml")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_args(argv)
    cfg = load_config(args.conf, args.overrides)
    tokenizer = Tokenizer.from_file(lang_dir(args.data_dir, cfg.lang) / "bpe.model")
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transcripts = lang_dir(args.data_dir, cfg.lang) / "transcript.txt"
    source = Path(cfg.lm.text) if cfg.lm.text else transcripts
    train = tokenize(read_lines(source), tokenizer, str(source))
    parts = load_corpus(args.data_dir / "corpus.yaml", cfg.data).dev
    dev = tokenize(read_texts(args.data_dir, parts), tokenizer, f"dev parts {', '.join(parts)}")
    write_bigram(transcripts, tokenizer, args.exp_dir / "lm" / "bigram.arpa")
    LmTrainer(cfg, tokenizer, train, dev, args.exp_dir / "lm", device).run()


if __name__ == "__main__":
    main()
