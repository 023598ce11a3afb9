"""What tests of exported models need: the optional packages, and one thread, because two are slower with small models."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def packages() -> None:
    """Skip a test where the packages that write and run graphs are missing; requirements-export.txt installs them."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="needs requirements-export.txt")


@pytest.fixture(autouse=True, scope="module")
def in_one_thread(one_thread: None) -> None:
    """Use it in all tests of exported models."""
