"""A small problem for most tests of the loss, and one thread."""

from __future__ import annotations

from tests.loss.problems import Problem, make_problem

import pytest


@pytest.fixture
def problem() -> Problem:
    """Return three utterances of different lengths in float64."""
    return make_problem([(12, 5), (9, 3), (7, 0)])


@pytest.fixture(autouse=True, scope="module")
def in_one_thread(one_thread: None) -> None:
    """Use it in all tests of the loss."""
