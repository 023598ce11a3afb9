"""Lock a folder for the shell script that calls this, which has opened the lock's file.

    exec 7<> data/tiny/.lock
    .venv/bin/python -m local.lock_folder --file 7 --path data/tiny/.lock --pid $$ --command ./prepare.sh [--wait]

The lock lasts until the shell, and the programs that it started, have ended. Exit status 75: the folder was removed
meanwhile; open the file again.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Sequence
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.locks import inherited, is_open_file, lock_open_file


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False)
    parser.add_argument("--file", type=int, required=True, help="number of the open file")
    parser.add_argument("--path", type=Path, required=True, help="its name")
    parser.add_argument("--pid", type=int, required=True, help="process of the shell")
    parser.add_argument("--command", required=True, help="what the user called")
    parser.add_argument("--wait", action="store_true", help="wait while another has the lock, instead of an error")
    parser.add_argument("--shared", action="store_true", help="others may lock with --shared too")
    args = parser.parse_args(argv)
    if inherited(args.path, args.file):  # run.sh has it: its experiment is in the folder of the data
        return
    lock_open_file(args.file, args.path, fcntl.LOCK_SH if args.shared else fcntl.LOCK_EX, args.wait, args.command, args.pid)
    if not is_open_file(args.file, args.path):
        sys.exit(75)


if __name__ == "__main__":
    main()
