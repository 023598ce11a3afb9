"""What a configuration may hold before its types are known: plain values, not nested without end, and references to keys.

`${section.key}` in the YAML or the arguments of a user stands for the value of another key. Nothing else is ever looked up:
no environment variable, no file. A configuration that a program wrote has no references: they were replaced when it was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from local.common.yaml_bounds import DEEPEST, MOST

REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}")
MOST_INT = 10**30  # larger ones are not floats, and Python does not even write those of thousands of digits
Problem = tuple[str, str]  # a key, and what is wrong with it


def problem_of(values: dict[Any, Any], stored: bool) -> Problem | None:
    """Return the first key with a value that no configuration may have. stored: a program wrote the values."""
    for number, (key, value, level) in enumerate(_walk(values, "", 1)):
        if number >= MOST:
            return key, f"more than {MOST} values"
        if level > DEEPEST:
            return key, f"nested more than {DEEPEST} levels deep"
        if not isinstance(value, str | int | float | bool | dict | list | None):
            return key, "must be plain: text, numbers, lists, and sections with keys that are text"
        if isinstance(value, int) and abs(value) > MOST_INT:
            return key, "is too large a number"
        if isinstance(value, str) and "${" in (value if stored else REFERENCE.sub("", value)):
            what = "a stored configuration has no references" if stored else "only ${section.key} can be written so"
            return key, f"has '${{' in it: {what}; nothing else is looked up"
    return None


def _walk(value: Any, key: str, level: int) -> Iterator[tuple[str, Any, int]]:
    """Yield key, value and level of everything within `value`, and names that are not text; nothing below the deepest level."""
    if isinstance(value, dict):
        parts = [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
        # As a value, null or a number would be fine; as a name, it is as wrong as a tuple.
        yield from ((path, (name,), level) for name, (path, _) in zip(value, parts, strict=True) if not isinstance(name, str))
    else:
        parts = [(key, item) for item in value]
    for path, item in parts:
        yield path, item, level
        if isinstance(item, dict | list) and level <= DEEPEST:
            yield from _walk(item, path, level + 1)


def chained(values: dict[str, Any]) -> Problem | None:
    """Return the first key that refers to a key which is itself a reference, or to a part of itself."""
    for key, value, _ in _walk(values, "", 1):
        for name in REFERENCE.findall(value) if isinstance(value, str) else ():
            target: Any = values
            for part in name.split("."):
                target = target.get(part) if isinstance(target, dict) else None
            inside = [item for _, item, _ in _walk({"": target}, "", 1) if isinstance(item, str) and "${" in item]
            if inside:
                return key, f"${{{name}}} holds {inside[0][:80]}; refer to a key that has a value"
    return None
