"""Errors a user can act on: one line on stderr, exit status 1, no traceback."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend; the message names the file, utterance or key."""


def cli(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a program's main: a `UserError`, a full disk or Ctrl-C becomes one clear line and an exit status."""

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            sys.exit(1)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(f"error: no space left on the disk while writing {e.filename or 'a file'}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
