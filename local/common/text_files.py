"""Reading files that others wrote, texts and YAML: an error names the file and the line."""

from __future__ import annotations

import gzip
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.common.yaml_bounds import LONGEST, plain_values

import yaml

HALF = re.compile(r"\\(u|U0000)[dD][89a-fA-F][0-9a-fA-F]{2}")  # of a character outside the first 65,536, in YAML and JSON
LONGEST_LINE = 1 << 26  # bytes; a longer line is not text, and would fill the memory
# A .gz may be this many times larger when it is unpacked, or this many bytes: texts and manifests shrink to a tenth, a
# file that is made to fill the memory to a thousandth.
MOST_TIMES, SMALL = 200, 1 << 26


def read_bytes(path: Path, made_by: str = "") -> bytes:
    """Return a file's content, `.gz` unpacked. Raises `UserError` if it is missing or damaged; `made_by` is what writes it."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            data = file.read(_most_bytes(path) + 1)
        if len(data) > _most_bytes(path):
            raise _too_large(path)
        return data
    except (OSError, EOFError, zlib.error) as e:
        raise _unreadable(path, made_by, e) from None


def _most_bytes(path: Path) -> int:
    """Return how many bytes may be read from a file: without limit if it is not packed."""
    return max(SMALL, MOST_TIMES * path.stat().st_size) if path.suffix == ".gz" else sys.maxsize


def _too_large(path: Path) -> UserError:
    return UserError(f"{path}: it unpacks to more than {MOST_TIMES} times its size; unpack it yourself if you trust it")


def _unreadable(path: Path, made_by: str, e: Exception) -> UserError:
    if isinstance(e, FileNotFoundError):
        return UserError(f"{path} is missing" + (f"; {made_by} makes it" if made_by else ""))
    if isinstance(e, OSError) and not isinstance(e, gzip.BadGzipFile):
        return UserError(f"{path}: {e.strerror}")
    return UserError(f"{path}: truncated or not gzip" + (f"; {made_by} with --force makes it again" if made_by else ""))


def is_file(path: Path) -> bool:
    """Return whether `path` is a file; False also if it cannot be a path (too long, or with a zero byte)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def regular(path: Path) -> Path:
    """Return the path of a file. Raises `UserError` if it is missing, or a folder, a pipe or a device, which may never end."""
    if not is_file(path):
        raise UserError(f"{path} is " + ("no file" if path.exists() else "missing"))
    return path


def iterate_lines(path: Path, made_by: str = "") -> Iterator[str]:
    """Yield the lines of a UTF-8 file (`.gz` unpacked) without their ends, one by one: a text may be larger than the memory.

    Raises `UserError` naming the file if it is missing or damaged, and the line if it is not UTF-8, has a zero byte or is
    longer than `LONGEST_LINE`.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            left = _most_bytes(path)
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
                left -= len(line)
                if left < 0:
                    raise _too_large(path)
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MB; end lines where sentences end"
                    )
                yield _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, f"{path}:{number}")
    except (OSError, EOFError, zlib.error) as e:
        raise _unreadable(path, made_by, e) from None


def first_lines(path: Path, count: int) -> list[str]:
    """Return up to `count` lines of a file, with U+FFFD for what is not UTF-8 and for zero bytes: enough to see what it is.

    Raises `UserError` naming the file if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = b"".join(islice(file, count)).decode("utf-8-sig", "replace")
        return text.replace("\0", "\ufffd").replace("\r\n", "\n").split("\n")
    except OSError as e:
        raise _unreadable(path, "", e) from None


def _decode(line: bytes, where: str) -> str:
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    if b"\0" in line:
        raise UserError(f"{where}: not text (a zero byte at byte {line.index(0) + 1})")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 text ({e.reason} at byte {e.start + 1})") from None


def read_lines(path: Path, made_by: str = "") -> list[str]:
    """Return the lines of a UTF-8 file; see `iterate_lines`."""
    return list(iterate_lines(path, made_by))


def read_yaml(path: Path, made_by: str = "", load: Callable[[str], Any] = plain_values) -> Any:
    """Return a YAML file's plain values, or what `load` makes of its text. Raises `UserError` naming the place of an error."""
    if is_file(path) and path.stat().st_size > LONGEST:
        raise UserError(f"{path}: has {path.stat().st_size} bytes; at most {LONGEST} are read")
    lines = read_lines(path, made_by)
    for number, line in enumerate(lines, 1):
        if half := HALF.search(line):  # no file can hold what is made of it
            raise UserError(f"{path}:{number}: half a character ({half[0]}); write the character itself")
    try:
        return load("\n".join(lines))
    except yaml.MarkedYAMLError as e:
        raise UserError(f"{path}{_place(e, lines)}: {', '.join(filter(None, (e.context, e.problem)))}") from None
    except Exception as e:  # impossible dates, numbers that are text, endless recursion
        raise UserError(f"{path}: not valid YAML: {' '.join(str(e).split())[:200]}") from None


def _place(e: yaml.MarkedYAMLError, lines: list[str]) -> str:
    """Return ":LINE:COLUMN: not valid YAML at key 'a.b'"; an unclosed bracket or quote has the place where it was opened."""
    opened = re.search("flow|quoted", e.context or "")
    mark = (e.context_mark if opened else None) or e.problem_mark or e.context_mark
    if mark is None:
        return ": not valid YAML"
    names: list[str] = []
    indent = sys.maxsize
    for line in reversed(lines[: mark.line + 1]):
        match = re.match(r"([ -]*)([^\s#:'\"{}\[\],-][^\s:]*)\s*:(\s|$)", line)
        if match and len(match[1]) < indent:
            names.insert(0, match[2])
            indent = len(match[1])
    key = f" at key '{'.'.join(names)}'" if names else ""
    return f":{mark.line + 1}:{mark.column + 1}: not valid YAML{key}"
