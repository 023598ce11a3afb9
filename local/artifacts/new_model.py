"""Models of any configuration: their size is computed before they are built, because it may exceed the memory."""

from __future__ import annotations

import contextlib
from typing import Any

from local.common.errors import UserError
from local.common.meter import free_bytes
from local.config.schema import Config
from model.build import build_model, weights_by_key
from model.lm import LstmLm
from model.transducer import Transducer

import torch

BYTES = 4  # of a weight in float32
GIB = 2**30


def new_model(cfg: Config, vocab_size: int) -> Transducer:
    """Return an initial model; `vocab_size` includes blank. Raises `UserError` with the largest keys if memory is too small."""
    check_memory(weights_by_key(cfg, vocab_size))
    return build_model(cfg, vocab_size)


def new_lm(sizes: dict[str, Any]) -> LstmLm:
    """Return an initial language model of `lm_sizes`. Raises `UserError` as `new_model` does."""
    check_memory(lm_weights_by_key(sizes))
    return LstmLm(**sizes)


def lm_weights_by_key(sizes: dict[str, Any]) -> dict[str, int]:
    """Return how many weights the matrices of a language model have, by the key that makes them many."""
    tokens, dim, hidden, layers = (sizes[name] for name in ("vocab_size", "dim", "hidden", "num_layers"))
    recurrent = 4 * hidden * (dim + hidden + (layers - 1) * 2 * hidden)
    return {"lm.hidden": recurrent + (tokens * hidden if dim != hidden else 0), "lm.dim": tokens * dim}


def check_memory(weights: dict[str, int]) -> None:
    """Raise `UserError` with the keys that make a model too large for the free memory, if the system tells how much is free."""
    needed, free = BYTES * sum(weights.values()), float("inf")
    with contextlib.suppress(UserError):
        free = free_bytes(torch.device("cpu"))
    if needed > free:
        gigabytes = f"its weights alone take {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB of memory are free"
        raise UserError(f"the model is too large: {gigabytes}; lower {largest(weights)}")


def check_numbers(weights: dict[str, int], state: dict[str, Any]) -> None:
    """Raise `UserError` if a model has more weights than the file of its weights, `state`: it would be built for nothing."""
    stored = sum(value.numel() for value in state.values())
    if sum(weights.values()) > stored:
        raise UserError(
            f"is of another model: the configuration describes {sum(weights.values())} weights, and it has {stored}; "
            f"most are those of {largest(weights)}"
        )


def largest(weights: dict[str, int]) -> str:
    """Return the one or two keys with the most weights."""
    first, *others = sorted(weights, key=lambda key: -weights[key])
    return f"{first} or {others[0]}" if weights[others[0]] * 4 > weights[first] else first
