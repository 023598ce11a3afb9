"""Write tables of numbers as text files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write


def write_table(path: Path, head: Sequence[str], rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> None:
    """Write the columns `head` of the rows, with floats of six digits. Missing values are empty; `nan` and `inf` stay."""
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, head, delimiter=delimiter, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
