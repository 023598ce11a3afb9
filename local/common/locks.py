"""One writer at a time: a lock on FOLDER/.lock, which the first writer of a data folder or an experiment holds.

flock(2) belongs to an open file: it ends with the last process that has the file open, so no lock is ever stale. run.sh and
prepare.sh keep the file open and their programs inherit it. So a program that outlives a killed shell still holds the
lock, and it knows the lock of its shell by the open file. (Package filelock cannot take over an open file.)

Readers of a data folder share FOLDER/.readers. Who replaces manifests, cuts or features needs it alone.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from local.common.errors import UserError, one_line

WRITER, READERS = ".lock", ".readers"
SHELL_FILES = (6, 7, 8)  # of local/stages.sh: readers, data folder, experiment
BUSY = (errno.EAGAIN, errno.EACCES)
_held: dict[tuple[int, int], int] = {}  # (device, inode) of a lock's file -> the open file
_passing: list[Path] = []  # files of locks that are removed at the end


def writes(folder: Path, *, wait: bool = False, new: bool = False, shared: bool = False, alone: bool = False) -> None:
    """Lock `folder` for this process until `released` ends; nothing happens if it, its shell or its torchrun has the lock.

    Args:
        folder: of data, or of an experiment. One that does not exist is not locked; see `new`.
        wait: wait while another writes, with a line. Else that is an error.
        new: make the folder.
        shared: allow others that call with `shared`, such as machines that train together.
        alone: nobody may read the folder meanwhile either; new readers wait.

    Raises:
        UserError: another process writes there, or reads there with `alone`. The message says who.
    """
    if new:
        folder.mkdir(parents=True, exist_ok=True)
    _hold(folder / WRITER, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait)
    if alone:
        _hold(folder / READERS, fcntl.LOCK_EX, wait=False)


def replaces(folder: Path) -> None:
    """Lock a folder that may be replaced as a whole; wait while another process has the lock.

    The lock is .NAME.lock beside the folder. It is removed at the end.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    _hold(path, fcntl.LOCK_EX, wait=True)
    _passing.append(path)


def reads(folder: Path) -> None:
    """Keep others from replacing what is prepared in `folder`; wait, with a line, while one does."""
    _hold(folder / READERS, fcntl.LOCK_SH, wait=True)


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Release at the end of the block what was locked in it."""
    before = set(_held)
    try:
        yield
    finally:
        while _passing:  # removed while it is locked: a process that waits for it sees that and opens a new one
            with contextlib.suppress(OSError):
                _passing.pop().unlink()
        for key in set(_held) - before:
            os.close(_held.pop(key))


def lock_open_file(file: int, path: Path, kind: int, wait: bool, command: str = "", pid: int = 0) -> None:
    """Lock an open file, and write into it who does. A file system without locks gives a warning.

    Args:
        file: its number; locked until all copies of it are closed.
        path: its name.
        kind: LOCK_EX or LOCK_SH.
        wait: wait while others have it. Else that is a `UserError`.
        command: who will hold the lock (default: this program).
        pid: the process number of that (default: this process).
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno not in BUSY:
            print(f"warning: {path}: no locks here ({e.strerror}); start nothing else there meanwhile", file=sys.stderr)
            return
        verb = "reads" if path.name == READERS and kind == fcntl.LOCK_EX else "writes"
        if not wait:
            raise UserError(f"{path.parent}: {_holder(path)} {verb} there; wait for its end or name another folder") from None
        print(f"waiting: {path.parent}: {_holder(path)} {verb} there", file=sys.stderr, flush=True)
        fcntl.flock(file, kind)
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    command = one_line(command or shlex.join(sys.argv), 200)
    with contextlib.suppress(OSError):  # a full disk, or a file that others own
        os.ftruncate(file, 0)
        os.pwrite(file, f"{command} (host {socket.gethostname()}, process {pid or os.getpid()}, since {now})\n".encode(), 0)


def inherited(path: Path, besides: int = -1) -> bool:
    """Return whether the lock `path` is that of a shell script above, by an open file other than `besides`."""
    return any(is_open_file(file, path) for file in SHELL_FILES if file != besides)


def _holder(path: Path) -> str:
    return one_line(path.read_text(encoding="utf-8", errors="replace")) or "another process"


def _hold(path: Path, kind: int, wait: bool) -> None:
    if "RANK" in os.environ or not path.parent.is_dir() or _is_held(path):  # RANK: torchrun has the lock
        return
    while True:
        file = _open(path)
        if file is None:
            return
        try:
            lock_open_file(file, path, kind, wait)
        except BaseException:
            os.close(file)
            raise
        if is_open_file(file, path):
            break
        os.close(file)  # somebody removed the folder meanwhile
    status = os.fstat(file)
    _held[status.st_dev, status.st_ino] = file


def _open(path: Path) -> int | None:
    """Return the open file, or None if this user may not write there; what the program writes then fails with a line."""
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            try:
                return os.open(path, flags, 0o666)
            except OSError as e:
                if e.errno != errno.EROFS:
                    raise
    return None


def is_open_file(file: int, path: Path) -> bool:
    """Return whether `path` is the name of the open file with number `file`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:  # not open, or no such file
        return False


def _is_held(path: Path) -> bool:
    return inherited(path) or any(is_open_file(file, path) for file in _held.values())
