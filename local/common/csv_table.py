"""Tables of numbers as text files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write


def write_table(path: Path, head: Sequence[str], rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> None:
    """Columns `head` of the rows, floats to six digits (`nan` and `inf` as such); what a row lacks stays empty."""
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, head, delimiter=delimiter, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
