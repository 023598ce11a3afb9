"""Decoding methods ready to run: an entry of `local.config.methods.METHODS` with the files and settings it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from local.common.errors import UserError
from local.config.methods import METHODS, Method
from local.config.schema import DecodeConfig
from local.data.tokenizer import Tokenizer
from local.decoding.resources import Resources
from model.search import Hypothesis, Stream, get_search, get_stream, rescore

import kaldialign
import torch


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
        if self.method.supports_scorers and own.hotwords is not None:
            self.options["hotwords"] = own.hotwords
        return make_stream(self.method, self.resources, own).decode


def make_stream(method: Method, resources: Resources, own: DecodeConfig) -> Stream:
    """The method's first pass with its scorers. own: section `decode` with what `by_method` says of it.

    Raises `UserError` for files that are missing or unfit, ValueError for options the search refuses.
    """
    options = search_options(method, own)
    if method.supports_scorers:
        options["scorers"] = [resources.scorer(part, own) for part in method.fused] + resources.hotwords(own)
    if method.search == "fast_beam_search_graph":
        return get_stream("fast_beam_search")(resources.model, graph=resources.graph(), **options)
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
