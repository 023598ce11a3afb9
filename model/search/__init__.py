"""Searches by name, for whole utterances and for chunks.

`get_search(name)(model, encoder_out, encoder_out_lens, **options)` returns the hypotheses of a batch;
`get_stream(name)(model, **options)` returns an object that takes the same batch in chunks and gives the same hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.search.ctc_greedy import CtcGreedyStream
from model.search.fast_beam import FastBeamStream
from model.search.greedy import GreedyStream
from model.search.hypothesis import Hypothesis
from model.search.modified_beam import ModifiedBeamStream
from model.search.rescore import rescore
from model.search.stream import Stream

import torch

STREAMS: dict[str, Callable[..., Stream]] = {
    "greedy_search": GreedyStream,
    "modified_beam_search": ModifiedBeamStream,
    "fast_beam_search": FastBeamStream,
    "ctc_greedy_search": CtcGreedyStream,
}


def get_search(name: str) -> Callable[..., list[Hypothesis]]:
    """Return the search called `name`: `search(model, encoder_out (N, T, C), encoder_out_lens (N,), **options)`.

    Every search returns one `Hypothesis` per utterance, in the order of the batch; an utterance of 0 frames gets an empty one.
    An unknown name raises ValueError, an unknown option TypeError, a value out of range ValueError.
    """
    stream = get_stream(name)

    def search(model: Any, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor, **options: Any) -> list[Hypothesis]:
        return stream(model, **options).decode(encoder_out, encoder_out_lens)

    return search


def get_stream(name: str) -> Callable[..., Stream]:
    """Return the search called `name` for chunks: `stream(model, **options)` is a `Stream`. Errors as in `get_search`."""
    if name not in STREAMS:
        raise ValueError(f"unknown search {name!r}; choose from {', '.join(STREAMS)}")
    return STREAMS[name]


__all__ = ["STREAMS", "Hypothesis", "Stream", "get_search", "get_stream", "rescore"]
