"""Searches by name: `get_search("modified_beam_search")(model, encoder_out, encoder_out_lens, **options)`."""

from __future__ import annotations

from collections.abc import Callable

from model.search.fast_beam import fast_beam_search
from model.search.greedy import greedy_search
from model.search.hypothesis import Hypothesis
from model.search.modified_beam import modified_beam_search

Search = Callable[..., list[Hypothesis]]

SEARCHES: dict[str, Search] = {
    "greedy_search": greedy_search,
    "modified_beam_search": modified_beam_search,
    "fast_beam_search": fast_beam_search,
}


def get_search(name: str) -> Search:
    """The search of that name: `search(model, encoder_out (N, T, C), encoder_out_lens (N,), **options)`.

    Every search returns one `Hypothesis` per utterance, in the order of the batch; an utterance of 0 frames gets an empty one.
    Options are keyword arguments, checked: an unknown one is a TypeError that names it, a bad value a ValueError.

    Raises:
      ValueError: no search of that name.
    """
    try:
        return SEARCHES[name]
    except KeyError:
        raise ValueError(f"unknown search {name!r}; choose from {', '.join(SEARCHES)}") from None


__all__ = ["SEARCHES", "Hypothesis", "Search", "get_search"]
