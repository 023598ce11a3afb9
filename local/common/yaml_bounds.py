"""Bounds for YAML from anywhere: aliases and brackets can make little text into endless values."""

from __future__ import annotations

from typing import Any

import yaml

LONGEST = 1_000_000  # characters or bytes of a file
DEEPEST = 30  # levels of lists and sections
MOST = 100_000  # values, those of aliases counted wherever they are used


class _Bound(yaml.MarkedYAMLError):
    """Too much YAML, with the place."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


def compose(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text; None if it is empty.

    Raises `yaml.MarkedYAMLError` if it is not YAML, or nested deeper than `DEEPEST`, or of more than `MOST` values.
    """
    node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if node is not None:
        _measure(node, 1, {})
    return node


def plain_values(text: str) -> Any:
    """Return the plain values of a YAML text. Raises `yaml.YAMLError` as `compose` and `yaml.safe_load` do."""
    compose(text)
    return yaml.safe_load(text)


def _measure(node: yaml.Node, level: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of values of a node, aliases counted wherever they are used, and of its levels.

    level: that of the node. known: what is already known, by the id of nodes; an alias is the node that it stands for.
    """
    if level > DEEPEST:  # also a node that holds itself
        raise _Bound(f"nested more than {DEEPEST} levels deep", node.start_mark)
    if id(node) not in known:
        count, levels = 1, 1
        for part in _parts(node):
            more, below = _measure(part, level + 1, known)
            count, levels = count + more, max(levels, below + 1)
            if count > MOST:
                raise _Bound(f"more than {MOST} values", part.start_mark)
        known[id(node)] = count, levels
    if level + known[id(node)][1] - 1 > DEEPEST:
        raise _Bound(f"nested more than {DEEPEST} levels deep", node.start_mark)
    return known[id(node)]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
