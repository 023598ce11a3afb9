"""Spoils a whole file of a corpus: a manifest, a table or a list that cannot be read."""

from __future__ import annotations

import gzip
from pathlib import Path

ENDINGS = (".tsv", ".csv", ".jsonl", ".json", ".jsonl.gz", ".trans.txt")
KALDI = ("wav.scp", "text", "segments")
SPOILS = ("cut off", "not UTF-8", "a zero byte", "missing", "empty")


def lists_of(root: Path, part: str) -> list[Path]:
    """Return the files of a part that list its utterances."""
    found = [p for p in sorted(root.rglob("*")) if p.is_file() and (p.name.endswith(ENDINGS) or p.name in KALDI)]
    return [p for p in found if part in p.relative_to(root).as_posix()]


def spoil(path: Path, how: str) -> None:
    """Spoil a file."""
    packed = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    if how == "missing":
        path.unlink()
        return
    if how == "cut off" and packed:
        path.write_bytes(path.read_bytes()[:-15])
        return
    middle = len(content) // 2
    bad = {"empty": b"", "a zero byte": content[:middle] + b"\0" + content[middle:]}
    content = bad.get(how, content[:middle] + b"\xff\xfe" + content[middle:])
    path.write_bytes(gzip.compress(content) if packed else content)
