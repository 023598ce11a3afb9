"""Run a command that ends with the process that started it, also where that is killed by SIGKILL (on Linux).

.venv/bin/python -m local.with_parent ./prepare.sh --corpus tiny

run.sh starts prepare.sh so. The command replaces this program and keeps its process number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from local.common.cli import program
from local.common.errors import UserError


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `program` has bound this process to its parent, which survives exec."""
    command = list(sys.argv[1:] if argv is None else argv)
    if not command or command[0] in ("-h", "--help"):
        raise UserError("usage: with_parent COMMAND [ARGUMENTS]")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
