"""The doctor's checks of the software: Python, packages, CUDA, Triton, k2, sound. Only the standard library at the top."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from local.health.finding import Finding, Run, error, warning

OLDEST, NEWEST = (3, 10), (3, 13)  # of Python; requirements.txt has wheels for these


def check_python(run: Run) -> Iterator[Finding]:
    """Yield a Python for which packages have no wheels."""
    here = tuple(sys.version_info[:2])
    name = f"{sys.executable} is Python {here[0]}.{here[1]}"
    if here < OLDEST:
        yield error(f"{name}, too old", "install Python 3.10 to 3.13, or name one by --python")
    elif here > NEWEST:
        yield warning(f"{name}, newer than the packages of requirements.txt are tested with", "name Python 3.13 by --python")


CHECKS: tuple[Callable[[Run], Iterator[Finding]], ...] = (check_python,)
