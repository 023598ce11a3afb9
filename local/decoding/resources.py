"""What decoding methods need besides the transducer: language models, graphs, phrases; each read once."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from local.artifacts.decoding_graph import load_graph
from local.artifacts.language_model import load_lm
from local.common.errors import UserError
from local.common.text_files import read_lines
from local.config.methods import ScorerTerm
from local.config.schema import DecodeConfig
from local.data.tokenizer import UNK_ID, Tokenizer
from model.search.scorers import HotwordScorer, InternalLmScorer, LstmLmScorer, NGramScorer, Scorer, read_arpa
from model.transducer import Transducer

import torch

Loaded = TypeVar("Loaded")


Weighted = tuple[Scorer, float]


class Resources:
    """The transducer and what methods need besides it, which is read when first asked for and then kept."""

    def __init__(
        self, model: Transducer, tokenizer: Tokenizer, device: torch.device, exp_dir: Path, lang: Path | None = None
    ) -> None:
        """model: in evaluation mode, on `device`. lang: folder of the tokens, needed for the graph LG alone."""
        self.model, self.tokenizer, self.device, self.exp_dir, self.lang = model, tokenizer, device, exp_dir, lang
        self._kept: dict[tuple[str, Path], Any] = {}

    def scorer(self, part: ScorerTerm, options: DecodeConfig) -> Weighted:
        """A method's scorer with its scale. Raises `UserError` where its file is missing or no such model."""
        scale = part.sign * getattr(options, part.scale)
        if part.scorer == "internal_lm":
            return InternalLmScorer(self.model), scale
        return self._once(part.scorer, self.path(part.scorer, options), self._lm if part.scorer == "lm" else self._ngram), scale

    def path(self, scorer: str, options: DecodeConfig) -> Path:
        """The file of "lm", "ngram" or "bigram"."""
        given = getattr(options, scorer)
        return Path(given) if given else self.exp_dir / "lm" / ("lm.pt" if scorer == "lm" else "bigram.arpa")

    def graph(self) -> Any:
        """LG. Raises `UserError` where it is missing, naming the program that makes it."""
        if self.lang is None:
            raise UserError("the graph LG is read from prepared data: name their folder")
        return self._once("graph", self.lang / "graph" / "LG.npz", lambda path: load_graph(path, self.tokenizer))

    def hotwords(self, options: DecodeConfig) -> list[Weighted]:
        """The scorer of decode.hotwords where that is set and has any phrase."""
        if options.hotwords is None:
            return []
        phrases = read_hotwords(Path(options.hotwords), options.hotwords_boost, self.tokenizer)
        return [(HotwordScorer(phrases, self.tokenizer.vocab_size, self.device), 1.0)] if phrases else []

    def _once(self, kind: str, path: Path, load: Callable[[Path], Loaded]) -> Loaded:
        if (kind, path) not in self._kept:
            self._kept[kind, path] = load(path)
        return self._kept[kind, path]

    def _lm(self, path: Path) -> Scorer:
        if not path.is_file():
            raise UserError(f"{path} is missing; stage 3 (lm) of run.sh makes EXP/lm/lm.pt where lm.train=true")
        lm, _ = load_lm(path, self.tokenizer)
        return LstmLmScorer(lm.to(self.device))

    def _ngram(self, path: Path) -> Scorer:
        try:
            with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
                return NGramScorer(read_arpa(lines), self.tokenizer.tokens, self.device)
        except FileNotFoundError:
            made = "stage 3 (lm) of run.sh makes EXP/lm/bigram.arpa where lm.train=true, local/ngram.py any"
            raise UserError(f"{path} is missing; {made}") from None
        except (ValueError, OSError, EOFError) as e:
            raise UserError(f"{path}: not an n-gram model of these tokens: {str(e).splitlines()[0]}") from None


def read_hotwords(path: Path, boost: float, tokenizer: Tokenizer) -> list[tuple[list[int], float]]:
    """The phrases of a file, `PHRASE` or `PHRASE<TAB>boost` a line, as (token ids, boost in nats).

    Raises `UserError` naming the file and line of a boost that is no number and of characters without a token.
    """
    found = []
    for number, line in enumerate(read_lines(path), 1):
        phrase, _, own = line.partition("\t")
        phrase = " ".join(phrase.split())
        if not phrase:
            continue
        tokens = tokenizer.encode([phrase])[0]
        if UNK_ID in tokens:
            characters = " ".join(tokenizer.unknown_characters(phrase))
            raise UserError(f"{path}:{number}: '{phrase}' has characters without a token: {characters}")
        try:
            value = float(own) if own.strip() else boost
        except ValueError:
            raise UserError(f"{path}:{number}: the boost '{own[:50]}' is no number") from None
        if not math.isfinite(value):
            raise UserError(f"{path}:{number}: the boost of phrase '{phrase[:80]}' is {value}")
        found.append((tokens, value))
    return found
