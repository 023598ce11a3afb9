"""Write files and folders atomically: under a temporary name, then renamed, so that no reader sees half of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from local.common.signals import held_back

PREFIX = ".tmp-"
OURS = re.compile(re.escape(PREFIX) + r"[0-9]+-(.+)", re.DOTALL)  # the number is that of the writing process


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; flush it to the disk and rename it to `path` when the block ends.

    The temporary keeps the file's ending (`.npy`), because writers choose their format by it. If the block raises, an older
    file at `path` stays untouched. An OSError without a file name, such as that of a full disk, gets the name `path`. What
    killed writers left in the folder is removed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent)
    temporary = target.with_name(f"{PREFIX}{os.getpid()}-{target.name}")
    lock = _create(temporary)
    try:
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


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; it replaces what is at `path` when the block ends, and is removed if the block raises.

    If `path` is a link, the folder that it names is replaced. What killed writers of `path` left is removed.
    """
    path = path.resolve()
    with scratch_folder(path) as temporary:
        yield temporary
        with held_back():  # else neither folder might be left
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, for files on the way to it, and remove it at the end.

    What killed processes left of such folders for `path` is removed, which no one does for those of module tempfile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    temporary = path.with_name(f"{PREFIX}{os.getpid()}-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of an earlier process with this number, where there are no locks
    temporary.mkdir()
    lock = os.open(temporary, os.O_RDONLY)
    try:
        _lock(lock)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def remove_abandoned(folder: Path, name: str = "") -> list[Path]:
    """Remove from `folder` the temporary files of writers that were killed, and return their paths.

    name: of a folder; then the temporary folders for it are removed instead.
    """
    removed = []
    for path in abandoned(folder, name):
        with contextlib.suppress(OSError):  # it belongs to another user
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            removed.append(path)
    return removed


def abandoned(folder: Path, name: str | None = "") -> Iterator[Path]:
    """Yield the temporary files in `folder` of writers that were killed; each is locked while it is yielded.

    name: of a folder; then the temporary folders for it are yielded instead; None: all files and folders. A living writer
    holds a lock (process numbers prove nothing: they are reused). Without locks, nothing is yielded.
    """
    for path in sorted(folder.glob(f"{PREFIX}*")):
        match, is_folder = OURS.fullmatch(path.name), path.is_dir()
        if match is None or path.is_symlink() or name is not None and (is_folder != bool(name) or name not in ("", match[1])):
            continue
        with contextlib.suppress(OSError):  # it was renamed meanwhile, or belongs to another user
            file = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
            try:
                if _lock(file):
                    yield path
            finally:
                os.close(file)


def _create(path: Path) -> int:
    """Create an empty file, lock it and return its descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        if not _lock(file, wait=True):
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)  # `remove_abandoned` of another process was faster than the lock


def _lock(file: int, wait: bool = False) -> bool:
    """Lock an open file until it is closed. Return False if another process holds the lock or if there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
