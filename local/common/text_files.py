"""Reading what others wrote, texts and YAML: whatever is wrong with a file is one line that names it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

from local.common.errors import UserError

import yaml


def read_bytes(path: Path, made_by: str = "") -> bytes:
    """A file's content, unpacked where its name ends in `.gz`. `UserError` where it is missing or broken."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise UserError(f"{path} is missing" + (f"; {made_by} makes it" if made_by else "")) from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        again = f"; let {made_by} make it again (--force)" if made_by else ""
        raise UserError(f"{path}: truncated or not gzip{again}") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None


def is_file(path: Path) -> bool:
    """Whether there is such a file; False, too, for what cannot be a path (overlong, or with a zero byte)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_lines(path: Path, made_by: str = "") -> list[str]:
    """Lines of a UTF-8 file without their ends; `UserError` names the line that is not UTF-8, or has a zero byte."""
    lines = read_bytes(path, made_by).removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(b"\n")
    out = []
    for number, line in enumerate(lines, 1):
        if b"\0" in line:  # valid, but what a crash leaves where text was
            raise UserError(f"{path}:{number}: not text (a zero byte at byte {line.index(0) + 1})")
        try:
            out.append(line.decode("utf-8"))
        except UnicodeDecodeError as e:
            raise UserError(f"{path}:{number}: not UTF-8 text ({e.reason} at byte {e.start + 1})") from None
    return out[:-1] if out[-1] == "" else out


def read_yaml(path: Path, made_by: str = "") -> Any:
    """What a YAML file says, plain values. `UserError` where it is none."""
    text = "\n".join(read_lines(path, made_by))
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: a date that is none
        raise UserError(f"{path}: not valid YAML: {' '.join(str(e).split())[:200]}") from None
