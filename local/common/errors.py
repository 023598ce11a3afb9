"""Errors a user can act on: one line on stderr, exit status 1, no traceback."""

from __future__ import annotations

import errno
import functools
import re
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend; the message names the file, utterance or key."""


def cli(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a program's main: what a user can mend, or must know of, becomes one clear line and an exit status.

    These are a `UserError`, a file that cannot be read or written, memory that does not suffice, and Ctrl-C.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except UserError as e:
            print(f"error: {one_line(str(e))}", file=sys.stderr)
            sys.exit(1)
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                print(f"error: no space left on the disk while writing {e.filename or 'a file'}", file=sys.stderr)
            elif e.filename is not None and e.strerror:
                print(f"error: {one_line(str(e.filename))}: {e.strerror}", file=sys.stderr)
            else:  # not of a file: something for whoever mends programs
                raise
            sys.exit(1)
        except (MemoryError, RuntimeError) as e:
            if not is_out_of_memory(e):
                raise
            print(f"error: not enough memory: {one_line(str(e), 200) or 'no more is known'}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped


def reason(e: BaseException) -> str:
    """The first line of what an exception says; its name where it says nothing."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def one_line(message: str, longest: int = 600) -> str:
    """`message` without line breaks and other control characters, its middle left out where it is too long to be read."""
    plain = re.sub(r"[\s\x00-\x1f\x7f]+", " ", message).strip()
    return plain if len(plain) <= longest else f"{plain[: longest * 2 // 3]} ... {plain[-longest // 4 :]}"


def is_out_of_memory(e: BaseException) -> bool:
    """Whether an exception says that the device's or the machine's memory is used up."""
    if isinstance(e, MemoryError):
        return True
    text = str(e)
    return any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory"))
