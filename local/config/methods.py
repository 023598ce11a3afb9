"""Decoding methods by icefall's names: which search each is, which scorers help it, and which settings scale these.

Nothing but the table: the config checks names against it and scoring reads what it needs of it, without torch.
local/decoding/recogniser.py turns an entry into something that decodes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScorerTerm:
    """A scorer's share: `sign` times what key `scale` of section `decode` says, times the scorer's score.

    scorer: "lm" (the LSTM language model), "ngram" (decode.ngram), "bigram" (decode.bigram) or "internal_lm".
    """

    scorer: str
    scale: str
    sign: float = 1.0


@dataclass(frozen=True)
class Method:
    """search: name in `model.search`, or "fast_beam_search_graph" for the search over LG.

    fused: what takes part in the search. second_pass: what puts the n-best list in another order afterwards.
    oracle: of the n-best list the entry with the fewest word errors is taken, which needs the reference: a lower bound.
    """

    search: str
    fused: tuple[ScorerTerm, ...] = ()
    second_pass: tuple[ScorerTerm, ...] = ()
    oracle: bool = False

    @property
    def scales(self) -> tuple[str, ...]:
        """Keys of section `decode` that scale something of this method's."""
        graph = ("ngram_scale",) if self.search == "fast_beam_search_graph" else ()
        return graph + tuple(part.scale for part in self.fused + self.second_pass)

    @property
    def supports_scorers(self) -> bool:
        """Whether decode.supports_scorers take part."""
        return self.search == "modified_beam_search"


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
    "fast_beam_search_LG": Method("fast_beam_search_graph"),
}
