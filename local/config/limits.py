"""Limits of values: they stand beside a key's type in schema.py as `Annotated[int, Limits(1, 1000)]`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin, get_type_hints

from local.common.visible import visible

LONGEST_PART = 200  # bytes: names of files with 255 bytes hold it
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on Linux and macOS


class Check(Protocol):
    """What the values of a key must be, besides their type."""

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with `value`, or None."""


@dataclass(frozen=True)
class Limits:
    """The numbers that a key may have: from `least` to `most`, or infinity if `may_be_infinite`.

    Every number has both: without, an optimiser, a model or a search ends in an overflow, in nothing, or not at all.
    """

    least: float
    most: float
    may_be_infinite: bool = False

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with `value`, or None."""
        if isinstance(value, dict | list):  # an item of a list may be any value of a checkpoint
            return "must be a number"
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        if self.least <= value <= self.most or (self.may_be_infinite and value == math.inf):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        return f"must be from {self.least:g} to {self.most:g}{', or .inf' if self.may_be_infinite else ''}"


@dataclass(frozen=True)
class FileName:
    """The name of a file or folder: as long as the system allows; empty: none."""

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with `value`, or None."""
        encoded = bytes_of(value)
        if encoded is None or min(encoded, default=32) < 32:
            return "must be text in UTF-8 without control characters, the name of a file"
        if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
            return f"has more than {LONGEST_PATH} bytes, or {LONGEST_NAME} between two '/'; no file has such a name"
        return None


@dataclass(frozen=True)
class PartName:
    """The name of a part: it becomes part of file names."""

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with `value`, or None."""
        encoded = bytes_of(value) if isinstance(value, str) else None
        fine = encoded is not None and 1 <= len(encoded) <= LONGEST_PART and min(encoded) >= 32 and b"/" not in encoded
        if fine and value.strip(" ."):
            return None
        return (
            f"must be a name without '/' and control characters, of at most {LONGEST_PART} bytes: it becomes part of file names"
        )


def bytes_of(text: str) -> bytes | None:
    """Return a text in UTF-8; None if it has a part of a character (a lone surrogate)."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def shown(value: Any) -> str:
    """Return a value as visible text for a message, at most 100 characters."""
    try:
        text = "null" if value is None else str(value)
    except ValueError:  # of whole numbers with thousands of digits
        return "a very large number"
    return visible(text if len(text) <= 100 else f"{text[:100]}...")


# Types with limits. They are wider than anything useful, and narrow enough that numbers stay finite and programs end.
Width = Annotated[int, Limits(1, 100_000)]  # of a layer
Layers = Annotated[int, Limits(1, 1000)]
Size = Annotated[int, Limits(1, 10**12)]
Count = Annotated[int, Limits(0, 10**12)]
Epochs = Annotated[int, Limits(1, 1_000_000)]
Seed = Annotated[int, Limits(0, 2**32 - 1)]
Threads = Annotated[int, Limits(0, 4096)]
Share = Annotated[float, Limits(0, 1)]
Scale = Annotated[float, Limits(0, 10_000)]
Nats = Annotated[float, Limits(-10_000, 10_000)]  # log-probabilities that are added
Duration = Annotated[float, Limits(0.001, 10**9, may_be_infinite=True)]  # seconds
File = Annotated[str | None, FileName()]
Parts = Annotated[list[str] | None, PartName()]


class Section:
    """A section of the configuration. Subclasses are dataclasses; what their keys must be together is in `cross_check`."""

    def cross_check(self) -> Iterable[tuple[str, str]]:
        """Yield each key (below this section) with an impossible value, and the problem."""
        return ()


def types_of(section: Any) -> dict[str, Any]:
    """Return the type of each key of a section, with its limits."""
    return get_type_hints(section, include_extras=True)


def find_problems(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key with an impossible value, and the problem: first values by themselves, then `cross_check`."""
    for name, kind in types_of(type(section)).items():
        value = getattr(section, name)
        if is_dataclass(value):
            yield from find_problems(value, f"{prefix}{name}.")  # type: ignore[arg-type]
            continue
        check = check_of(kind)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            if check is not None and item is not None and (why := check.problem(item)) is not None:
                yield prefix + name, why
    yield from ((prefix + key, why) for key, why in section.cross_check())


def check_of(kind: Any) -> Check | None:
    """Return what stands beside a key's type, or None."""
    if get_origin(kind) is list:
        return check_of(get_args(kind)[0])
    return get_args(kind)[1] if get_origin(kind) is Annotated else None


def describe(kind: Any) -> str:
    """Return what a value of this type is, to complete "must be"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe(parts[0])
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin is list:
        return f"a list, each item {describe(parts[0])}"
    if origin is dict:
        return f"keys, each with a colon, a space and {describe(parts[1])}"
    if type(None) in parts:
        return f"{describe(parts[0])}, or null"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "a plain value"}
    return names.get(kind, "a section with keys")
