"""Check the layout's rules: programs and rooms, imports between them, sizes of files and functions, no symbolic links.

Each rule is a function that returns what breaks it; `test_each_rule_can_fail` calls all of them on examples that do.
"""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.conftest import ROOT

import pytest

FOLDERS = ("local", "model", "studies", "benchmarks")
LONGEST_FILE, LONGEST_FUNCTION = 400, 100  # lines; aim at 300 and 60. The longest were 321 and 67 when this was written.
ROOMS = (
    *("artifacts", "common", "config", "corpus", "data", "decoding", "deploy", "diagnosis", "health"),
    *("reporting", "scoring", "training"),
)
BANNED = {  # folder: packages that it must not import
    "model": ("local", "studies", "benchmarks", "tests", "lhotse", "yaml", "omegaconf"),
    "local": ("studies", "benchmarks", "tests"),
    "local/common": tuple(f"local.{room}" for room in ROOMS if room != "common"),
    "local/config": tuple(f"local.{room}" for room in ROOMS if room not in ("common", "config")),
    "local/data": ("local.training", "local.decoding", "local.scoring", "local.diagnosis"),
    "local/decoding": ("local.training", "local.scoring", "local.diagnosis"),
    "local/deploy": ("local.training", "local.diagnosis"),
    "local/health": ("local.diagnosis",),
    "local/reporting": ("local.training", "local.deploy", "local.diagnosis"),
    "local/scoring": ("local.training", "local.decoding", "local.diagnosis", "local.reporting", "torch"),
    "studies": ("benchmarks", "tests"),
    "benchmarks": ("studies",),
}
Arrows = dict[str, set[str]]  # module -> modules that it imports


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the names of the modules that a file imports, anywhere in it: a and a.b for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")  # relative imports, which start with a dot, are forbidden
            yield from (base, *(f"{base}.{name.name}" for name in node.names))


def module_of(path: Path) -> str:
    """Return `local.data.tokenizer` for local/data/tokenizer.py, and the package's name for its __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_program(tree: ast.Module) -> bool:
    """Return whether a file ends in `if __name__ == "__main__":`."""
    return any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree.body)


def lacking(tree: ast.Module) -> list[str]:
    """Return which parts of a program a file lacks."""
    has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    parts = {"a docstring": ast.get_docstring(tree), "a function main": has_main, "a __main__ guard": is_program(tree)}
    return [part for part, present in parts.items() if not present]


def circle(arrows: Arrows) -> list[str]:
    """Return the names on one circle of a graph; none if there is no circle."""
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


def between_rooms(arrows: Arrows, programs: set[str]) -> Arrows:
    """Return the imports between the rooms of local/; programs are in no room."""
    rooms: Arrows = defaultdict(set)
    for name, found in arrows.items():
        for other in found:
            room, target = (".".join(module.split(".")[:2]) for module in (name, other))
            if room.startswith("local.") and target.startswith("local.") and name not in programs and room != target:
                rooms[room].add(target)
    return rooms


def forbidden(modules: Iterable[str], banned: Iterable[str]) -> list[str]:
    """Return the imported modules that are in a banned package, and all relative imports."""
    return [m for m in modules if m.startswith(".") or any(m == b or m.startswith(b + ".") for b in banned)]


def long_functions(tree: ast.Module, longest: int) -> list[str]:
    """Return the functions of more than `longest` lines."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= longest]


def links(listing: str) -> list[str]:
    """Return the symbolic links in the output of `git ls-files --stage`."""
    return [line.split("\t")[1] for line in listing.splitlines() if line.startswith("120000 ")]


PATHS = {module_of(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}
ARROWS: Arrows = {name: {m for m in imports(tree) if m in PATHS and m != name} for name, tree in TREES.items()}
PROGRAMS = {name for name, tree in TREES.items() if is_program(tree)}


def test_each_rule_can_fail() -> None:
    tree = ast.parse("from local.data import batch\nimport torch.nn as nn\nfrom .a import b\ndef f():\n    pass\n    pass\n")
    assert list(imports(tree)) == ["local.data", "local.data.batch", "torch.nn", ".a", ".a.b"]
    assert forbidden(imports(tree), ("torch", "local.dat")) == ["torch.nn", ".a", ".a.b"]
    assert len(lacking(tree)) == 3
    assert lacking(ast.parse("'A program.'\ndef main(): pass\nif __name__ == '__main__':\n    main()")) == []
    assert long_functions(tree, 2) == ["f"] and long_functions(tree, 3) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    arrows = {"local.a.x": {"local.b.y"}, "local.b.z": {"local.a.w"}, "local.run": {"local.a.x"}}
    assert circle(arrows) == [] and circle(between_rooms(arrows, {"local.run"})) == ["local.a", "local.b"]
    assert links("100644 1f 0\tlocal/a.py\n120000 2f 0\tlocal/b.py\n") == ["local/b.py"]


def test_the_files_of_local_are_programs() -> None:
    found = {path.name: lacking(TREES[module_of(path)]) for path in (ROOT / "local").glob("*.py") if path.stem != "__init__"}
    assert len(found) > 15 and {name: parts for name, parts in found.items() if parts} == {}


def test_programs_are_in_no_room_and_not_imported() -> None:
    inside = [name for name in PROGRAMS if name.startswith(("local.", "model.")) and name.count(".") != 1]
    assert [name for name in inside if not name.endswith(".__main__")] == []  # `python -m local.config` serves run.sh
    programs = {name for name in PROGRAMS if not name.startswith("benchmarks.")}  # those share their workers' functions
    assert {name: found & programs for name, found in ARROWS.items() if found & programs} == {}


def test_modules_import_each_other_without_a_circle() -> None:
    """Leave packages out: every module depends on its package, whose __init__ may import it."""
    packages = {name for name, path in PATHS.items() if path.name == "__init__.py"}
    assert circle({name: found - packages for name, found in ARROWS.items() if name not in packages}) == []


def test_rooms_import_each_other_without_a_circle() -> None:
    assert circle(between_rooms(ARROWS, PROGRAMS)) == []


def test_the_rooms_of_local() -> None:
    rooms = {path.name: list(path.glob("*.py")) for path in (ROOT / "local").iterdir() if any(path.glob("*.py"))}
    assert tuple(sorted(rooms)) == ROOMS
    assert [name for name, files in rooms.items() if len(files) <= 2] == [], "a room has at least two modules"


@pytest.mark.parametrize("folder", BANNED)
def test_a_folder_does_not_import(folder: str) -> None:
    package = folder.replace("/", ".")
    found = {
        name: forbidden(imports(tree), BANNED[folder]) for name, tree in TREES.items() if f"{name}.".startswith(f"{package}.")
    }
    assert found and {name: modules for name, modules in found.items() if modules} == {}


def test_files_and_functions_are_short() -> None:
    lines = {name: len(PATHS[name].read_text(encoding="utf-8").splitlines()) for name in TREES}
    assert {name: n for name, n in lines.items() if n > LONGEST_FILE} == {}
    long = {name: long_functions(tree, LONGEST_FUNCTION) for name, tree in TREES.items()}
    assert {name: functions for name, functions in long.items() if functions} == {}


def test_no_symbolic_links() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git tree")
    listing = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "tests/test_layout.py" in listing and links(listing) == []
