"""Decoding methods ready to run: an entry of `local.config.methods.METHODS` with its files and settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from local.common.errors import UserError
from local.config.methods import GRAPH_SEARCH, METHODS, Method
from local.config.schema import DecodeConfig
from local.decoding.resources import Resources
from model.search import Hypothesis, Stream, get_stream, rescore
from model.search.fast_beam_k2 import load_k2

import torch

SCORED_SEARCH = "modified_beam_search"  # the search that adds scores from outside the transducer, such as hotwords
FAST_BEAM = {"beam": "fast_beam", "max_contexts": "max_contexts", "max_states": "max_states"}
# Search -> its keyword arguments, each with the key of section `decode` that has its value.
SEARCH_OPTIONS: dict[str, dict[str, str]] = {
    "greedy_search": {"max_sym_per_frame": "max_sym_per_frame"},
    "ctc_greedy_search": {},
    "modified_beam_search": {"beam": "beam"},
    "fast_beam_search": {**FAST_BEAM, "backend": "fast_beam_backend"},
    GRAPH_SEARCH: {**FAST_BEAM, "scale": "ngram_scale"},
}
Search = Callable[[torch.Tensor, torch.Tensor], list[Hypothesis]]  # encoder output (N, T, C) and lens (N,)


class Recogniser:
    """One method: encoder output in, hypotheses out; `options` has its settings as plain values, for the record."""

    def __init__(self, name: str, resources: Resources, options: DecodeConfig) -> None:
        """Load what the method needs. Raises `UserError` naming an unusable file or an option that the search refuses."""
        self.method: Method = METHODS[name]
        own = options.of_method(name)
        self.second_pass = [resources.scorer(term, own) for term in self.method.second_pass]
        self.options = search_options(self.method, own)
        self._search = self._make_search(name, resources, own)
        for term in self.method.fused + self.method.second_pass:
            self.options[term.scale] = getattr(own, term.scale)
            if (path := resources.path(term.scorer, own)) is not None:
                self.options[term.scorer] = str(path)

    def __call__(self, encoder_out: torch.Tensor, lens: torch.Tensor) -> list[Hypothesis]:
        """Return one hypothesis per utterance of encoder_out (N, T, C) with lens (N,) frames."""
        hypotheses = self._search(encoder_out, lens)
        return rescore(hypotheses, self.second_pass) if self.second_pass else hypotheses

    def _make_search(self, name: str, resources: Resources, own: DecodeConfig) -> Search:
        if self.method.search == SCORED_SEARCH and own.hotwords is not None:
            self.options |= {"hotwords": own.hotwords, "hotwords_boost": own.hotwords_boost}
        if self.options.get("backend") == "k2":
            try:
                load_k2()
            except ImportError as e:
                raise UserError(f"{name}: {e}") from None
        return make_stream(name, resources, own).decode


def make_stream(name: str, resources: Resources, own: DecodeConfig) -> Stream:
    """Return a method's first pass with its scorers. own: the method's settings. Raises `UserError` as `Recogniser` does."""
    method = METHODS[name]
    options = search_options(method, own)
    try:
        if method.search == SCORED_SEARCH:
            options["scorers"] = [resources.scorer(term, own) for term in method.fused] + resources.hotwords(own)
        if method.search == GRAPH_SEARCH:
            options["graph"] = resources.graph()
        return get_stream(method.search.removesuffix("_graph"))(resources.model, **options)
    except (ValueError, ImportError) as e:  # a package that only some options need may be missing
        raise UserError(f"{name}: {e}") from None


def search_options(method: Method, options: DecodeConfig) -> dict[str, Any]:
    """Return the search's keyword arguments, except scorers and graph. options: section `decode` for this method."""
    keys = {"temperature": "temperature", "blank_penalty": "blank_penalty", **SEARCH_OPTIONS[method.search]}
    found: dict[str, Any] = {argument: getattr(options, key) for argument, key in keys.items()}
    if options.blank_skip and method.search != "ctc_greedy_search":
        found["blank_skip"] = options.blank_skip
    if method.search.startswith("fast_beam_search"):
        found["allow_partial"] = True  # a user wants what was heard even if the audio stops within a word
        if options.log_semiring:
            found["log_semiring"] = True
    if "backend" in found and (method.second_pass or method.oracle):
        found["backend"] = "native"  # the k2 backend has no n-best list
    return found
