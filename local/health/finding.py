"""What a check of the doctor finds. Only the standard library is imported here: the doctor also runs without .venv.

A check is a function `check_xxx(...) -> Iterator[Finding]`. It yields nothing if all is well, and it changes nothing. Its
module lists it in `CHECKS`; local/doctor.py calls all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from local.common.errors import UserError, one_line

if TYPE_CHECKING:
    from local.config.schema import Config

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something that will not work ("error"), that may give bad results ("warning"), or for the summary line ("note").

    what: what is wrong, in which file or key. fix: what the user can do; "" if `what` says it.
    """

    level: Level
    what: str
    fix: str = ""

    def __str__(self) -> str:
        """Return it as one line of visible text."""
        return one_line(f"{self.level}: {self.what}" + (f"; {self.fix}" if self.fix else ""), longest=1000)


def error(what: str, fix: str = "") -> Finding:
    """Return a finding of something that will not work."""
    return Finding("error", what, fix)


def warning(what: str, fix: str = "") -> Finding:
    """Return a finding of something that works, but may take long or give bad results."""
    return Finding("warning", what, fix)


def note(what: str) -> Finding:
    """Return words for the summary line, such as how many utterances of a part were read."""
    return Finding("note", what)


def guarded(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check; the error of a program that it calls (`UserError`, `OSError`) is one too."""
    try:
        yield from findings
    except UserError as e:
        yield error(str(e))
    except OSError as e:
        if e.filename is None or e.strerror is None:
            raise
        yield error(f"{e.filename}: {e.strerror}", "make it readable, or remove it and run its stage again")


@dataclass(frozen=True)
class Run:
    """The run that the doctor examines, as ./run.sh would start it.

    environment: what ./run.sh would do about .venv: "given" (--python), "whole", "old" (it adds packages), "unfinished" (it
    makes .venv again) or "missing" (it makes .venv). cfg: None without the packages that read it, or if it is damaged.
    """

    root: Path
    environment: str
    corpus: str
    data_dir: Path
    exp_dir: Path
    corpus_dir: Path | None = None
    cfg: Config | None = None
    nproc: int = 0
    parts: tuple[str, ...] = ()
    hours: float = 0.0

    @property
    def config(self) -> Config:
        """Return the configuration; for checks that are only called with one."""
        assert self.cfg is not None
        return self.cfg


Check = Callable[[Run], Iterator[Finding]]
