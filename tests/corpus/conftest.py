"""Fixtures of the tests of corpora."""

from __future__ import annotations

from pathlib import Path

from tests.corpus.noise_corpus import TEXT, write

import pytest


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder with two good utterances, ok1 and ok2, for dev and test; train is missing."""
    for part, name in (("dev", "ok1"), ("test", "ok2")):
        write(tmp_path / "my" / f"{name}.wav", 90)
        (tmp_path / "my" / f"{part}.tsv").write_text(f"{name}.wav\t{TEXT}\n")
    return tmp_path / "my"
