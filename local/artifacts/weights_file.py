"""The weights of a file that this project or icefall wrote, for a training that starts from them and for the import.

icefall's checkpoints are `torch.save({"model": state_dict, ...})`. Those of its trainings hold paths as well, which torch's
safe loader refuses: here they become None. Tensors are made from the bytes of the file, and nothing in it is called.
"""

from __future__ import annotations

import math
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from local.artifacts.archive import Stored, check_archive
from local.artifacts.checkpoint import check_finite, check_trained
from local.artifacts.plain_values import PlainValues
from local.common.errors import UserError, described
from local.common.text_files import is_file
from local.config.limits import shown
from model.average import State

import torch

SMOOTHING = ("am_scale", "lm_scale")  # keys of section loss on which the simple projections depend
IGNORED = ("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "torch.device")
TYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
}


class Weights(NamedTuple):
    """The weights of a file by name, its tokens (None if it does not say them, as icefall's), and its keys in `SMOOTHING`."""

    state: State
    tokens: list[str] | None
    smoothing: dict[str, float]


def read_weights(path: Path) -> Weights:
    """Return the weights of averaged.pt, a checkpoint of training, or icefall's pretrained.pt or epoch-N.pt.

    Raises `UserError` in one line for a file that is missing, damaged, untrained, or holds anything but plain values,
    tensors and paths.
    """
    if not is_file(path):
        raise UserError(f"checkpoint {shown(path)} does not exist")
    try:
        with path.open("rb") as file:
            content = check_archive(file, IGNORED)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict) or not content["model"]:
            raise ValueError("it has no weights in 'model'")
        state = _tensors(path, content["model"])
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{path}: damaged, or not a checkpoint: {described(e)}") from None
    check_trained(content, path)
    check_finite(state, path)
    tokens = content.get("tokens")
    known = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    return Weights(state, tokens if known else None, _smoothing(content))


def _smoothing(content: dict[Any, Any]) -> dict[str, float]:
    """Return the values of `SMOOTHING` in the configuration of a checkpoint; none if it has no such numbers."""
    config = content.get("config")
    loss = config.get("loss") if isinstance(config, dict) else None
    try:
        return {key: float(PlainValues(0).read(loss[key])) for key in SMOOTHING} if isinstance(loss, dict) else {}
    except (KeyError, TypeError, ValueError, UserError):
        return {}


def _tensors(path: Path, stored: dict[Any, Any]) -> State:
    """Return tensors by name from their descriptions; ones that share a storage share its memory."""
    numbers: dict[str, torch.Tensor] = {}
    found: State = {}
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder").decode() != sys.byteorder:
            raise ValueError("its numbers have another order of bytes than those of this machine")
        for name, value in stored.items():
            if not isinstance(name, str) or not isinstance(value, Stored) or value.storage[0] not in TYPES:
                raise ValueError(f"'model' has a weight {shown(name)} that is not a named tensor")
            kind, key, count = value.storage
            if not _is_plain(value):
                raise ValueError(f"the tensor '{shown(name)}' is not within its numbers, or they are not in order")
            if key not in numbers:
                numbers[key] = torch.frombuffer(bytearray(archive.read(f"{root}/data/{key}")), dtype=TYPES[kind])
            if numbers[key].dtype != TYPES[kind] or len(numbers[key]) != count:
                raise ValueError(f"the tensor '{shown(name)}' has another type than one that shares its numbers")
            found[name] = numbers[key][value.offset :][: math.prod(value.shape)].view(value.shape)
    return found


def _is_plain(value: Stored) -> bool:
    """Return whether a tensor is dense and in order, has numbers, and lies within its storage."""
    parts = (value.shape, value.stride)
    if not all(isinstance(part, tuple) and all(type(n) is int and n >= 0 for n in part) for part in parts):
        return False
    dense = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(len(value.shape)))
    used = all(ours == theirs or size == 1 for ours, theirs, size in zip(dense, value.stride, value.shape, strict=True))
    inside = type(value.offset) is int and 0 <= value.offset <= value.storage[2] - math.prod(value.shape)
    return used and inside and 0 not in value.shape
