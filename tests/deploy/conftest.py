"""What tests of exported models need: the optional packages, and one thread, because two are slower with small models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def packages() -> None:
    """Skip a test where the packages that write and run graphs are missing; requirements-export.txt installs them."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="needs requirements-export.txt")


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
