"""Work done in halves where the memory does not suffice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from local.common.errors import UserError, is_out_of_memory

import torch

Result = TypeVar("Result")


def in_halves_on_oom(
    work: Callable[[slice], Result], names: list[str], device: torch.device, to: str = "decode"
) -> list[Result]:
    """`work` on all rows (`slice`) of a batch at once, or in halves, quarters ... where the memory does not suffice.

    names: of the rows, for messages. to: what the work is, likewise.
    Returns the results in the order of the rows. Raises `UserError` naming a row that alone is too long.
    """

    def part(first: int, end: int) -> list[Result]:
        try:
            return [work(slice(first, end))]
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            reason = str(e).strip().split("\n")[0][:200]
        # Out of the handler, which holds on to the tensors of what failed.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if end - first == 1:
            raise UserError(f"utterance {names[first]}: not enough memory to {to} it: {reason}")
        print(f"warning: not enough memory for {end - first} utterances at once ({names[first]}, ...); halved", file=sys.stderr)
        middle = (first + end) // 2
        return part(first, middle) + part(middle, end)

    return part(0, len(names))
