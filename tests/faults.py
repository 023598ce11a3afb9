"""Random damages of a file, as disks, other programs and people make them.

Each is a function `damage(path, rng)` that returns a description. This file has those of bytes and texts, fault_formats.py
has the others.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path, random.Random], str]


# Bytes


def truncated(path: Path, rng: random.Random) -> str:
    size = path.stat().st_size
    os.truncate(path, kept := rng.randrange(max(size, 1)))
    return f"truncated to {kept} of {size} bytes"


def flipped(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    places = [rng.randrange(8 * len(data)) for _ in range(rng.choice([1, 3, 30]))]
    for place in places:
        data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"{len(places)} bits flipped"


def zeroed(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    first = rng.randrange(len(data))
    end = min(len(data), first + rng.choice([1, 100, len(data)]))
    data[first:end] = bytes(end - first)
    path.write_bytes(data)
    return f"bytes {first} to {end} of {len(data)} zeroed"


def emptied(path: Path, rng: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def random_bytes(path: Path, rng: random.Random) -> str:
    path.write_bytes(rng.randbytes(path.stat().st_size))
    return "random bytes"


def deleted(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "deleted"


def folder(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def looped(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "a symbolic link to itself"


def forbidden(path: Path, rng: random.Random) -> str:
    if os.geteuid() == 0:  # root can read every file
        return deleted(path, rng)
    path.chmod(0)
    return "without permission to read"


def swapped(path: Path, rng: random.Random) -> str:
    """Put another file of the same folder, or of a folder above it, in its place."""
    near = [p for up in path.parents[:3] for p in sorted(up.glob("*")) if p.is_file() and p != path]
    other = rng.choice(near or [path])
    shutil.copyfile(other, path) if other != path else emptied(path, rng)
    return f"{other.name} in its place"


BYTES: list[Damage] = [
    *(truncated, truncated, flipped, flipped, zeroed, emptied, random_bytes, deleted, folder, looped, forbidden, swapped)
]
CORRUPTIONS = (truncated, flipped, zeroed, emptied, random_bytes)  # nobody makes these on purpose


# Texts


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def encoded_otherwise(path: Path, rng: random.Random) -> str:
    text, encoding = path.read_text(encoding="utf-8") + "Ü", rng.choice(["utf-16", "utf-8-sig", "cp1252", "cp037"])
    path.write_bytes(text.encode(encoding, errors="replace"))
    return f"in {encoding}"


def strange_bytes(path: Path, rng: random.Random) -> str:
    data = path.read_bytes()
    place, what = rng.randrange(len(data)), rng.choice([b"\xff", b"\x00", b"\xc3(", b"\r", b"\t", b"\n\n", b'"', b"\x1a"])
    path.write_bytes(data[:place] + what + data[place:])
    return f"{what!r} at byte {place}"


def line_repeated(path: Path, rng: random.Random) -> str:
    lines = _lines(path)
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    path.write_text("".join(lines), encoding="utf-8")
    return "one line twice"


def line_gone(path: Path, rng: random.Random) -> str:
    lines = _lines(path)
    gone = lines.pop(rng.randrange(len(lines)))
    path.write_text("".join(lines), encoding="utf-8")
    return f"without {gone[:60]!r}"


def word_changed(path: Path, rng: random.Random) -> str:
    lines = _lines(path)
    row = rng.randrange(len(lines))
    words = lines[row].split(" ")
    place, what = rng.randrange(len(words)), rng.choice(["", "x" * 100_000, "Ü字", "-1", "nan", "1e999", "A " * 3000, "\u2028"])
    words[place] = what
    lines[row] = " ".join(words) + ("" if words[-1].endswith("\n") else "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return f"line {row + 1}, word {place + 1}: {what[:20]!r}"


TEXT: list[Damage] = [*BYTES, encoded_otherwise, strange_bytes, line_repeated, line_gone, word_changed, word_changed]
