"""Write tables as text files; a spreadsheet that opens one shows texts, and runs none of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write
from local.common.visible import cell


def write_table(path: Path, head: Sequence[str], rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> None:
    """Write the columns `head` of the rows, with floats of six digits. Missing values are empty; `nan` and `inf` stay.

    Texts are written by `cell`; a reader that compares them uses `unquoted`.
    """
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, head, delimiter=delimiter, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    return cell(value) if isinstance(value, str) else value
