"""The searches' tests run in one thread: their tensors are so small that a second thread makes them slower."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def in_one_thread(one_thread: None) -> None:
    """Use it in all tests of the searches."""
