"""The values of a checkpoint: plain ones and plain tensors, as many as the file can hold; floats as text."""

from __future__ import annotations

from typing import Any

from local.common.errors import UserError
from local.common.yaml_bounds import DEEPEST
from local.config.limits import shown

import torch

FLOAT = "python float"  # key of the dict that replaces a float; its value is the number in hexadecimal
MOST = 5_000_000  # values of a file, those that it names several times counted each time
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def without_floats(value: Any) -> Any:
    """Replace floats by dicts of text: torch 1.13 writes floats, but its safe loader cannot read them."""
    if isinstance(value, float):
        return {FLOAT: value.hex()}
    if isinstance(value, dict):
        return {k: without_floats(v) for k, v in value.items()}
    return type(value)(without_floats(v) for v in value) if isinstance(value, list | tuple) else value


class PlainValues:
    """Reads values of one file. Little text can stand for endless values, and few numbers for an endless tensor."""

    def __init__(self, file_size: int) -> None:
        """file_size: bytes. Its tensors may have twice as many in all, since two can share their numbers."""
        self.most_bytes = 2 * file_size
        self.count = self.bytes = 0

    def read(self, value: Any, name: str = "", level: int = 0) -> Any:
        """Invert `without_floats`. Raises `UserError` with the dotted name of a value that is not plain or too much."""
        self.count += 1
        if self.count > MOST or level > DEEPEST:
            raise UserError(f"'{shown(name)}' has more than {MOST} values, or is nested more than {DEEPEST} levels deep")
        if isinstance(value, torch.Tensor):
            self._check(value, name)
            return value.detach()
        if isinstance(value, dict):
            if FLOAT in value:
                return float.fromhex(value[FLOAT])
            return {k: self.read(v, f"{name}.{k}" if name else f"{k}", level + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.read(v, name, level + 1) for v in value)
        if not isinstance(value, str | int | float | None):
            raise UserError(f"'{shown(name)}' is not a plain value")
        return value

    def _check(self, value: torch.Tensor, name: str) -> None:
        """Raise `UserError` for a tensor of another layout, device or type than those of weights."""
        if (problem := tensor_problem(value)) is not None:
            raise UserError(f"'{shown(name)}' is not a tensor of weights: {problem}")
        self.bytes += value.numel() * value.element_size()
        if self.bytes > self.most_bytes:
            raise UserError(f"'{shown(name)}' and the tensors before it have more numbers than the file")


def tensor_problem(value: torch.Tensor) -> str | None:
    """Return what keeps a tensor from being plain: in the memory, dense, in order, of a common type; None if nothing does."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"it is of class {type(value).__name__}"
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        return f"its layout is {'nested' if value.is_nested else 'quantized' if value.is_quantized else value.layout}"
    if value.device.type == "meta":
        return "it has no numbers (device meta)"
    if value.dtype not in FLOATING + WHOLE:
        return f"its type is {value.dtype}"
    if not value.is_contiguous():
        return "its numbers overlap or are not in order"
    if value.is_neg() or value.is_conj() or vars(value):
        return "it has attributes, or is a view of a negative"
    return None
