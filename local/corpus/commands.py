"""Runs another program for its output, within limits of time and size; nothing that it started stays behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import BinaryIO

from local.common.children import die_with_parent

SECONDS = 300.0  # in which a program must end: enough to convert hours of audio
MOST_BYTES = 2 << 30  # of output: 1.5 hours of stereo at 48 kHz, as floating-point numbers
BLOCK = 1 << 18  # bytes read at a time
SHELL = """trap 'kill -9 0' TERM; sh -c "$1" & wait $!"""  # ends itself, the command and all that this started
MESSAGE = 4096  # bytes of standard error that are kept, the last ones


class CommandFailed(Exception):
    """A program could not be started, failed, or exceeded a limit; the message is one line without the command."""


def run(
    command: str | Sequence[str],
    out: BinaryIO,
    seconds: float | None = None,
    most: int | None = None,
    files: Sequence[int] = (),
) -> None:
    """Write what a program prints to `out`. A command that is one string is the shell's, others are not.

    files: descriptors that it inherits.

    seconds, most: limits of time and bytes, by default `SECONDS` and `MOST_BYTES`. Raises `CommandFailed` with the exit status
    and the last line of its messages, or with the limit; then it was killed with all processes of its group.
    """
    seconds, most = SECONDS if seconds is None else seconds, MOST_BYTES if most is None else most
    end, written, message = time.monotonic() + seconds, 0, b""
    with started(command, files) as process:
        for stream, data in blocks(process, end):
            if stream is process.stderr:
                message = (message + data)[-MESSAGE:]
                continue
            written += len(data)
            if written > most:
                raise CommandFailed(f"stopped: it wrote more than {most} bytes")
            out.write(data)
        try:
            status = process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
    if status is None or time.monotonic() > end:
        raise CommandFailed(f"stopped: it took longer than {seconds:g} s")
    if status != 0:
        said = f": {last_line(message)}" if message.strip() else ""
        raise CommandFailed(f"exit {status}{said}")


@contextlib.contextmanager
def started(command: str | Sequence[str], files: Sequence[int] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Yield the running program; at the end it and its group are killed. On Linux they die with this process, too.

    Raises `CommandFailed` if it cannot be started.
    """
    shell = isinstance(command, str)
    words = ["sh", "-c", SHELL, "-", command] if isinstance(command, str) else list(command)
    ending = partial(die_with_parent, os.getpid(), signal.SIGTERM if shell else signal.SIGKILL)
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    try:
        process = subprocess.Popen(
            words,
            0,
            stdin=nothing,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            pass_fds=files,
            preexec_fn=ending if sys.platform == "linux" else None,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as e:  # not a possible command
        raise CommandFailed(f"cannot be started: {e}") from None
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty
                os.killpg(process.pid, signal.SIGKILL)


def blocks(process: subprocess.Popen[bytes], end: float) -> Iterator[tuple[BinaryIO, bytes]]:
    """Yield (stream, bytes) of what a program writes until it closes both streams, or the time `end` (`time.monotonic`)."""
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                data = os.read(key.fd, BLOCK)
                if data:
                    yield key.fileobj, data  # type: ignore[misc]
                else:
                    selector.unregister(key.fileobj)


def last_line(output: bytes) -> str:
    """Return the last line of a program's output, up to 200 characters."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "no message"
