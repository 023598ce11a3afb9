"""Decoded sets: EXP/decode/<method>/<set>.jsonl with <set>.stats.json, and those of earlier settings. Needs no torch.

Beside them are files for sclite, by local/decoding/sclite.py.
Key "prepared" of the stats of a set of another corpus of data.mix: its folder and part.
Key "made_by" of the stats: {"checkpoint", "average", "label", "weights", "options", "commit", "date"}.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from local.common.atomic import write_text
from local.common.errors import UserError
from local.common.text_files import read_lines

EARLIER = "decode_earlier"
SCLITE = (".hyp.trn", ".ref.trn", ".ctm")  # endings of what stands beside a set; older ones lack them
LONGEST_LABEL = 60  # characters of a folder's name: at most 240 bytes


@dataclass(frozen=True)
class DecodedSet:
    """One set decoded by one method: its .jsonl file, and the content of its .stats.json (empty without such a file)."""

    path: Path
    stats: dict[str, Any]

    @property
    def name(self) -> str:
        """The set."""
        return self.path.stem

    @property
    def method(self) -> str:
        """The decoding method."""
        return self.path.parent.name

    @property
    def made_by(self) -> dict[str, Any]:
        """Key "made_by" of the stats; empty for a set by an older version of local/decode.py."""
        return self.stats.get("made_by", {})

    def prepared(self, data_dir: Path) -> tuple[Path, str]:
        """Return the folder of prepared data and the part that was decoded; data_dir: the folder of the first corpus."""
        folder, part = self.stats.get("prepared", (data_dir, self.name))
        return Path(folder), part

    @property
    def model(self) -> tuple[Any, Any]:
        """The label and the hash of the weights; they identify the average."""
        return self.made_by.get("label"), self.made_by.get("weights")

    def same_settings(self, other: DecodedSet) -> bool:
        """Whether the same average and the same options made both sets."""
        return self.model == other.model and self.made_by.get("options") == other.made_by.get("options")


def read_set(path: Path) -> DecodedSet:
    """Read the stats of the decoded set `path` (.jsonl). Raises `UserError` naming the stats file if it is damaged."""
    stats_path = path.with_suffix(".stats.json")
    if not stats_path.exists():
        return DecodedSet(path, {})
    try:
        stats = json.loads("\n".join(read_lines(stats_path)))
        made_by = stats.get("made_by", {"label": "", "date": "", "commit": "", "average": "", "options": {}})
        whole = all(isinstance(made_by[key], str) for key in ("label", "date", "commit", "average"))
        folder, part = stats.get("prepared", ("", ""))
        whole = whole and isinstance(made_by["options"], dict) and isinstance(folder, str) and isinstance(part, str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{stats_path}: damaged: not by local/decode.py; decode the set again")
    return DecodedSet(path, stats)


def find_sets(exp_dir: Path) -> tuple[list[DecodedSet], list[DecodedSet]]:
    """Return the sets of the average that decoded last, and all others, EXP/decode_earlier included.

    Sets by an older version of local/decode.py, which do not tell their average, are of the first kind.
    """
    found = [read_set(path) for path in sorted((exp_dir / "decode").glob("*/*.jsonl"))]
    newest = max((s for s in found if s.made_by), key=lambda s: s.made_by["date"], default=None)
    model = newest and newest.model
    current = [s for s in found if not s.made_by or s.model == model]
    stale = [s for s in found if s not in current]
    return current, stale + [read_set(path) for path in sorted((exp_dir / EARLIER).glob("*/*/*.jsonl"))]


def write_set(
    path: Path, lines: Iterable[dict[str, Any]], stats: dict[str, Any], texts: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a decoded set, its stats and the `texts` beside it, whose keys are of `SCLITE`; each as a whole.

    An older set of other settings first moves to EXP/decode_earlier/<label>/<method>/, or to <label>-2 ... if that is taken.
    """
    new = DecodedSet(path, json.loads(json.dumps(stats)))
    if path.exists() and not (old := read_set(path)).same_settings(new):
        _move(old)
    write_text(path.with_suffix(".stats.json"), json.dumps(stats, indent=2) + "\n")
    for ending, text in texts.items():
        write_text(path.with_suffix(ending), text)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _move(old: DecodedSet) -> None:
    # The label is from the checkpoint: of any length, and perhaps "..".
    label = re.sub(r"[^\w.+-]", "_", old.made_by.get("label", ""))[:LONGEST_LABEL].strip(".") or "unknown"
    root = old.path.parents[2] / EARLIER
    labels = itertools.chain([label], (f"{label}-{n}" for n in itertools.count(2)))
    files = (root / folder / old.method / old.path.name for folder in labels)
    target = next(file for file in files if not file.exists() or read_set(file).same_settings(old))
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".stats.json", *SCLITE, ".jsonl"):
        if (source := old.path.with_suffix(suffix)).exists():
            os.replace(source, target.with_suffix(suffix))
