"""Locks of folders: who stops, who waits, who is named; and every program that writes takes one."""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from local.common import locks
from local.common.errors import UserError
from tests.conftest import ROOT

import pytest

HOLD = "import sys; from pathlib import Path; from local.common.locks import reads, replaces, writes; f = Path(sys.argv[1]); "
Holder = Callable[[Path, str], subprocess.Popen]


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    with locks.released():
        yield


@pytest.fixture
def holder() -> Iterator[Holder]:
    """Return a function that starts another process, which locks a folder by the given code until it gets a line."""
    made: list[subprocess.Popen] = []

    def hold(folder: Path, code: str) -> subprocess.Popen:
        code = HOLD + code + "; print('held', flush=True); input()"
        command = [sys.executable, "-c", code, str(folder)]
        made.append(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert made[-1].stdout is not None and made[-1].stdout.readline() == "held\n"
        return made[-1]

    yield hold
    for process in made:
        process.kill()
        process.communicate()


def test_the_second_writer_is_told_who_works_there(tmp_path: Path, holder: Holder) -> None:
    first = holder(tmp_path, "writes(f)")
    with pytest.raises(UserError) as refused:
        locks.writes(tmp_path)
    message = str(refused.value)
    assert str(tmp_path) in message and f"process {first.pid}," in message and f"host {os.uname().nodename}" in message
    assert re.search(r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", message) and "\n" not in message
    first.kill()  # no lock is stale
    first.wait()
    locks.writes(tmp_path)
    locks.writes(tmp_path)  # once more by the same process


def test_the_second_writer_of_data_waits(tmp_path: Path, holder: Holder, capsys: pytest.CaptureFixture[str]) -> None:
    first = holder(tmp_path, "writes(f, wait=True)")
    second = subprocess.Popen(
        [sys.executable, "-c", HOLD + "writes(f, wait=True)", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert second.stderr is not None
    said = second.stderr.readline()
    assert said.startswith("waiting: ") and str(tmp_path) in said and f"process {first.pid}" in said
    assert second.poll() is None
    first.communicate("\n")
    assert second.wait(20) == 0
    second.stderr.close()


def test_machines_that_train_together_share(tmp_path: Path, holder: Holder) -> None:
    holder(tmp_path, "writes(f, shared=True)")
    locks.writes(tmp_path, shared=True)
    with pytest.raises(UserError):  # it is held already, but not alone
        with locks.released():
            locks._held.clear()
            locks.writes(tmp_path)


def test_what_is_read_is_not_replaced(tmp_path: Path, holder: Holder) -> None:
    reader = holder(tmp_path, "reads(f)")
    holder(tmp_path, "reads(f)")
    locks.writes(tmp_path, wait=True)  # other tokens may be added
    with pytest.raises(UserError, match="reads"):
        locks.writes(tmp_path, wait=True, alone=True)
    reader.kill()
    reader.wait()


def test_readers_wait_for_who_replaces(tmp_path: Path, holder: Holder) -> None:
    first = holder(tmp_path, "writes(f, alone=True)")
    second = subprocess.Popen(
        [sys.executable, "-c", HOLD + "reads(f)", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert second.stderr is not None and f"process {first.pid}" in second.stderr.readline()
    first.kill()
    assert second.wait(20) == 0
    second.stderr.close()


def test_an_inherited_file_is_the_shell_s_lock(tmp_path: Path) -> None:
    """The program of a shell that holds the lock goes on; a program that the shell did not start does not."""
    locks.writes(tmp_path)
    (ours,) = locks._held.values()
    run = [sys.executable, "-c", HOLD + "writes(f)", str(tmp_path)]
    bash = ["bash", "-c", f'exec 8<&{ours}; "$@"', "x", *run]
    assert subprocess.run(bash, cwd=ROOT, pass_fds=[ours], timeout=20).returncode == 0
    alone = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert alone.returncode == 1 and "UserError" in alone.stderr
    os.environ["RANK"] = "1"  # a process of torchrun, whose launcher holds the lock
    try:
        assert subprocess.run(run, cwd=ROOT, timeout=20).returncode == 0
    finally:
        del os.environ["RANK"]


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    locks.writes(tmp_path)
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and str(tmp_path) in said and said.count("\n") == 1


def test_a_removed_folder_is_locked_again(tmp_path: Path, holder: Holder) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    first = holder(folder, "writes(f)")
    second = subprocess.Popen(
        [sys.executable, "-c", HOLD + "writes(f, wait=True); print('held', flush=True); input()", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert second.stderr is not None and second.stdout is not None and second.stderr.readline().startswith("waiting: ")
    shutil.rmtree(folder)
    folder.mkdir()
    first.kill()
    assert second.stdout.readline() == "held\n"
    with pytest.raises(UserError):
        locks.writes(folder)
    second.communicate("\n", timeout=20)


def test_the_lock_beside_a_folder_goes_with_its_holder(tmp_path: Path, holder: Holder) -> None:
    first = holder(tmp_path / "new", "replaces(f)")
    waiting = [sys.executable, "-c", HOLD + "replaces(f); print(*(p.name for p in f.parent.iterdir()))"]
    second = subprocess.Popen(
        [*waiting, str(tmp_path / "new")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert second.stderr is not None and f"process {first.pid}" in second.stderr.readline()
    (tmp_path / ".new.lock").unlink()  # as its holder does
    first.communicate("\n")
    assert second.communicate(timeout=20)[0] == ".new.lock\n"
    with locks.released():
        locks.replaces(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_one_may_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing there will say so; reading goes on."""

    def refuse(path: object, flags: int, *_: object) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "open", refuse)
    locks.writes(tmp_path)
    locks.reads(tmp_path)


def test_a_missing_folder_is_made_only_on_demand(tmp_path: Path) -> None:
    locks.writes(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
    locks.writes(tmp_path / "new", new=True)
    assert (tmp_path / "new" / ".lock").is_file()


# ---- programs ----

FOLDERS = {"--data-dir": "data", "--exp-dir": "exp", "--out": "out"}
OPTIONS = {  # what else they need before they work
    "get_audio": ["--corpus-yaml", "x"],
    "prepare_manifests": ["--corpus-yaml", "x", "--corpus-dir", "x"],
    "align": ["--checkpoint", "x"],
    "decode": ["--checkpoint", "x"],
    "tune": ["--checkpoint", "x"],
    "export": ["--checkpoint", "x"],
    "import_icefall": ["--checkpoint", "x", "--bpe-model", "x"],
}
EXPECTED = {  # program: the locks that it asks for
    "align": ["out/.lock", "data/.readers"],
    "average": ["exp/.lock"],
    "choose_conf": ["data/.lock"],
    "compute_features": ["data/.lock", "data/.readers"],
    "decode": ["exp/.lock", "data/.readers"],
    "diagnose": ["exp/.lock", "data/.readers"],
    "export": [".out.lock", "data/.readers"],
    "get_audio": [".out.lock"],
    "import_icefall": [".lock"],
    "prepare_cuts": ["data/.lock", "data/.readers"],
    "prepare_graph": ["data/.lock"],
    "prepare_lang": ["data/.lock"],
    "prepare_manifests": ["data/.lock", "data/.readers"],
    "prepare_noise": ["data/.lock", "data/.readers"],
    "report": ["exp/.lock", "data/.readers"],
    "synthesise_tiny": [".out.lock"],
    "train": ["exp/.lock", "data/.readers"],
    "train_lm": ["exp/.lock", "data/.readers"],
    "tune": ["exp/.lock", "data/.readers"],
    "wer": ["exp/.lock"],
}
NONE = {  # they write nothing, or one file as a whole
    *("check_data", "checkpoint_conf", "doctor", "experiments", "lm_sample", "ngram", "recognise", "stream"),
    *("lock_folder", "with_parent"),  # for the shell's locks
}


def test_every_program_is_known() -> None:
    """A new program must take a lock, or be listed as one that writes nothing."""
    assert {p.stem for p in (ROOT / "local").glob("*.py")} - {"__init__"} == {*EXPECTED, *NONE}


@pytest.mark.parametrize("program", EXPECTED)
def test_every_program_that_writes_locks_first(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def note(path: Path, *_: object, **__: object) -> None:
        asked.append(str(path.relative_to(tmp_path)))
        if len(asked) == len(EXPECTED[program]):
            raise UserError("enough")

    module = importlib.import_module(f"local.{program}")
    monkeypatch.setattr(locks, "_hold", note)
    text = (ROOT / "local" / f"{program}.py").read_text()
    options = list(OPTIONS.get(program, []))
    for option, name in FOLDERS.items():
        has = f'"{option}"' in text or re.search(rf"{option[2:].replace('-', '_')}=True", text)
        options += [option, str(tmp_path / name)] if has else []
    with pytest.raises(SystemExit):
        module.main(options)
    assert asked == EXPECTED[program]


# ---- run.sh and prepare.sh ----


def stub(folder: Path, slow: str) -> Path:
    """Make a Python that runs the shell's helpers, makes what stages are to make, and takes a while in module `slow`."""
    python = folder / "python"
    real = "local.config|local.lock_folder|local.with_parent"
    python.write_text(
        f'#!/bin/sh\ncase $2 in {real}) exec {sys.executable} "$@" ;; esac\necho $2 >> {folder}/calls\n'
        f"mkdir -p {folder}/data/manifests {folder}/data/cuts {folder}/data/features {folder}/data/lang_bpe_500/num_tokens\n"
        f"touch {folder}/data/lang_bpe_500/bpe.model\n"
        f"if [ $2 = {slow} ]; then echo $$ > {folder}/pid; exec sleep 60; fi\n"
    )
    python.chmod(0o755)
    (folder / "audio").mkdir(exist_ok=True)
    return python


def command(script: str, folder: Path, *more: str) -> list[str]:
    exp = [f"--exp-dir={folder}/exp"] if script == "run.sh" else []
    where = [f"--data-dir={folder}/data", f"--corpus-dir={folder}/audio", "--corpus=custom", "--conf=conf/base.yaml", *exp]
    return ["bash", script, f"--python={folder}/python", *where, *more]


def until(path: Path) -> str:
    give_up = time.monotonic() + 30
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < give_up, path
        time.sleep(0.02)
    return path.read_text().strip()


def test_a_second_run_of_an_experiment_stops(tmp_path: Path) -> None:
    stub(tmp_path, "local.train")
    first = subprocess.Popen(command("run.sh", tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        program = int(until(tmp_path / "pid"))
        second = subprocess.run(command("run.sh", tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1 and second.stderr.count("\n") == 1
        assert second.stderr.startswith("error: ") and f"{tmp_path}/exp" in second.stderr
        assert f"process {first.pid}" in second.stderr and "run.sh --python" in second.stderr
        lock = tmp_path / "exp" / ".lock"
        assert holders(lock) == {first.pid, program}  # and not the log's tee, which may wait for a slow reader
        first.kill()  # the program is this Python's stand-in, which does not know of its shell: an orphan
        first.wait()
        third = subprocess.run(command("run.sh", tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert third.returncode == 1 and f"{tmp_path}/exp" in third.stderr
        os.kill(program, 9)
    finally:
        first.kill()
        first.wait()
    stub(tmp_path, "none")
    done = subprocess.run(command("run.sh", tmp_path, "--stop-stage=prepare"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0


def holders(path: Path) -> set[int]:
    """Return the processes that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(path):
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return found


def test_a_second_preparation_waits_and_finds_it_done(tmp_path: Path, started: Callable[..., subprocess.Popen]) -> None:
    python = stub(tmp_path, "none")
    held = f"touch {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    python.write_text(python.read_text() + f"[ $2 != local.prepare_cuts ] || {{ {held}; }}\n")
    call = command("prepare.sh", tmp_path)
    first = started(call, cwd=ROOT)
    while not (tmp_path / "begun").exists():
        assert first.poll() is None
        time.sleep(0.02)
    second = started(call, cwd=ROOT)
    assert second.stderr is not None
    said = second.stderr.readline()
    (tmp_path / "go").touch()
    out, _ = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert first.returncode == 0 and second.returncode == 0
    assert said.startswith("waiting: ") and f"process {first.pid}" in said
    assert out.count("done before") == 4
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == len(set(calls)) == 4  # nothing twice


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_who_waits_can_be_stopped(tmp_path: Path, holder: Holder, number: int) -> None:
    stub(tmp_path, "none")
    (tmp_path / "data").mkdir()
    first = holder(tmp_path / "data", "writes(f)")
    waits = subprocess.Popen(command("prepare.sh", tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert waits.stderr is not None and waits.stderr.readline().startswith("waiting: ")
    assert len(holders(tmp_path / "data" / ".lock")) == 3  # the holder, the script, its program that waits
    waits.send_signal(number)
    assert waits.wait(20) == (143 if number == signal.SIGTERM else -9)
    give_up = time.monotonic() + 20
    while holders(tmp_path / "data" / ".lock") != {first.pid}:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    waits.stderr.close()


def test_one_folder_for_data_and_experiment(tmp_path: Path) -> None:
    """Its lock is taken once: prepare.sh would wait for run.sh, which waits for it."""
    stub(tmp_path, "none")
    (tmp_path / "data").mkdir()
    (tmp_path / "exp").symlink_to("data")
    run = [*command("run.sh", tmp_path), "--stop-stage=train"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "local.train" in (tmp_path / "calls").read_text() and "waiting" not in done.stderr, done.stderr


def test_cuts_that_a_training_reads_are_not_replaced(tmp_path: Path, holder: Holder) -> None:
    stub(tmp_path, "none")
    run = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60}
    assert subprocess.run(command("prepare.sh", tmp_path), **run).returncode == 0  # type: ignore[call-overload]
    other = command("prepare.sh", tmp_path, "data.max_utterance_seconds=7")
    reader = holder(tmp_path / "data", "reads(f)")
    before = (tmp_path / "calls").read_text()
    refused = subprocess.run(other, **run)  # type: ignore[call-overload]
    assert refused.returncode == 1 and f"process {reader.pid}" in refused.stderr
    assert refused.stderr.count("\n") == 1 and before == (tmp_path / "calls").read_text()
    reader.kill()
    reader.wait()
    done = subprocess.run(other, **run)  # type: ignore[call-overload]
    assert done.returncode == 0
    assert "data.max_utterance_seconds was" in done.stdout and "--data-dir" in done.stdout  # what shares them is told of


def test_a_script_s_lock_can_be_read(tmp_path: Path) -> None:
    """NFS shares a lock (LOCK_SH, of machines that train together) only of a file that is open for reading."""
    script = f'set -euo pipefail; source local/stages.sh; python={sys.executable}; lock 8 "$1/.lock" --shared; read -r line <&8'
    done = subprocess.run(
        ["bash", "-c", f'{script}; echo "$line"', "x", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "process" in done.stdout, done.stderr
