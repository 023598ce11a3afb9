"""What the tests of the doctor's checks share: a healthy run of tiny's size, and what a check finds."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from local.config import load_config
from local.config.schema import Config
from local.health.finding import Check, Finding, Run, guarded
from tests.conftest import ROOT

TINY = ROOT / "egs" / "tiny" / "conf" / "tiny.yaml"


@functools.cache
def config(*overrides: str) -> Config:
    """Return tiny's configuration; nobody changes it."""
    return load_config(TINY, overrides)


def healthy(folder: Path, *overrides: str, **changes: Any) -> Run:
    """Return a run of tiny's configuration in new folders."""
    values = {"environment": "given", "corpus": "tiny", "data_dir": folder / "data", "exp_dir": folder / "exp"}
    values |= {"nproc": 1, "parts": ("train", "dev", "test"), "hours": 1.69}
    return Run(ROOT, **{"cfg": config(*overrides), **values, **changes})  # type: ignore[arg-type]


def found(check: Check, run: Run) -> list[Finding]:
    """Return what a check finds; each finding is one line."""
    findings = list(guarded(check(run)))
    assert all("\n" not in str(finding) and str(finding).startswith(f"{finding.level}: ") for finding in findings)
    return findings


def one(check: Check, run: Run, level: str, *words: str) -> Finding:
    """Return the one finding of a check, which must have the level and the words."""
    (finding,) = found(check, run)
    assert finding.level == level and [word for word in words if word not in str(finding)] == []
    return finding


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], head: Sequence[str]) -> None:
    """Write train.csv or valid.csv; missing values are empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, head, restval="")
        writer.writeheader()
        writer.writerows(rows)
