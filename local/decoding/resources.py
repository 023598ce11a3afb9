"""What decoding methods need besides the transducer: language models, graph, hotwords. Each file is read once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.artifacts.arpa import read_model
from local.artifacts.decoding_graph import load_graph
from local.artifacts.language_model import load_lm
from local.common.errors import UserError, reason
from local.common.text_files import is_file, read_lines
from local.config.methods import GRAPH_SEARCH, Method, ScorerTerm
from local.config.schema import DecodeConfig
from local.data.tokenizer import SPACE, UNK_ID, Tokenizer
from model.search.scorers import HotwordScorer, InternalLmScorer, LstmLmScorer, NGramScorer, Scorer, read_arpa
from model.transducer import Transducer

import torch

Weighted = tuple[Scorer, float]
LARGEST_BOOST = 1000.0  # nats of a hotword, of either sign; an utterance has some hundred


class Resources:
    """The transducer and what methods need besides it. A file is read when a method first needs it."""

    def __init__(
        self,
        model: Transducer,
        tokenizer: Tokenizer,
        device: torch.device,
        exp_dir: Path,
        lang: Path | None = None,
        *,
        clean: Callable[[str], str],
    ) -> None:
        """Keep a model in evaluation mode on `device`, and the folders. Only the graph LG needs `lang`, the tokens' folder.

        clean: gives hotwords the normal form of the texts that the model was trained on.
        """
        self.clean = clean
        self.model, self.tokenizer, self.device, self.exp_dir, self.lang = model, tokenizer, device, exp_dir, lang
        self._loaded: dict[tuple[str, Path | None], Any] = {}

    def scorer(self, term: ScorerTerm, options: DecodeConfig) -> Weighted:
        """Return a method's scorer and its scale. Raises `UserError` naming a file that is missing or not such a model."""
        if lacking := _lacking(term.scorer, options, self.exp_dir):
            raise UserError(lacking)
        path, load = self.path(term.scorer, options), SCORERS[term.scorer][1]
        return self._load(term.scorer, path, load), term.sign * getattr(options, term.scale)

    def path(self, scorer: str, options: DecodeConfig) -> Path | None:
        """Return a scorer's file; None for a scorer without file."""
        return scorer_file(scorer, options, self.exp_dir)

    def missing(self, method: Method, options: DecodeConfig) -> str:
        """Return which file a method lacks, and where it comes from; "" if none. options: section `decode` for this method."""
        return missing_file(method, options, self.exp_dir, self.lang)

    def graph(self) -> Any:
        """Return LG. Raises `UserError` if it is missing, naming the program that makes it."""
        if self.lang is None:
            raise UserError("the graph LG is part of the prepared data; name their folder by --data-dir")
        path = self.lang / "graph" / "LG.npz"
        return self._load("graph", path, lambda _, path: load_graph(path, self.tokenizer))

    def hotwords(self, options: DecodeConfig) -> list[Weighted]:
        """Return the scorer of decode.hotwords; nothing if the key is null or the file has no phrase."""
        if options.hotwords is None:
            return []
        boost = options.hotwords_boost
        scorer = self._load(f"hotwords {boost!r}", Path(options.hotwords), lambda _, path: self._hotword_scorer(path, boost))
        return [] if scorer is None else [(scorer, 1.0)]

    def _hotword_scorer(self, path: Path, boost: float) -> HotwordScorer | None:
        phrases = read_hotwords(path, boost, self.tokenizer, self.clean)
        try:
            return HotwordScorer(phrases, self.tokenizer.vocab_size, self.device) if phrases else None
        except ValueError as e:
            raise UserError(f"{path}: {reason(e)}; give fewer or shorter phrases") from None

    def _load(self, kind: str, path: Path | None, load: Callable[[Resources, Any], Any]) -> Any:
        if (kind, path) not in self._loaded:
            self._loaded[kind, path] = load(self, path)
        return self._loaded[kind, path]


def load_lstm(resources: Resources, path: Path) -> Scorer:
    """Read the LSTM language model of local/train_lm.py."""
    return LstmLmScorer(load_lm(path, resources.tokenizer)[0].to(resources.device))


def load_ngram(resources: Resources, path: Path) -> Scorer:
    """Read an n-gram model over the tokens, ARPA or gzipped ARPA."""
    lm = read_model(path, read_arpa)
    try:
        return NGramScorer(lm, resources.tokenizer.tokens, resources.device)
    except ValueError as e:
        raise UserError(f"{path}: not an n-gram model of these tokens: {reason(e)}") from None


# Scorer -> its default file in EXP/lm, which key decode.<scorer> can replace (None: it needs no file), and its loader.
SCORERS: dict[str, tuple[str | None, Callable[[Resources, Any], Scorer]]] = {
    "lm": ("lm.pt", load_lstm),
    "ngram": ("bigram.arpa", load_ngram),
    "bigram": ("bigram.arpa", load_ngram),
    "internal_lm": (None, lambda resources, _: InternalLmScorer(resources.model)),
}


def scorer_file(scorer: str, options: DecodeConfig, exp_dir: Path) -> Path | None:
    """Return a scorer's file; None for a scorer without file."""
    default = SCORERS[scorer][0]
    return None if default is None else Path(getattr(options, scorer) or exp_dir / "lm" / default)


def missing_file(method: Method, options: DecodeConfig, exp_dir: Path, lang: Path | None) -> str:
    """Return which file a method lacks, and where it comes from; "" if none. options: section `decode` for this method."""
    if method.search == GRAPH_SEARCH and lang is not None and not is_file(path := lang / "graph" / "LG.npz"):
        return f"{path} is missing; local/prepare_graph.py makes it"
    lacking = (_lacking(term.scorer, options, exp_dir) for term in method.fused + method.second_pass)
    return next(filter(None, lacking), "")


def _lacking(scorer: str, options: DecodeConfig, exp_dir: Path) -> str:
    path = scorer_file(scorer, options, exp_dir)
    if path is None or is_file(path):
        return ""
    stage = f"stage 3 (lm) of run.sh makes EXP/lm/{SCORERS[scorer][0]} if lm.train=true"
    return f"{path} is missing; {stage}, key decode.{scorer} can name another file"


def read_hotwords(path: Path, boost: float, tokenizer: Tokenizer, clean: Callable[[str], str]) -> list[tuple[list[int], float]]:
    """Read phrases, one per line: `PHRASE` or `PHRASE<TAB>boost`. Return the token ids and the boost (nats) of each.

    boost: of phrases without their own. clean: gives a phrase its normal form. Raises `UserError` naming the line of a bad
    boost, of characters without a token, or of a phrase of which nothing is left.
    """
    lines = [(number, *line.partition("\t")[::2]) for number, line in enumerate(read_lines(path), 1)]
    lines = [(number, written, own) for number, written, own in lines if written.strip()]
    phrases = [clean(written) for _, written, _ in lines]
    found = []
    for (number, written, own), phrase, tokens in zip(lines, phrases, tokenizer.encode(phrases), strict=True):
        if not tokens:
            raise UserError(f"{path}:{number}: nothing is left of the phrase {ascii(written)[:80]} in its normal form")
        if min(tokens) <= UNK_ID or SPACE in phrase:
            characters = " ".join(tokenizer.lost_characters(phrase)[:10])
            raise UserError(f"{path}:{number}: '{phrase[:80]}' has characters without a token: {characters}")
        try:
            value = float(own) if own.strip() else boost
        except ValueError:
            value = math.nan
        if not abs(value) <= LARGEST_BOOST:
            limits = f"from {-LARGEST_BOOST:g} to {LARGEST_BOOST:g}"
            raise UserError(f"{path}:{number}: the boost '{own[:50] or boost}' must be a number {limits}")
        found.append((tokens, value))
    return found
