"""Split work in halves when it runs out of memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from local.common.errors import UserError, is_out_of_memory, reason

import torch

Result = TypeVar("Result")


def in_halves_on_oom(
    work: Callable[[slice], Result], names: list[str], device: torch.device, to: str = "decode"
) -> list[Result]:
    """Call `work` with all rows (a `slice`) of a batch, or with halves, quarters ... if the memory does not suffice.

    Returns the results in order. Raises `UserError` naming a row that is too long even alone; `to` is the verb for the work.
    """

    def part(first: int, end: int) -> list[Result]:
        try:
            return [work(slice(first, end))]
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            why = reason(e)[:200]
        # Not in the handler: the exception holds the tensors of the failed work.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if end - first == 1:
            raise UserError(f"utterance {names[first]}: not enough memory to {to} it: {why}")
        which = f"{end - first} utterances at once ({names[first]}, ...)"
        print(f"warning: not enough memory for {which}; the batch is halved", file=sys.stderr)
        middle = (first + end) // 2
        return part(first, middle) + part(middle, end)

    return part(0, len(names))
