"""The configuration as flat lines, by which run.sh compares the settings of a stage with those it was run with."""

from __future__ import annotations

import json

from local.config.keys import leaves
from local.config.load import to_dict
from local.config.schema import Config


def flat_lines(cfg: Config) -> list[str]:
    """Return one line `section.key VALUE` per key, in the order of the schema, with VALUE as JSON.

    `decode.by_method` is flattened too: `decode.by_method.METHOD.KEY VALUE`.
    """
    return [f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in leaves(to_dict(cfg))]
