"""The training loop of the language model."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import check_finite, load_file, load_weights, save_file
from local.artifacts.language_model import lm_sizes, save_lm
from local.artifacts.new_model import new_lm
from local.common.atomic import atomic_write, write_text
from local.common.errors import UserError
from local.common.progress import Progress
from local.config import config_hash, to_dict
from local.config.schema import Config
from local.data.tokenizer import Tokenizer
from local.training.lm_text import TokenText
from local.training.random_state import random_state, set_random_state

import torch

CLIP_NORM = 1.0  # largest norm of the gradient of the mean loss per token
COLUMNS = ("epoch", "train_per_token", "dev_nll", "dev_per_token", "dev_per_word", "seconds")  # of log.csv


class LmTrainer:
    """One training run in `folder`; it resumes from last.pt if that was made from the same text and settings."""

    def __init__(
        self, cfg: Config, tokenizer: Tokenizer, train: TokenText, dev: TokenText, folder: Path, device: torch.device
    ) -> None:
        self.cfg, self.tokenizer, self.text, self.dev, self.folder, self.device = cfg, tokenizer, train, dev, folder, device
        torch.manual_seed(cfg.train.seed)
        self.model = new_lm(lm_sizes(cfg, tokenizer.vocab_size)).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=cfg.lm.lr)
        self.rows: list[dict[str, Any]] = []  # of log.csv, one per epoch
        self.signature = self._signature()
        self._resume()

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the epoch with the lowest dev perplexity so far, or None."""
        return min(self.rows, key=lambda row: row["dev_nll"], default=None)

    def run(self) -> None:
        """Train to lm.max_epochs, or lm.patience epochs without progress. Raises `UserError` if the loss becomes infinite."""
        lm = self.cfg.lm
        while len(self.rows) < lm.max_epochs and (self.best is None or len(self.rows) - self.best["epoch"] < lm.patience):
            began, epoch = time.monotonic(), len(self.rows) + 1
            train_nll, dev_nll = self._train_epoch(epoch), self.evaluate(self.dev)
            train, dev = perplexities(train_nll, self.text), perplexities(dev_nll, self.dev)
            if not math.isfinite(train["per_token"] + dev["per_token"]):
                raise UserError(f"{self.folder}: the perplexity of epoch {epoch} is infinite; lower 'lm.lr'")
            values = epoch, train["per_token"], dev_nll, dev["per_token"], dev["per_word"], time.monotonic() - began
            row = dict(zip(COLUMNS, values, strict=True))
            self.rows.append(row)
            print(
                f"lm epoch {epoch}: dev perplexity {dev['per_token']:.2f} per token, {dev['per_word']:.2f} per word "
                f"({row['seconds']:.1f} s)",
                flush=True,
            )
            if self.best is row:
                save_lm(self.model, self.cfg, self.tokenizer, self.folder / "lm.pt", epoch=epoch)
            self._save()
        self._report()

    def _train_epoch(self, epoch: int) -> float:
        """Make one pass over the text; return its negative log-probability in nats, as measured on the way, with dropout."""
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
        """Return the negative log-probability of a text in nats."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows in text.batches(self.cfg.lm.batch_tokens):
            tokens, lens = text.collate(rows)
            total += self.model(tokens.to(self.device), lens.to(self.device)).double().sum()
        return float(total)

    def _signature(self) -> str:
        """Hash what must be equal for resuming: text, tokens, seed, and settings except those that only end the training."""
        lm = {k: v for k, v in to_dict(self.cfg)["lm"].items() if k not in ("train", "text", "max_epochs", "patience")}
        texts = [hashlib.sha256(array.data).hexdigest() for t in (self.text, self.dev) for array in (t.ids, t.lens)]
        return config_hash(lm, str(self.cfg.train.seed), *texts, *self.tokenizer.tokens)

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "rows": self.rows}
        state |= {"rng": random_state(self.device), "signature": self.signature}
        save_file(state, self.folder / "last.pt")
        with atomic_write(self.folder / "log.csv") as tmp, tmp.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.is_file() or not (self.folder / "lm.pt").is_file():
            return
        try:
            saved = load_file(path)
        except UserError as e:
            print(f"warning: {e}; training from the start", file=sys.stderr)
            return
        if saved.get("signature") != self.signature:
            path.unlink()  # a stop in the first epoch would leave it beside the lm.pt of the new training
            print(f"{path} was made with another text or other settings: training from the start")
            return
        try:
            self._restore(path, saved)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:  # of damaged values
            raise UserError(f"{path}: damaged ({type(e).__name__}: {str(e)[:200]}); remove it to start again") from None
        print(f"resuming from {path}: {len(self.rows)} epochs done")

    def _restore(self, path: Path, saved: dict[str, Any]) -> None:
        load_weights(self.model, saved["model"], path)
        check_finite(saved["model"], path)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.rows = saved["rows"]
        if not all(math.isfinite(row["dev_nll"] + row["epoch"]) and row.keys() == set(COLUMNS) for row in self.rows):
            raise ValueError("'rows' is not a list of epochs")
        set_random_state(saved["rng"], self.device)

    def _report(self) -> None:
        """Write perplexity.json: the best epoch, and the perplexity of the dev text under its model."""
        best = self.best
        assert best is not None
        counts: dict[str, dict[str, Any]] = {
            name: {"sentences": len(text.lens), "words": text.words, "tokens": len(text.ids), "unknown": text.unknown}
            for name, text in (("train", self.text), ("dev", self.dev))
        }
        counts["dev"] |= {"nll": best["dev_nll"], "perplexity": perplexities(best["dev_nll"], self.dev)}
        parameters = sum(p.numel() for p in self.model.parameters())
        content = {"epoch": best["epoch"], "epochs": len(self.rows), "parameters": parameters, **counts}
        write_text(self.folder / "perplexity.json", json.dumps(content, indent=2) + "\n")
        print(f"{self.folder / 'lm.pt'}: epoch {best['epoch']} of {len(self.rows)}, {parameters:,} parameters")


def perplexities(nll: float, text: TokenText) -> dict[str, float]:
    """Return exp(nll per token) and exp(nll per word), sentence ends included; inf if too large. nll: in nats."""
    ends = len(text.lens)
    counts = {"per_token": len(text.ids) + ends, "per_word": text.words + ends}
    return {name: math.exp(nll / n) if nll / n < 700 else math.inf for name, n in counts.items()}
