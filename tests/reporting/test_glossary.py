"""Every decoding method and every column of the WER table is explained."""

from __future__ import annotations

from local.config.methods import METHODS
from local.reporting.glossary import COLUMN_TEXTS, METHOD_TEXTS, explain, short
from local.scoring.table import HEAD

import pytest


@pytest.mark.parametrize("name", [*METHODS, *HEAD])
def test_each_name_has_a_text(name: str) -> None:
    assert 20 < len(explain(name)) < 300 and explain(name).endswith(".")


def test_no_text_for_other_names() -> None:
    assert METHOD_TEXTS.keys() == METHODS.keys() and COLUMN_TEXTS.keys() == {*HEAD, "characters"} and explain("other") == ""


def test_short_names_differ() -> None:
    found = {short(name) for name in METHODS}
    assert len(found) == len(METHODS) and max(map(len, found)) < 25 and short("my_own") == "my_own"
