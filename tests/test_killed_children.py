"""Programs whose processes are killed or stand still: one line, exit status 1, no process left, and the next run fixes it."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from local import compute_features, decode, synthesise_tiny, train
from local.artifacts.checkpoint import _Output, load_file
from local.common.errors import UserError
from local.corpus import synthesis
from local.corpus.audio_files import check_all
from local.corpus.shard_store import ShardStore
from local.data.dataset import AsrDataset
from tests.killed_run import PATIENCE, SMALL, of_group, prepared_corpus, state
from tests.test_tiny import write_spec

import pytest
import torch

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]
OPTIONS = [*SMALL, "train.num_epochs=2", "data.num_workers=2"]
Main = Callable[[list[str]], None]


class Program:
    """A program in a process group of its own, forked from this one, which has the libraries; its errors go to a file."""

    made: list[int] = []  # by the test that runs

    def __init__(self, folder: Path, main: Main, arguments: list[Any], before: Callable[[], Any] = lambda: None) -> None:
        self.log = folder / "stderr"
        self.pid = os.fork()
        if self.pid:
            Program.made.append(self.pid)
            return
        status = 1
        try:
            os.setsid()
            os.dup2(os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            sys.stdout = open(folder / "stdout", "w")  # noqa: SIM115
            before()
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as e:
            status = int(e.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def workers(self, least: int = 1) -> list[int]:
        """Wait until it has `least` children and return them."""
        end = time.monotonic() + PATIENCE
        while len(found := [pid for pid in of_group(self.pid) if pid != self.pid and name(pid) != "git\n"]) < least:
            assert time.monotonic() < end and os.waitpid(self.pid, os.WNOHANG) == (0, 0), self.log.read_text()
            time.sleep(0.01)
        return found

    def status(self) -> int:
        """Wait for its end and return its exit status; fail if a process of its group remains."""
        end = time.monotonic() + 60
        try:
            while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
                assert time.monotonic() < end, f"it hangs: {self.log.read_text()}"
                time.sleep(0.01)
            while of_group(self.pid):
                assert time.monotonic() < end, f"left: {of_group(self.pid)}"
                time.sleep(0.01)
        finally:
            if of_group(self.pid):
                os.killpg(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(ended[1])

    def one_error(self) -> str:
        """Return its one line of error; fail if it has succeeded or has said more."""
        status, said = self.status(), self.log.read_text()
        errors = [line for line in said.splitlines() if not line.startswith("warning: ")]
        assert status == 1 and len(errors) == 1 and errors[0].startswith("error: "), said
        return errors[0]


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def slowly(owner: Any, name: str, seconds: float) -> Callable[[], None]:
    """Return a function that makes a function of a module or class slow."""
    plain = getattr(owner, name)

    def slow(*args: Any) -> Any:
        time.sleep(seconds)
        return plain(*args)

    return lambda: setattr(owner, name, slow)


SLOW_AUDIO = slowly(ShardStore, "with_audio_loaded", 0.05)
SLOW_VOICE = slowly(synthesis, "record", 0.05)
SLOW_FEATURES = slowly(AsrDataset, "_load", 0.05)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_corpus(tmp_path_factory.mktemp("corpus"))


def abandoned(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".tmp-*"))


def shared_files() -> set[str]:
    """Return what killed processes of Python and torch leave in memory and in TMPDIR; not that of living ones."""
    found = [path for path in Path("/dev/shm").glob("torch_*") if state(int(path.name.split("_")[1])) in (None, "Z", "X")]
    found += [*Path("/dev/shm").glob("sem.*"), *Path("/tmp").glob("pymp-*"), *Path("/tmp").glob("torchelastic_*")]
    return {str(path) for path in found}


# ---- preparation ----


@pytest.mark.parametrize("victim", ["worker", "main"])
def test_features(data: Path, tmp_path: Path, victim: str) -> None:
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "features")
    arguments = ["--data-dir", tmp_path / "data", "--nj", 2]
    program = Program(tmp_path, compute_features.main, arguments, SLOW_AUDIO)
    workers = program.workers(2)
    if victim == "worker":
        os.kill(workers[0], signal.SIGKILL)
        assert "signal 9" in (error := program.one_error()) and "features" in error
    else:
        os.kill(program.pid, signal.SIGKILL)
        assert program.status() == -signal.SIGKILL
    assert Program(tmp_path, compute_features.main, arguments).status() == 0
    made = sorted((tmp_path / "data" / "features").glob("*"))
    assert [path.name for path in made] == ["te", "te.jsonl.gz", "tr", "tr.jsonl.gz"] and abandoned(tmp_path) == []
    kept = {line.split('"storage_path"')[1].split('"')[1] for line in lines_of(tmp_path / "data" / "features" / "tr.jsonl.gz")}
    assert kept == {str(path) for path in (tmp_path / "data" / "features" / "tr").iterdir()}


def lines_of(manifest: Path) -> list[str]:
    return gzip.decompress(manifest.read_bytes()).decode().splitlines()


def kill_at_four(number: int) -> int:
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_checking_audio_names_the_file() -> None:
    with pytest.raises(UserError, match=r"audio of tr .*signal 9.*at or after [0-4]$"):
        list(check_all(kill_at_four, range(8), 2, "audio of tr"))


@pytest.mark.parametrize("victim", ["worker", "main"])
def test_synthesis(tmp_path: Path, victim: str) -> None:
    pytest.importorskip("espeakng_loader")
    spec = write_spec(tmp_path / "speech.yaml")
    out = tmp_path / "made" / "tiny"
    (tmp_path / "made" / ".tmp-mine-tiny").mkdir(parents=True)  # of the user's
    arguments = ["--out", out, "--spec", spec, "--limit", 4, "--nj", 2]
    program = Program(tmp_path, synthesise_tiny.main, arguments, SLOW_VOICE)
    workers = program.workers(2)
    os.kill(workers[0] if victim == "worker" else program.pid, signal.SIGKILL)
    if victim == "worker":
        assert "signal 9" in (error := program.one_error()) and "synthesis" in error
    else:
        assert program.status() == -signal.SIGKILL and len(abandoned(tmp_path)) == 2
    assert not out.exists()
    assert Program(tmp_path, synthesise_tiny.main, arguments).status() == 0
    assert sorted(path.name for path in out.parent.iterdir() if not path.name.endswith(".lock")) == [".tmp-mine-tiny", "tiny"]


# ---- training and decoding ----


def training(data: Path, tmp_path: Path, *words: str, before: Callable[[], Any] = SLOW_FEATURES) -> Program:
    arguments = ["--data-dir", data, "--exp-dir", tmp_path / "exp", *OPTIONS, *words]
    return Program(tmp_path, train.main, arguments, before)


def test_a_killed_data_worker_ends_the_training(data: Path, tmp_path: Path) -> None:
    before = shared_files()
    program = training(data, tmp_path)
    os.kill(program.workers(2)[1], signal.SIGKILL)
    assert "signal 9" in (error := program.one_error()) and "data" in error
    program = training(data, tmp_path)
    program.workers(2)
    time.sleep(0.3)
    os.kill(program.pid, signal.SIGKILL)
    assert program.status() == -signal.SIGKILL  # and no worker is left
    assert shared_files() <= before


def test_a_data_worker_that_is_killed_while_a_checkpoint_is_written(data: Path, tmp_path: Path) -> None:
    program = training(data, tmp_path, "train.save_every=1", before=slowly(_Output, "write", 0.005))
    end = time.monotonic() + PATIENCE
    while not (writing := abandoned(tmp_path / "exp" / "checkpoints")):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(program.workers(2)[1], signal.SIGKILL)
    assert "signal 9" in program.one_error()
    assert not writing[0].exists() and load_file(tmp_path / "exp" / "checkpoints" / "step-1.pt")["progress"]["step"] == 1


@pytest.mark.slow
def test_a_killed_data_worker_ends_the_decoding(data: Path, tmp_path: Path) -> None:
    assert training(data, tmp_path, "train.max_steps=1", before=lambda: None).status() == 0
    arguments = ["--checkpoint", tmp_path / "exp/checkpoints/step-1.pt", "--data-dir", data, "--exp-dir", tmp_path / "exp"]
    program = Program(tmp_path, decode.main, [*arguments, "decode.max_duration=5"], SLOW_FEATURES)
    os.kill(program.workers(2)[0], signal.SIGKILL)
    assert "signal 9" in program.one_error() and not (tmp_path / "exp" / "decode").exists()


def test_a_data_worker_that_stands_still(data: Path, tmp_path: Path) -> None:
    program = training(data, tmp_path, "data.max_wait=1", before=slowly(AsrDataset, "_load", 1000))
    assert "data.max_wait" in (error := program.one_error()) and "1 s" in error


@pytest.mark.slow
def test_a_small_shared_memory_and_a_long_tmpdir(data: Path, tmp_path: Path) -> None:
    """Batches come from the workers without /dev/shm, and without sockets in TMPDIR."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    arguments = [sys.executable, "-m", "local.train", "--data-dir", data, "--exp-dir", tmp_path / "exp", *OPTIONS]
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 77; exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", *map(str, arguments)]
    environment = {**os.environ, "TMPDIR": str(long), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, start_new_session=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("a tmpfs cannot be mounted here")
    assert done.returncode == 0, done.stderr
    assert [path for path in long.iterdir() if path.name.startswith(("pymp", "torchelastic"))] == []


@pytest.mark.skipif(torch.__version__.startswith("1."), reason="needs torch 2's launcher")
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["process", "launcher", "stopped"])
def test_several_training_processes(data: Path, tmp_path: Path, victim: str) -> None:
    before = shared_files()
    arguments = ["--nproc", 2, "--data-dir", data, "--exp-dir", tmp_path / "exp", *OPTIONS, "train.num_epochs=1000"]
    program = Program(tmp_path, train.main, [*arguments, "data.num_workers=1", "train.save_every=3"])
    end = time.monotonic() + PATIENCE
    while not (tmp_path / "exp" / "checkpoints" / "step-3.pt").exists():
        assert time.monotonic() < end and state(program.pid) not in (None, "Z"), program.log.read_text()
        time.sleep(0.05)
    group = [
        pid for path in Path("/proc").glob("[0-9]*/stat") for pid in [int(path.parent.name)] if parent(path) == program.pid
    ]
    assert len(group) == 2
    victims = {"process": group[0], "launcher": program.pid, "stopped": program.pid}
    os.kill(victims[victim], signal.SIGTERM if victim == "stopped" else signal.SIGKILL)
    if victim == "process":
        assert "signal 9" in (error := program.one_error()) and "process " in error
    elif victim == "stopped":
        assert program.status() == 143 and program.log.read_text().splitlines()[-1:] == ["stopped by SIGTERM"]
        assert "Traceback" not in program.log.read_text() and program.log.read_text().count("stopped by") == 1
    else:
        assert program.status() == -signal.SIGKILL
    end = time.monotonic() + 60
    while any(state(pid) not in (None, "Z", "X") for pid in group):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert shared_files() <= before


def parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    left = [pid for group in Program.made for pid in of_group(group)]
    Program.made.clear()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
