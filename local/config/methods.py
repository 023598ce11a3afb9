"""Decoding methods by icefall's names, and the sections of the configuration that set them: decode and tune.

Scoring reads the table too, so there is no torch here; local/decoding/recogniser.py makes an entry decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from local.config.limits import (
    Count,
    Duration,
    Epochs,
    File,
    Limits,
    Nats,
    Scale,
    Section,
    Share,
    Threads,
    describe,
    find_problems,
    types_of,
)

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

GRAPH_SEARCH = "fast_beam_search_graph"  # the search over a decoding graph (LG)


@dataclass(frozen=True)
class ScorerTerm:
    """What a scorer adds to a hypothesis: `sign` times the value of key `scale` of section decode times its score.

    scorer: "lm" (the LSTM language model), "ngram" (decode.ngram), "bigram" (decode.bigram) or "internal_lm".
    """

    scorer: str
    scale: str
    sign: float = 1.0


@dataclass(frozen=True)
class Method:
    """A decoding method.

    search: name in `model.search`, or `GRAPH_SEARCH`.
    fused: scorers that take part in the search. second_pass: scorers that reorder the n-best list after it.
    oracle: take the entry of the n-best list with the fewest word errors. It needs the reference and gives a lower bound.
    """

    search: str
    fused: tuple[ScorerTerm, ...] = ()
    second_pass: tuple[ScorerTerm, ...] = ()
    oracle: bool = False

    @property
    def scales(self) -> tuple[str, ...]:
        """The keys of section decode that scale a part of this method's score."""
        graph = ("ngram_scale",) if self.search == GRAPH_SEARCH else ()
        return graph + tuple(part.scale for part in self.fused + self.second_pass)


LM = ScorerTerm("lm", "lm_scale")

METHODS: dict[str, Method] = {
    "greedy_search": Method("greedy_search"),
    "modified_beam_search": Method("modified_beam_search"),
    "fast_beam_search": Method("fast_beam_search"),
    "modified_beam_search_lm_shallow_fusion": Method("modified_beam_search", (LM,)),
    "modified_beam_search_LODR": Method("modified_beam_search", (LM, ScorerTerm("bigram", "lodr_scale", -1.0))),
    "modified_beam_search_ngram": Method("modified_beam_search", (ScorerTerm("ngram", "ngram_scale"),)),
    "modified_beam_search_ilm": Method("modified_beam_search", (LM, ScorerTerm("internal_lm", "ilm_scale", -1.0))),
    "modified_beam_search_lm_rescore": Method("modified_beam_search", second_pass=(LM,)),
    "fast_beam_search_nbest_lm_rescore": Method("fast_beam_search", second_pass=(LM,)),
    "fast_beam_search_nbest_oracle": Method("fast_beam_search", oracle=True),
    "fast_beam_search_LG": Method(GRAPH_SEARCH),
    "ctc_greedy_search": Method("ctc_greedy_search"),
}

# Keys of section decode that all methods of a run share: `by_method` cannot have them.
SHARED_BY_METHODS = {"methods", "max_duration", "tail_frames", "feature_floor", "max_utterances", "num_threads", "by_method"}


@dataclass
class DecodeConfig(Section):
    """Section decode."""

    methods: list[str]
    max_duration: Duration
    tail_frames: Annotated[int, Limits(0, 10_000)]
    feature_floor: bool
    max_utterances: Count
    max_sym_per_frame: Annotated[int, Limits(1, 1000)]
    beam: Annotated[int, Limits(1, 10_000)]
    fast_beam: Annotated[float, Limits(1e-6, 1e6)]
    max_contexts: Annotated[int, Limits(1, 100_000)]
    max_states: Annotated[int, Limits(1, 100_000)]
    log_semiring: bool
    fast_beam_backend: Literal["native", "k2"]
    blank_penalty: Nats
    blank_skip: Share
    temperature: Annotated[float, Limits(0.0001, 10_000)]
    lm: File
    lm_scale: Scale
    bigram: File
    lodr_scale: Scale
    ngram: File
    ngram_scale: Scale
    ilm_scale: Scale
    hotwords: File
    hotwords_boost: Annotated[float, Limits(-1000, 1000)]  # as of a phrase in the file
    num_threads: Threads
    by_method: dict[str, dict[str, Any]]

    def of_method(self, method: str) -> DecodeConfig:
        """Return these settings, changed by `by_method`. Raises omegaconf's `ValidationError` for a wrong type there."""
        own = self.by_method.get(method, {})
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(self), own))  # type: ignore[return-value]

    def cross_check(self) -> Iterator[tuple[str, str]]:
        """Check the names of methods, and what `by_method` says of each as if it stood in section decode itself."""
        if self.blank_skip > 0 and self.fast_beam_backend == "k2":
            yield "blank_skip", "must be 0 if fast_beam_backend is k2, which searches all frames"
        if self.log_semiring and self.fast_beam_backend == "k2":
            yield "log_semiring", "must be false if fast_beam_backend is k2, which takes the best alignment"
        known = f"must be one of {', '.join(METHODS)}"
        without: set[str] = set()  # keys that are wrong without by_method, too
        if self.by_method:
            without = {name for name, _ in find_problems(replace(self, by_method={}))}
        for method in self.methods:
            if method not in METHODS:
                yield "methods", f"'{method}' {known}"
        for method, own in self.by_method.items():
            if method not in METHODS:
                yield f"by_method.{method}", f"the name {known}"
                continue
            for name in sorted(own.keys() & SHARED_BY_METHODS):
                yield f"by_method.{method}.{name}", f"all methods share it; set decode.{name} instead"
            try:
                settings = replace(self.of_method(method), by_method={})
            except OmegaConfBaseException as e:
                name = str(e.full_key)
                yield f"by_method.{method}.{name}", f"must be {describe(types_of(DecodeConfig)[name])}"
                continue
            found = [(name, why) for name, why in find_problems(settings) if name in own or name not in without]
            yield from ((f"by_method.{method}.{name}", why) for name, why in found)


@dataclass
class TuneConfig(Section):
    """Section tune: each key lists values to try for another key, see `TUNED`; all combinations are tried."""

    average_num: list[Epochs]
    blank_penalty: list[Nats]
    lm_scale: list[Scale]
    lodr_scale: list[Scale]
    ngram_scale: list[Scale]
    ilm_scale: list[Scale]


# The key that each list of section tune has values for.
TUNED = {f.name: "average.num" if f.name == "average_num" else f"decode.{f.name}" for f in fields(TuneConfig)}
