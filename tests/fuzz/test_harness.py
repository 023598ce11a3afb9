"""The harness sees each thing that a reader must not do: planted bad readers do them."""

from __future__ import annotations

import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from local.common.errors import UserError
from tests.fuzz import harness
from tests.fuzz.archives import ARCHIVES
from tests.fuzz.harness import Target, case, run, save
from tests.fuzz.mutations import mutate
from tests.fuzz.programs import emptied

import pytest

Read = Callable[[Path], None]
FILTERS = hasattr(tarfile, "data_filter")
GOOD = "name text\na ONE\nb TWO\n"


def make(root: Path) -> None:
    (root / "one").mkdir()
    (root / "one" / "table.txt").write_text(GOOD)


def target(read: Read, slowest: float = 20.0) -> Target:
    def read_changed(folder: Path) -> None:  # unchanged files are good for all
        if (folder / "table.txt").read_bytes() != GOOD.encode():
            read(folder)

    return Target("planted", make, read_changed, slowest=slowest)


def kinds(read: Read, slowest: float = 20.0, cases: int = 3) -> set[str]:
    failures = run(target(read, slowest), range(cases))
    assert {failure.seed for failure in failures} <= set(range(cases))
    return {f"{failure.kind}: {failure.detail}" for failure in failures}


def refuses(folder: Path) -> None:
    raise UserError(f"{folder}: not a table")


def test_refusals_and_accepted_files_are_no_failures() -> None:
    assert kinds(refuses) == kinds(lambda folder: None) == set()


def writes_above(folder: Path) -> None:
    (folder.parent.parent / "x").write_text("x")


def writes_by_a_link(folder: Path) -> None:
    link = folder / "link"
    if not link.is_symlink():
        link.symlink_to(folder.parent.parent)
    (link / "x").write_text("x")


def victim() -> Path:
    """Return a file that is far from the folders of the harness."""
    return Path(os.environ["FUZZ_VICTIM"], "victim")


def writes_elsewhere(folder: Path) -> None:
    os.open(victim().with_name("x"), os.O_CREAT | os.O_WRONLY)


def renames(folder: Path) -> None:
    (folder / "table.txt").rename(folder.parent.parent / "table.txt")


def removes(folder: Path) -> None:
    victim().unlink()


def hides_it(folder: Path) -> None:
    try:
        writes_above(folder)
    except Exception:  # what a reader that catches all would do
        raise UserError("not a table") from None


@pytest.mark.parametrize("read", [writes_above, writes_by_a_link, writes_elsewhere, renames, removes, hides_it])
def test_changes_outside_are_seen_and_stopped(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_VICTIM", str(tmp_path))
    (tmp_path / "victim").write_text("")
    assert any("file outside" in found for found in kinds(read))
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


def test_unpacking_without_a_filter_is_seen() -> None:
    def unpack(folder: Path) -> None:
        try:
            with tarfile.open(folder / "x.tgz") as tar:
                tar.extractall(emptied(folder.parent / "out"), **({"filter": "fully_trusted"} if FILTERS else {}))
        except Exception as e:
            raise UserError(str(e)) from None

    failures = run(replace(ARCHIVES, read=unpack), range(200))
    assert any("file outside" in failure.detail for failure in failures)


def test_files_that_no_hook_sees_are_found_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.Watch, "__call__", lambda *_: None)
    found = kinds(writes_above)
    assert any("x in a folder above" in words for words in found), found
    assert any("PWNED" in words for words in kinds(lambda folder: Path("PWNED").write_text("") and None))


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: subprocess.run(["true"], check=False) and None,
        lambda folder: os.system("true") and None,
        lambda folder: os.execv(sys.executable, ["python"]),
        lambda folder: os.fork() and None,
    ],
    ids=["subprocess", "system", "exec", "fork"],
)
def test_processes_are_seen_and_stopped(read: Read) -> None:
    assert any("process" in found for found in kinds(read))


def test_connections_are_seen() -> None:
    def connect(folder: Path) -> None:
        socket.create_connection(("127.0.0.1", 9))

    assert any("connection" in found for found in kinds(connect))


def test_pickles_with_code_are_seen() -> None:
    assert any("code: pickle.find_class" in found for found in kinds(lambda folder: pickle.loads(b"cos\nsystem\n.")))


def test_tracebacks_are_failures_with_their_place() -> None:
    def broken(folder: Path) -> None:
        raise KeyError("path")

    assert len(run(target(broken), range(3))) == 3
    assert all(found.startswith("traceback: ") and "KeyError: 'path'" in found for found in kinds(broken))


def test_a_refusal_says_why() -> None:
    def silent(folder: Path) -> None:
        raise UserError(" ")

    assert all(found.startswith("refusal without a reason") for found in kinds(silent)) and kinds(silent)


def test_broken_invariants_and_exits_are_failures() -> None:
    def exits(folder: Path) -> None:
        sys.exit(0)

    def wrong(folder: Path) -> None:
        assert folder == Path()

    assert kinds(exits) and kinds(wrong)


def test_hangs_are_ended_in_python_and_in_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(folder: Path) -> None:
        try:
            while True:
                time.sleep(0.01)
        except Exception:  # a hang cannot be hidden
            pass

    assert all(found.startswith("hang") for found in kinds(busy, slowest=0.2)) and kinds(busy, slowest=0.2)
    monkeypatch.setattr(harness, "PATIENCE", 0.5)

    def deaf(folder: Path) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # as in a library that does not return to Python
        time.sleep(60)

    found = kinds(deaf, slowest=0.2, cases=2)
    assert len(found) == 1 and "in a library" in found.pop()


def test_a_process_that_dies_is_a_failure_and_the_other_cases_go_on() -> None:
    def dies(folder: Path) -> None:
        os.kill(os.getpid(), 11)

    failures = run(target(dies), range(4))
    assert [(f.seed, f.kind) for f in failures] == [(n, "crash") for n in range(4)]


@pytest.mark.parametrize("hidden", [False, True])
def test_memory_without_bound_is_a_failure(monkeypatch: pytest.MonkeyPatch, hidden: bool) -> None:
    monkeypatch.setattr(harness, "MEMORY", 256 << 20)
    if hidden:  # where a system has no limit, the use of memory is looked at after each case
        monkeypatch.setattr(harness.resource, "setrlimit", lambda *_: None)

    def greedy(folder: Path) -> None:
        b"x" * (400 << 20)

    assert any(found.startswith("memory") for found in kinds(greedy))


def test_files_that_are_refused_unchanged_are_a_failure() -> None:
    failures = run(Target("planted", make, refuses), range(2))
    assert [(f.seed, f.kind) for f in failures] == [(-1, "good files refused")]


def test_a_seed_gives_the_same_case_and_its_files_are_saved(tmp_path: Path) -> None:
    planted = target(refuses)
    saved = [save(planted, seed, tmp_path) / "table.txt" for seed in (5, 6, 5)]
    (tmp_path / "seeds").mkdir()
    seeds = harness.Seeds(planted, tmp_path / "seeds")
    assert saved[0].read_bytes() == case(planted, seeds, 5)[1]["table.txt"]
    assert len({path.read_bytes() for path in saved}) == 2


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.yaml", "a.gz", "a.tar", "a.pt", "a.npz", "a.wav"])
def test_each_mutation_takes_any_bytes(name: str) -> None:
    for seed in range(100):
        rng = random.Random(seed)
        mutate(name, rng.choice((b"", b"\0", b"a b\n", rng.randbytes(50))), rng)
