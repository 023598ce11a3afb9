"""Each check of the doctor has a test in which it fires and one in which it does not."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

from tests.conftest import ROOT

import pytest

HERE = Path(__file__).parent
MODULES = sorted(path.stem for path in (ROOT / "local" / "health").glob("*.py") if path.stem != "__init__")


def listed(module: str) -> set[str]:
    """Return the names of the checks in the module's lists, which local/doctor.py calls."""
    content = vars(importlib.import_module(f"local.health.{module}"))
    return {check.__name__ for name, checks in content.items() if name.endswith("CHECKS") for check in checks}


def defined(module: str) -> set[str]:
    """Return the names of the functions check_xxx that a module defines."""
    content = importlib.import_module(f"local.health.{module}")
    functions = inspect.getmembers(content, inspect.isfunction)
    return {name for name, f in functions if name.startswith("check_") and f.__module__ == content.__name__}


def functions_of(source: str) -> dict[str, str]:
    """Return the text of each test of a file by its name."""
    tree = ast.parse(source)
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {f.name: ast.unparse(f) for f in functions if f.name.startswith("test_")}


def lacking(check: str, tests: dict[str, str]) -> list[str]:
    """Return which of the two tests a check lacks; a test of another check's name does not count."""
    name = check.removeprefix("check_")
    kinds = (f"test_{name}_fires", f"test_{name}_is_quiet")
    return [kind for kind in kinds if not any(test.startswith(kind) and check in text for test, text in tests.items())]


TESTS = {name: text for path in HERE.glob("test_*.py") for name, text in functions_of(path.read_text(encoding="utf-8")).items()}
CHECKS = sorted(check for module in MODULES for check in listed(module))


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_has_both_tests(check: str) -> None:
    assert lacking(check, TESTS) == []


def test_a_missing_test_is_seen() -> None:
    tests = functions_of("def test_disk_fires():\n    found(check_disk)\ndef test_disk_is_quiet():\n    pass\n")
    assert lacking("check_disk", tests) == ["test_disk_is_quiet"] and len(lacking("check_other", tests)) == 2


def test_every_check_is_listed() -> None:
    """One that is not listed is never called."""
    assert len(CHECKS) > 25 and len(set(CHECKS)) == len(CHECKS)
    assert {module: odd for module in MODULES if (odd := defined(module) ^ listed(module))} == {}
