"""Stage "lm": a language model over the recogniser's tokens, for decoding with it.

local/train_lm.py --conf FILE --data-dir data/tiny --exp-dir exp/tiny [lm.text=book.txt ...]

Trains on the training transcripts or lm.text, stops when the perplexity of the dev parts no longer falls, and goes on
where it stopped. Writes EXP/lm/lm.pt (the best epoch's model), EXP/lm/last.pt (what is needed to go on),
EXP/lm/log.csv and EXP/lm/perplexity.json. Perplexities count the end of each sentence as a token and as a word. Besides it
writes EXP/lm/bigram.arpa, of the tokens of the training transcripts alone: what LODR subtracts.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import itertools
import json
import math
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from local.artifacts.checkpoint import check_finite, load_file, load_weights, save_file
from local.artifacts.language_model import lm_sizes, save_lm
from local.common.atomic import atomic_write
from local.common.errors import UserError, cli
from local.common.progress import Progress
from local.config import config_hash, load_config, to_dict
from local.config.schema import Config
from local.corpus.corpus_yaml import load_corpus
from local.data.tokenizer import SPECIAL, UNK_ID, Tokenizer
from local.ngram import estimate, read_sentences, token_sentences, write_arpa
from local.prepare_lang import read_texts
from local.training.random_state import random_state, set_random_state
from model.lm import LstmLm

CLIP_NORM = 1.0  # largest norm of the gradient of the mean over tokens
CHUNK = 10000  # sentences turned into tokens at once
COLUMNS = 6  # of log.csv
LONGEST = 5000  # tokens; a longer line is a text without line ends, not a sentence


@dataclass
class TokenText:
    """Sentences as token ids, end to end: `ids` (sum of lens,) int32, `lens` (S,) int64."""

    ids: np.ndarray
    lens: np.ndarray
    words: int
    unknown: int  # tokens that are <unk>

    def __post_init__(self) -> None:
        self.starts = np.cumsum(self.lens) - self.lens

    def batches(self, batch_tokens: int, generator: torch.Generator | None = None) -> list[np.ndarray]:
        """Sentences alike in length, by their numbers: n of them with the longest of U make n (U + 1) <= batch_tokens.

        With a generator, what comes together and in which order is drawn anew.
        """
        drawn = np.arange(len(self.lens)) if generator is None else torch.randperm(len(self.lens), generator=generator).numpy()
        by_length = drawn[np.argsort(self.lens[drawn], kind="stable")]
        found, first = [], 0
        for n, length in enumerate(self.lens[by_length]):
            if (n + 1 - first) * (int(length) + 1) > batch_tokens and n > first:
                found.append(by_length[first:n])
                first = n
        found.append(by_length[first:])
        return found if generator is None else [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]

    def collate(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """tokens (N, U) int64 padded with 0 and their lengths (N,)."""
        tokens = np.zeros((len(rows), int(self.lens[rows].max())), dtype=np.int64)
        for n, row in enumerate(rows):
            tokens[n, : self.lens[row]] = self.ids[self.starts[row] : self.starts[row] + self.lens[row]]
        return torch.from_numpy(tokens), torch.from_numpy(self.lens[rows])


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8, compressed where it ends in `.gz`. `UserError` where it cannot be read so."""
    if not path.is_file():
        raise UserError(f"{path}: no such text file (key 'lm.text')")
    try:  # line by line: a book may be larger than the memory
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from file
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{path}: not a text in UTF-8: {str(e).splitlines()[0]}") from None


def tokenize(lines: Iterable[str], tokenizer: Tokenizer, where: str) -> TokenText:
    """Turn sentences into tokens; empty lines are passed over.

    Raises `UserError` naming `where` when nothing is left, a line is no sentence, or most lines have characters that
    the tokens lack.
    """
    sentences = (" ".join(line.split()) for line in lines)
    kept = (s for s in sentences if s)
    ids, lens, words, unknown, lacking = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0, 0, 0
    example = ""
    with Progress(desc=f"tokens of {where}", unit="sentences") as progress:
        while chunk := list(itertools.islice(kept, CHUNK)):
            encoded = tokenizer.encode(chunk)
            for sentence, tokens in zip(chunk, encoded, strict=True):
                if len(tokens) > LONGEST:
                    raise UserError(f"{where}: '{sentence[:40]}...' has {len(tokens)} tokens; a sentence a line is meant")
                words += len(sentence.split())
                if n := tokens.count(UNK_ID):
                    unknown, lacking, example = unknown + n, lacking + 1, example or sentence
            lens.append(np.array([len(tokens) for tokens in encoded], np.int64))
            ids.append(np.fromiter(itertools.chain.from_iterable(encoded), np.int32))
            progress.update(len(chunk))
    text = TokenText(np.concatenate(ids), np.concatenate(lens), words, unknown)
    if not len(text.lens):
        raise UserError(f"{where}: no text")
    if 2 * lacking > len(text.lens):
        characters = "".join(tokenizer.unknown_characters(example)[:10])
        such = f"such as '{characters}' in '{example[:40]}'"
        raise UserError(f"{where}: most lines have characters without a token in lang/bpe.model, {such}")
    return text


def dev_texts(data_dir: Path, parts: Sequence[str]) -> list[str]:
    """The transcripts of the dev parts. `UserError` naming the manifest that is missing."""
    return read_texts(data_dir, parts)


class LmTrainer:
    """One training run in `folder`; goes on from its last.pt where that was made with the same text and settings."""

    def __init__(
        self, cfg: Config, tokenizer: Tokenizer, train: TokenText, dev: TokenText, folder: Path, device: torch.device
    ) -> None:
        self.cfg, self.tokenizer, self.text, self.dev, self.folder, self.device = cfg, tokenizer, train, dev, folder, device
        torch.manual_seed(cfg.train.seed)
        self.model = LstmLm(**lm_sizes(cfg, tokenizer.vocab_size)).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=cfg.lm.lr)
        self.rows: list[dict[str, Any]] = []  # of log.csv, one for each epoch
        self.signature = self._signature()
        self._resume()

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the epoch with the lowest dev perplexity so far."""
        return min(self.rows, key=lambda row: row["dev_nll"], default=None)

    def run(self) -> None:
        """Train to lm.max_epochs, or until lm.patience epochs in a row brought nothing."""
        lm = self.cfg.lm
        while len(self.rows) < lm.max_epochs and (self.best is None or len(self.rows) - self.best["epoch"] < lm.patience):
            began, epoch = time.monotonic(), len(self.rows) + 1
            train_nll, dev_nll = self._train_epoch(epoch), self.evaluate(self.dev)
            train, dev = perplexities(train_nll, self.text), perplexities(dev_nll, self.dev)
            if not math.isfinite(train["per_token"] + dev["per_token"]):
                raise UserError(f"{self.folder}: epoch {epoch} ended with an infinite perplexity; lower 'lm.lr'")
            row = {"epoch": epoch, "train_per_token": train["per_token"], "dev_nll": dev_nll}
            row |= {"dev_per_token": dev["per_token"], "dev_per_word": dev["per_word"], "seconds": time.monotonic() - began}
            self.rows.append(row)
            print(
                f"lm epoch {epoch}: perplexity of dev {dev['per_token']:.2f} per token, {dev['per_word']:.2f} per word "
                f"({row['seconds']:.1f} s)",
                flush=True,
            )
            if self.best is row:
                save_lm(self.model, self.cfg, self.tokenizer, self.folder / "lm.pt", epoch=epoch)
            self._save()
        self._report()

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the text; -> its negative log-probability in nats, with dropout, each batch before its own step."""
        self.model.train()
        order = torch.Generator().manual_seed(1000003 * self.cfg.train.seed + epoch)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with Progress(len(self.text.lens), f"lm epoch {epoch}/{self.cfg.lm.max_epochs}", "sentences") as progress:
            for rows in self.text.batches(self.cfg.lm.batch_tokens, order):
                tokens, lens = self.text.collate(rows)
                nll = self.model(tokens.to(self.device), lens.to(self.device)).sum()
                self.optimizer.zero_grad(set_to_none=True)
                (nll / (int(lens.sum()) + len(rows))).backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
                self.optimizer.step()
                total += nll.detach()
                progress.update(len(rows))
        return float(total)

    @torch.no_grad()
    def evaluate(self, text: TokenText) -> float:
        """The negative log-probability of a text in nats."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows in text.batches(self.cfg.lm.batch_tokens):
            tokens, lens = text.collate(rows)
            total += self.model(tokens.to(self.device), lens.to(self.device)).double().sum()
        return float(total)

    def _signature(self) -> str:
        """What must be the same for a run to go on: text, tokens, seed, and settings but those that end it."""
        lm = {k: v for k, v in to_dict(self.cfg)["lm"].items() if k not in ("train", "text", "max_epochs", "patience")}
        texts = [hashlib.sha256(array.data).hexdigest() for t in (self.text, self.dev) for array in (t.ids, t.lens)]
        return config_hash(lm, str(self.cfg.train.seed), *texts, *self.tokenizer.tokens)

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "rows": self.rows}
        state |= {"rng": random_state(self.device), "signature": self.signature}
        save_file(state, self.folder / "last.pt")
        with atomic_write(self.folder / "log.csv") as tmp, tmp.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0].keys())
            writer.writeheader()
            writer.writerows(self.rows)

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.is_file() or not (self.folder / "lm.pt").is_file():
            return
        try:
            saved = load_file(path)
        except UserError as e:
            print(f"warning: {e}; training anew", file=sys.stderr)
            return
        if saved.get("signature") != self.signature:
            path.unlink()  # else, after a stop in the first epoch, it would go with a lm.pt that is not its own
            print(f"{path} was made with another text or other settings: training anew")
            return
        try:
            self._restore(path, saved)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:  # whatever the values are
            raise UserError(f"{path}: damaged ({type(e).__name__}: {str(e)[:200]}); remove it to train anew") from None
        print(f"going on from {path}: {len(self.rows)} epochs done")

    def _restore(self, path: Path, saved: dict[str, Any]) -> None:
        load_weights(self.model, saved["model"], path)
        check_finite(saved["model"], path)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.rows = saved["rows"]
        if not all(math.isfinite(row["dev_nll"] + row["epoch"]) and len(row) == COLUMNS for row in self.rows):
            raise ValueError("its 'rows' are no epochs")
        set_random_state(saved["rng"], self.device)

    def _report(self) -> None:
        """Write perplexity.json: the best epoch, and the dev text measured with its model."""
        best = self.best
        assert best is not None
        counts = {name: summary(text) for name, text in (("train", self.text), ("dev", self.dev))}
        counts["dev"] |= {"nll": best["dev_nll"], "perplexity": perplexities(best["dev_nll"], self.dev)}
        parameters = sum(p.numel() for p in self.model.parameters())
        content = {"epoch": best["epoch"], "epochs": len(self.rows), "parameters": parameters, **counts}
        with atomic_write(self.folder / "perplexity.json") as tmp:
            tmp.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"{self.folder / 'lm.pt'}: epoch {best['epoch']} of {len(self.rows)}, {parameters:,} parameters")


def perplexities(nll: float, text: TokenText) -> dict[str, float]:
    """exp of a text's loss (nats) per token and per word, each sentence's end counted as one more; inf where it is none."""
    ends = len(text.lens)
    counts = {"per_token": len(text.ids) + ends, "per_word": text.words + ends}
    return {name: math.exp(nll / n) if nll / n < 700 else math.inf for name, n in counts.items()}


def summary(text: TokenText) -> dict[str, Any]:
    """Sizes of a text, for perplexity.json."""
    return {"sentences": len(text.lens), "words": text.words, "tokens": len(text.ids), "unknown": text.unknown}


def write_bigram(transcripts: Path, tokenizer: Tokenizer, path: Path) -> None:
    """The token bigram of the training transcripts, which stands for what the transducer itself learnt of their language."""
    vocabulary = [token for token in tokenizer.tokens if token not in SPECIAL]
    write_arpa(estimate(token_sentences(read_sentences(transcripts), tokenizer), 2, vocabulary), path)


@cli
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", help="YAML over conf/base.yaml")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_args(argv)
    cfg = load_config(args.conf, args.overrides)
    tokenizer = Tokenizer.from_file(args.data_dir / "lang" / "bpe.model")
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transcripts = args.data_dir / "lang" / "transcript.txt"
    source = Path(cfg.lm.text) if cfg.lm.text else transcripts
    train = tokenize(read_lines(source), tokenizer, str(source))
    parts = load_corpus(args.data_dir / "corpus.yaml", cfg.data).dev
    dev = tokenize(dev_texts(args.data_dir, parts), tokenizer, f"dev parts {', '.join(parts)}")
    write_bigram(transcripts, tokenizer, args.exp_dir / "lm" / "bigram.arpa")
    LmTrainer(cfg, tokenizer, train, dev, args.exp_dir / "lm", device).run()


if __name__ == "__main__":
    main()
