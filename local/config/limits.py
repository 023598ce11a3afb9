"""Limits of values: they stand beside a key's type in schema.py as `Annotated[int, Limits(1)]`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Limits:
    """The numbers that a key may have: from `least` to `most`, without `least` if `is_open`; infinity if `may_be_infinite`."""

    least: float = -math.inf
    most: float = math.inf
    is_open: bool = False
    may_be_infinite: bool = False

    def problem(self, value: float) -> str | None:
        """Return what is wrong with `value`, or None."""
        if not math.isfinite(value) and not (self.may_be_infinite and value == math.inf):
            return "must be a finite number"
        if self.least < value < self.most or value == self.most or (value == self.least and not self.is_open):
            return None
        if self.is_open:
            return f"must be above {self.least}"
        return f"must be at least {self.least}" if self.most == math.inf else f"must be from {self.least} to {self.most}"


# Types with limits. Upper limits in schema.py catch slips: with larger values, building a model or a search would not end.
Size = Annotated[int, Limits(1)]
Count = Annotated[int, Limits(0)]
Share = Annotated[float, Limits(0, 1)]
NotNegative = Annotated[float, Limits(0)]
Positive = Annotated[float, Limits(0, is_open=True)]
Seconds = Annotated[float, Limits(0, is_open=True, may_be_infinite=True)]


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
        limits = _limits(kind)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int | float) and not isinstance(item, bool) and (why := limits.problem(item)) is not None:
                yield prefix + name, why
    yield from ((prefix + key, why) for key, why in section.cross_check())


def _limits(kind: Any) -> Limits:
    if get_origin(kind) is list:
        return _limits(get_args(kind)[0])
    return get_args(kind)[1] if get_origin(kind) is Annotated else Limits()


def describe(kind: Any) -> str:
    """Return what a value of this type is, to complete "must be"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe(parts[0])
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin is list:
        return f"a list, each item {describe(parts[0])}"
    if type(None) in parts:
        return f"{describe(parts[0])}, or null"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "a plain value"}
    return names.get(kind, "a section with keys")
