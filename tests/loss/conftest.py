"""A small problem that most tests of the loss share."""

from __future__ import annotations

from collections.abc import Iterator

from tests.loss.problems import Problem, make_problem

import pytest
import torch


@pytest.fixture
def problem() -> Problem:
    """Three ragged utterances in float64."""
    return make_problem([(12, 5), (9, 3), (7, 0)])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Operations this small are faster without a second thread, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
