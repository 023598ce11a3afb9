"""Every reader of foreign files against damaged and hostile ones: see `tests.fuzz.harness`, and `tests.fuzz.targets` for all.

2,000 cases for each of tables, Kaldi directories, manifests, archives, ARPA, lexicon, hotwords and checkpoints; fewer for
others.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.harness import run
from tests.fuzz.report import describe
from tests.fuzz.targets import TARGETS

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    failures = run(target, range(target.cases))
    assert not failures, f"{len(failures)} of {target.cases} cases failed\n{describe(target, failures, tmp_path)}"
