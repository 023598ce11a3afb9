"""A small problem for most tests of the loss, and one thread."""

from __future__ import annotations

from collections.abc import Iterator

from tests.loss.problems import Problem, make_problem

import pytest
import torch


@pytest.fixture
def problem() -> Problem:
    """Return three utterances of different lengths in float64."""
    return make_problem([(12, 5), (9, 3), (7, 0)])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: operations this small are faster so, on a busy machine many times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
