"""The configuration as flat lines, by which run.sh compares the settings of a stage with those it was run with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from local.config.load import to_dict
from local.config.schema import Config


def flat_lines(cfg: Config) -> list[str]:
    """Return one line `section.key VALUE` per key, in the order of the schema, with VALUE as JSON.

    `decode.by_method` is flattened too: `decode.by_method.METHOD.KEY VALUE`.
    """
    return [f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in _leaves(to_dict(cfg))]


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
