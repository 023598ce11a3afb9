"""Files that are either wholly there or not there at all: written beside their place, then renamed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".tmp-"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; flush it to the disk and rename it to `path` when the block ends.

    The temporary keeps the file's ending (`.jsonl.gz`, `.npy`), since writers choose their format by it. When the block
    raises, the temporary is removed and what was at `path` before stays untouched. An OSError without a file's name (a
    full disk is noticed by a write, which knows none) is given that of `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{PREFIX}{os.getpid()}-{target.name}")
    lock = None
    try:
        lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        _lock(lock)
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as e:
        if e.filename is None:
            e.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove the temporaries of `atomic_write` in `folder` whose writer was killed, and return them.

    A writer holds a lock on its temporary, which ends with it: process numbers come again, above all in containers.
    Where the file system has no locks, nothing is removed.
    """
    removed = []
    for path in sorted(folder.glob(f"{PREFIX}*")):
        try:
            file = os.open(path, os.O_RDWR)
        except OSError:  # renamed meanwhile, or another user's
            continue
        try:
            if _lock(file):
                path.unlink(missing_ok=True)
                removed.append(path)
        finally:
            os.close(file)
    return removed


def _lock(file: int) -> bool:
    """Lock an open file until it is closed by all that have it open; False where another has, or where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sync(path: Path) -> None:
    """Ask the disk to have `path` (a file or a folder) for good; file systems that cannot are forgiven for folders."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(fd)
