"""The layout's rules, read from the imports: programs only in local/, rooms without a circle, what may import what."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

import pytest


def imports(path: Path) -> Iterator[str]:
    """The names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def module_of(path: Path) -> str:
    """`local.data.tokenizer` of local/data/tokenizer.py; a package's own name of its __init__.py."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


MODULES = {module_of(path): path for path in sources("local", "model", "studies", "benchmarks")}
ARROWS = {name: {m for m in imports(path) if m in MODULES and m != name} for name, path in MODULES.items()}
PROGRAMS = {module_of(path) for path in (ROOT / "local").glob("*.py") if path.name != "__init__.py"}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The names on one circle of a graph; none if there is no circle."""
    done: set[str] = set()
    way: list[str] = []

    def visit(name: str) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        way.append(name)
        found = next((c for other in sorted(arrows.get(name, ())) if (c := visit(other))), [])
        way.pop()
        done.add(name)
        return found

    return next((c for name in sorted(arrows) if (c := visit(name))), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_local_holds_programs_only() -> None:
    """Each has a main function and a guard, and a docstring for --help."""
    for name in sorted(PROGRAMS):
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), name
        assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body), name
        assert any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body), name


def test_nothing_imports_a_program() -> None:
    assert {(name, m) for name, found in ARROWS.items() for m in found & PROGRAMS} == set()


def test_modules_import_each_other_without_a_circle() -> None:
    packages = {module_of(path) for path in MODULES.values() if path.name == "__init__.py"}
    assert circle({name: found - packages for name, found in ARROWS.items() if name not in packages}) == []


def test_rooms_import_each_other_without_a_circle() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, found in ARROWS.items():
        for other in found:
            room, target = (".".join(m.split(".")[:2]) for m in (name, other))
            if name.startswith("local.") and other.startswith("local.") and name not in PROGRAMS and room != target:
                rooms[room].add(target)
    assert len(rooms) >= 8
    assert circle(rooms) == []


@pytest.mark.parametrize(
    "folder, banned",
    [
        ("model", ("local", "studies", "benchmarks", "tests", "lhotse", "yaml", "omegaconf")),
        ("local", ("studies", "benchmarks", "tests")),
        ("local/decoding", ("local.training", "local.scoring")),
        ("local/scoring", ("local.training", "local.decoding", "torch")),
        ("local/data", ("local.training", "local.decoding", "local.scoring")),
        ("studies", ("benchmarks", "tests")),
        ("benchmarks", ("studies",)),
    ],
)
def test_a_folder_does_not_import(folder: str, banned: tuple[str, ...]) -> None:
    for path in sources(folder):
        for module in imports(path):
            assert not any(module == b or module.startswith(b + ".") for b in banned), f"{path} imports {module}"


def test_no_links_and_no_empty_rooms() -> None:
    assert [p for p in sources("local", "model", "studies", "benchmarks", "tests") if p.is_symlink()] == []
    for path in (ROOT / "local").iterdir():
        assert not path.is_dir() or path.name == "__pycache__" or len(list(path.glob("*.py"))) > 2, path
