"""The packages of export, which the recipe does not need otherwise: requirements-export.txt."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version

from local.common.errors import UserError

NAMES = {"onnx": "onnx", "onnxruntime": "onnxruntime", "sherpa_onnx": "sherpa-onnx"}  # module -> package


def need(*modules: str) -> None:
    """Raise `UserError` naming the packages that are missing, and what installs them."""
    missing = [NAMES[module] for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        install = f"{sys.executable} -m pip install -r requirements-export.txt"
        raise UserError(f"export needs the package {' and '.join(missing)}, which this Python lacks: {install}")


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
