"""Shared by all programs: the argument parser, the device and its threads, and errors as one line."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from local.common import startup
from local.common.children import end_with_shell
from local.common.errors import UserError, one_line
from local.common.locks import released
from local.common.signals import Stopped, ending_signals
from local.common.visible import escaped_output

if TYPE_CHECKING:
    import torch

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)+=")  # the beginning of key.sub=value


def make_parser(
    doc: str | None, *, conf: bool = True, data_dir: bool = False, exp_dir: bool = False
) -> argparse.ArgumentParser:
    """Return a parser whose --help is `doc`. conf: add --conf and the `key.sub=value` arguments."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if conf:
        add_config_arguments(parser)
    if data_dir:
        parser.add_argument("--data-dir", type=Path, required=True, help="prepared data, such as data/tiny")
    if exp_dir:
        parser.add_argument("--exp-dir", type=Path, required=True, help="the experiment's folder, such as exp/tiny")
    return parser


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --conf and `overrides`; a program with positional arguments of its own calls this after adding them."""
    parser.add_argument("--conf", type=Path, help="experiment's YAML; it changes values of conf/base.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes values of both")


def add_files_and_config(parser: argparse.ArgumentParser, what: str) -> None:
    """Add FILE arguments, `what` they are for --help, beside those of `add_config_arguments`.

    Of the arguments without option, `key.sub=value` goes to `overrides` and the others to `files`.
    """
    parser.add_argument("--conf", type=Path, help="experiment's YAML; it changes values of conf/base.yaml")
    parser.add_argument("words", nargs="*", action=_FilesAndOverrides, metavar="FILE | key.sub=value", help=what)
    parser.set_defaults(files=[], overrides=[])


class _FilesAndOverrides(argparse.Action):
    """Tell FILE from key.sub=value; a file of such a name can be given as ./NAME."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: object, option: str | None = None) -> None:
        words = [str(value) for value in values] if isinstance(values, list) else []
        namespace.overrides = [word for word in words if OVERRIDE.match(word)]
        namespace.files = [Path(word) for word in words if not OVERRIDE.match(word)]


def choose_device(num_threads: int = 0) -> torch.device:
    """Return the GPU if there is one, else the CPU; `num_threads`: CPU threads of torch (0: torch's own choice)."""
    import torch  # scoring and preparation run without it

    if num_threads:
        torch.set_num_threads(num_threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def program(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a program's main: an error that the user can fix becomes one line on stderr and an exit status.

    These are a `UserError` (its `exit_status`), a file that cannot be read or written, a standard output that its reader has
    closed, and too little memory (all 1). Ctrl-C gives 130, `kill` 143. Anything else is a bug and keeps its traceback. What
    the program prints is visible text. At the end, locks are released.
    """

    @functools.wraps(main)
    @escaped_output()
    def wrapped(*args: object, **kwargs: object) -> None:
        startup.end()
        try:
            with ending_signals(), released():
                end_with_shell()
                main(*args, **kwargs)
                sys.stdout.flush()  # a short output fails here, not after the end
        except UserError as e:
            _stop(one_line(str(e)), e.exit_status)
        except BrokenPipeError:
            _discard_output()
            _stop("standard output: its reader has closed it")
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                if e.filename is None:
                    _discard_output()
                _stop(f"no space left on the disk while writing {e.filename or 'a file'}")
            if e.filename is not None and e.strerror:
                _stop(f"{one_line(str(e.filename))}: {e.strerror}")
            if why := startup.too_little_memory(e):
                _stop(why)
            raise
        except (MemoryError, RuntimeError, ImportError, SystemError) as e:
            if why := startup.too_little_memory(e):
                _stop(why)
            raise
        except KeyboardInterrupt as e:
            stopped = e if isinstance(e, Stopped) else Stopped(signal.SIGINT)
            sys.stderr.write(f"{stopped}\n")  # at once: print would write its line in two pieces
            sys.exit(stopped.exit_status)

    return wrapped


def _discard_output() -> None:
    """Make what standard output still holds vanish: it would fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(message: str, status: int = 1) -> None:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(status)
