"""Sees what a reader does beside reading: files written outside a folder, processes, connections, code from pickles.

An audit hook of Python cannot be removed, so a watch belongs into a process of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events that change a file or a folder -> which of their arguments are paths.
CHANGES = {
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), (0,)),
    **dict.fromkeys(("os.rename", "shutil.move"), (0, 1)),
    **dict.fromkeys(("os.link", "os.symlink"), (1,)),
    **dict.fromkeys(("shutil.rmtree", "shutil.unpack_archive", "os.setxattr", "os.removexattr", "sqlite3.connect"), (0,)),
}
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
CONNECTIONS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "webbrowser.open")
CODE = ("pickle.find_class",)


class Forbidden(BaseException):
    """A reader did what no file may make it do. No `Exception`, so that no reader catches it."""


class Watch:
    """An audit hook that lets files be changed in one folder only; `found` says what was tried since `clear`."""

    def __init__(self, folder: Path) -> None:
        """Watch from `start` on. folder: where files may be changed."""
        self.folder = os.path.realpath(folder)
        self.found: list[str] = []
        self.on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an event. Raises `Forbidden`, which stops what it announces."""
        if not self.on:
            return
        self.on = False  # what follows is not the reader's doing
        try:
            if wrong := self._wrong(event, arguments):
                self.found.append(wrong)
                raise Forbidden(wrong)
        finally:
            self.on = True

    def _wrong(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event == "open":
            path, mode, flags = arguments
            writes = set(mode) & set("wax+") if isinstance(mode, str) else (flags or 0) & WRITING
            return self._outside(path, "open for writing") if writes else ""
        if event in CHANGES:
            return next(filter(None, (self._outside(arguments[i], event) for i in CHANGES[event])), "")
        if event in PROCESSES:
            return f"process: {event} {str(arguments)[:300]}"
        if event in CONNECTIONS:
            return f"connection: {event} {str(arguments)[:300]}"
        return f"code: {event} {arguments}" if event in CODE else ""

    def _outside(self, path: Any, what: str) -> str:
        if isinstance(path, int) or path is None:  # an open file
            return ""
        real = os.path.realpath(os.fsdecode(path))
        inside = real == self.folder or real.startswith(self.folder + os.sep) or real == os.devnull
        return "" if inside else f"file outside: {what} {real[:300]!r}"
