"""Write files atomically: under a temporary name, then renamed, so that no reader sees half a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".tmp-"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; flush it to the disk and rename it to `path` when the block ends.

    The temporary keeps the file's ending (`.npy`), because writers choose their format by it. If the block raises, an older
    file at `path` stays untouched. An OSError without a file name, such as that of a full disk, gets the name `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{PREFIX}{os.getpid()}-{target.name}")
    lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
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
        os.close(lock)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file with `atomic_write`."""
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove the temporaries of `atomic_write` in `folder` whose writer was killed, and return them.

    A living writer holds a lock (process numbers prove nothing: they are reused). Without locks, nothing is removed.
    """
    removed = []
    for path in sorted(folder.glob(f"{PREFIX}*")):
        # An error means that it was renamed meanwhile, or that it belongs to another user.
        with contextlib.suppress(OSError), path.open("r+b") as file:
            if _lock(file.fileno()):
                path.unlink()
                removed.append(path)
    return removed


def _lock(file: int) -> bool:
    """Lock an open file until it is closed. Return False if another process holds the lock or if there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sync(path: Path) -> None:
    """Flush `path` (a file or a folder) to the disk. Errors are ignored for folders, which some file systems cannot flush."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(fd)
