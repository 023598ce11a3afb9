"""Decoding methods ready to run: an entry of `local.config.methods.METHODS` with the files and settings it needs."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import kaldialign
import torch

from local.artifacts.decoding_graph import load_graph
from local.artifacts.language_model import load_lm
from local.common.errors import UserError
from local.common.text_files import read_lines
from local.config.methods import METHODS, Method, Part
from local.config.schema import DecodeConfig
from local.data.tokenizer import UNK_ID, Tokenizer
from model.search import Hypothesis, Stream, get_search, get_stream, rescore
from model.search.scorers import HotwordScorer, InternalLmScorer, LstmLmScorer, NGramScorer, Scorer, read_arpa
from model.transducer import Transducer

Loaded = TypeVar("Loaded")
Weighted = tuple[Scorer, float]


class Resources:
    """The transducer and what methods need besides it, which is read when first asked for and then kept."""

    def __init__(
        self, model: Transducer, tokenizer: Tokenizer, device: torch.device, exp_dir: Path, data_dir: Path | None = None
    ) -> None:
        """model: in evaluation mode, on `device`. data_dir: needed for the graph LG alone."""
        self.model, self.tokenizer, self.device, self.exp_dir, self.data_dir = model, tokenizer, device, exp_dir, data_dir
        self._kept: dict[tuple[str, Path], Any] = {}

    def scorer(self, part: Part, options: DecodeConfig) -> Weighted:
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
        if self.data_dir is None:
            raise UserError("the graph LG is read from prepared data: name their folder")
        return self._once("graph", self.data_dir / "graph" / "LG.npz", lambda path: load_graph(path, self.tokenizer))

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


class Recogniser:
    """One method: encoder output in, hypotheses out. Made once per run: streams keep what depends on the weights alone.

    Attributes:
      options: what it works with, plain values, for the record.
    """

    def __init__(self, name: str, resources: Resources, options: DecodeConfig) -> None:
        """options: section `decode` of the config. Raises `UserError` for files that are missing or unfit."""
        self.method: Method = METHODS[name]
        self.resources, own = resources, options.of_method(name)
        self.second_pass = [resources.scorer(part, own) for part in self.method.second_pass]
        self.options = search_options(self.method, own)
        try:
            self._search = self._make_search(own)
        except ValueError as e:
            raise UserError(f"{name}: {e}") from None
        for part in self.method.fused + self.method.second_pass:
            self.options[part.scale] = getattr(own, part.scale)
            if part.scorer != "internal_lm":
                self.options[part.scorer] = str(resources.path(part.scorer, own))

    def __call__(self, encoder_out: torch.Tensor, lens: torch.Tensor, texts: Sequence[str]) -> list[Hypothesis]:
        """encoder_out (N, T, C), lens (N,) -> one hypothesis each. texts: the references, which an oracle looks at."""
        hypotheses = self._search(encoder_out, lens)
        if self.second_pass:
            hypotheses = rescore(hypotheses, self.second_pass)
        if self.method.oracle:
            pairs = zip(hypotheses, texts, strict=True)
            hypotheses = [fewest_errors(hypothesis, text, self.resources.tokenizer) for hypothesis, text in pairs]
        return hypotheses

    def _make_search(self, own: DecodeConfig) -> Callable[[torch.Tensor, torch.Tensor], list[Hypothesis]]:
        if self.options.get("backend") == "k2":  # takes whole utterances only
            search, model, options = get_search(self.method.search), self.resources.model, dict(self.options)
            return lambda encoder_out, lens: search(model, encoder_out, lens, **options)
        if self.method.hotwords and own.hotwords is not None:
            self.options["hotwords"] = own.hotwords
        return make_stream(self.method, self.resources, own).decode


def make_stream(method: Method, resources: Resources, own: DecodeConfig) -> Stream:
    """The method's first pass with its scorers. own: section `decode` with what `by_method` says of it.

    Raises `UserError` for files that are missing or unfit, ValueError for options the search refuses.
    """
    options = search_options(method, own)
    if method.hotwords:
        options["scorers"] = [resources.scorer(part, own) for part in method.fused] + resources.hotwords(own)
    if method.search == "fast_beam_search_graph":
        from model.search.fast_beam_graph import FastBeamGraphStream  # needs numba, which is optional otherwise

        return FastBeamGraphStream(resources.model, graph=resources.graph(), **options)
    return get_stream(method.search)(resources.model, **options)


def search_options(method: Method, options: DecodeConfig) -> dict[str, Any]:
    """The search's keyword arguments but scorers and graph, from section `decode` of the config."""
    common: dict[str, Any] = {"temperature": options.temperature, "blank_penalty": options.blank_penalty}
    if method.search == "greedy_search":
        return {**common, "max_sym_per_frame": options.max_sym_per_frame}
    if method.search == "modified_beam_search":
        return {**common, "beam": options.beam}
    common |= {"beam": options.fast_beam, "max_contexts": options.max_contexts, "max_states": options.max_states}
    common["allow_partial"] = True  # a user wants what was heard, also of audio that stops within a word
    if method.search == "fast_beam_search_graph":
        return {**common, "scale": options.ngram_scale}
    needs_list = bool(method.second_pass) or method.oracle  # k2's backend gives none
    return {**common, "backend": "native" if needs_list else options.fast_beam_backend}


def fewest_errors(hypothesis: Hypothesis, text: str, tokenizer: Tokenizer) -> Hypothesis:
    """The entry of the n-best list with the least word errors against `text`; of several the one found first."""
    entries = hypothesis.nbest or [hypothesis]
    hyps = (tokenizer.decode(entry.tokens).split() for entry in entries)
    errors = [kaldialign.edit_distance(text.split(), hyp)["total"] for hyp in hyps]
    return replace(entries[errors.index(min(errors))], nbest=hypothesis.nbest)
