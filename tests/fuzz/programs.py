"""Calls programs within a process: refusals are `UserError`, no pool of processes, the configuration is read once."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import local.corpus.screening
import local.prepare_manifests
import local.prepare_noise
from local.common.errors import UserError
from local.corpus.audio_files import caught


def call(main: Callable[..., None], argv: Sequence[object]) -> None:
    """Run a program. Raises `UserError` with its one line if it refuses, and `AssertionError` if that is not one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            main([str(argument) for argument in argv])
    except SystemExit as e:
        lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
        assert e.code == 1 and len(lines) == 1, f"status {e.code}: {errors.getvalue()[-500:]}"
        raise UserError(lines[0]) from None


def without_pool() -> None:
    """Let the programs of stages 1 and 2 decode audio in this process, and read the configuration once for all cases."""

    def check_all(check: Callable[[Any], Any], items: Iterable[Any], *_: object, **__: object) -> Iterator[tuple[Any, Any]]:
        return ((item, caught(check, item)) for item in items)

    for program in (local.prepare_manifests, local.prepare_noise):
        once = functools.cache(program.load_config)
        program.load_config = lambda conf, overrides, once=once: once(conf, tuple(overrides))  # type: ignore[attr-defined]
    local.corpus.screening.check_all = local.prepare_noise.check_all = check_all  # type: ignore[assignment,attr-defined]


def emptied(folder: Path) -> Path:
    """Empty the folder and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
