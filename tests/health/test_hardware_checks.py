"""The doctor's checks of the machine, with folders, disks, memories and limits that are not those of this one."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from local.health import hardware, sizes
from local.health.hardware import (
    GIB,
    check_busy,
    check_disk,
    check_folders,
    check_memory,
    check_open_files,
    check_shared_memory,
    check_thread_keys,
    check_threads,
    check_training_memory,
)
from tests.conftest import ROOT
from tests.health.examined import found, healthy, one

import pytest
import torch

Patch = pytest.MonkeyPatch
BASE = ["model.encoder.num_layers=12", "model.encoder.d_model=512", "model.encoder.rnn_hidden_size=1024"]
BASE += ["model.encoder.dim_feedforward=2048", "model.decoder.dim=512", "model.joiner.dim=512"]


def test_folders_fires(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "data").touch()
    one(check_folders, healthy(tmp_path), "error", str(tmp_path / "data"), "--data-dir")
    (tmp_path / "data").unlink()
    (tmp_path / "file").touch()
    findings = found(check_folders, healthy(tmp_path / "file" / "below"))
    assert len(findings) == 2 and all(f.level == "error" and str(tmp_path / "file") in f.what for f in findings)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "exp")  # root may write everywhere
    (tmp_path / "exp").mkdir()
    one(check_folders, healthy(tmp_path), "error", str(tmp_path / "exp"), "--exp-dir")


def test_folders_is_quiet(tmp_path: Path) -> None:
    """Also for folders that are not there yet."""
    assert found(check_folders, healthy(tmp_path / "new" / "folder")) == [] and not (tmp_path / "new").exists()


def test_busy_fires(tmp_path: Path, started: Callable[..., subprocess.Popen], monkeypatch: Patch) -> None:
    run = healthy(tmp_path)
    run.exp_dir.mkdir()
    code = "from pathlib import Path; from local.common import locks; import sys; locks.writes(Path(sys.argv[1])); "
    command = [sys.executable, "-c", f"{code}print(1, flush=True); input()", str(run.exp_dir)]
    holder = started(command, cwd=ROOT, stdin=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == "1\n"
    one(check_busy, run, "warning", str(run.exp_dir), f"process {holder.pid}")
    holder.communicate("\n")
    assert found(check_busy, run) == []

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    one(check_busy, run, "warning", str(run.exp_dir), "No locks available")


def test_busy_is_quiet(tmp_path: Path) -> None:
    """Without folders, and with the file of a lock that nobody holds."""
    run = healthy(tmp_path)
    assert found(check_busy, run) == []
    run.data_dir.mkdir()
    (run.data_dir / ".lock").write_text("a command that has ended", encoding="utf-8")
    assert found(check_busy, run) == []


def free_disk(monkeypatch: Patch, gigabytes: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=gigabytes * 1e9))


def test_disk_fires(tmp_path: Path, monkeypatch: Patch) -> None:
    """For checkpoints, stored features, downloads and .venv, all on one file system."""
    free_disk(monkeypatch, 0.3)
    one(check_disk, healthy(tmp_path), "error", "0.3 GB", str(tmp_path / "exp"))
    free_disk(monkeypatch, 5)
    one(check_disk, healthy(tmp_path, "features.type=precomputed", hours=100.0), "error", "5.7 GB", str(tmp_path / "data"))
    one(check_disk, healthy(tmp_path, parts=("train-clean-100",)), "error", "13.0 GB", "download")
    one(check_disk, healthy(tmp_path, cfg=None, environment="missing"), "error", "7.0 GB", ".venv")


def test_disk_is_quiet(tmp_path: Path, monkeypatch: Patch) -> None:
    free_disk(monkeypatch, 5)
    run = healthy(tmp_path, "features.type=precomputed", hours=100.0)
    (run.data_dir / "features").mkdir(parents=True)  # they are there
    assert found(check_disk, run) == [] and found(check_disk, healthy(tmp_path, cfg=None)) == []
    assert found(check_disk, healthy(tmp_path, parts=("train-clean-100",), corpus_dir=tmp_path)) == []


def test_memory_fires(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(hardware, "memory_limits", lambda: {"ulimit -v": 1.0 * GIB, "the memory of this machine": 64.0 * GIB})
    one(check_memory, healthy(tmp_path), "error", "ulimit -v is 1.0 GiB")


def test_memory_is_quiet(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(hardware, "memory_limits", lambda: {"the memory of this machine": 64.0 * GIB})
    assert found(check_memory, healthy(tmp_path)) == []


def test_limits_of_control_groups(tmp_path: Path) -> None:
    folder = tmp_path / "sys" / "fs" / "cgroup"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("max\n")
    (folder / "cpu.max").write_text("max 100000\n")
    plain = hardware.memory_limits(tmp_path)
    assert min(plain.values()) > 0 and hardware.container_cores(tmp_path) is None
    (folder / "memory.max").write_text("1073741824\n")
    (folder / "cpu.max").write_text("150000 100000\n")
    assert hardware.memory_limits(tmp_path).items() - plain.items() == {
        ("/sys/fs/cgroup/memory.max, the memory of this container,", 1.0 * GIB)
    }
    assert hardware.container_cores(tmp_path) == 1.5


@pytest.fixture
def memory(monkeypatch: Patch) -> Callable[[float], None]:
    """Return a function that sets the free memory in GiB of a machine without a GPU."""

    def of(gib: float) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr("local.common.meter.free_bytes", lambda device: gib * GIB)

    return of


def test_training_memory_fires(tmp_path: Path, memory: Callable[[float], None], monkeypatch: Patch) -> None:
    memory(1.0)
    one(check_training_memory, healthy(tmp_path, *BASE), "error", "too large", "1.9 GiB")
    memory(4.0)
    finding = one(check_training_memory, healthy(tmp_path, *BASE, "train.max_duration=300"), "warning", "300 s", "4.0 GiB")
    fitting = float(finding.fix.split("train.max_duration=")[1].split()[0])
    assert 50 < fitting < 120
    assert found(check_training_memory, healthy(tmp_path, *BASE, f"train.max_duration={fitting}")) == []
    one(check_training_memory, healthy(tmp_path, *BASE, f"train.max_duration={fitting}", nproc=3), "error", "5.6 GiB")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "gpu_bytes", lambda: [8 * GIB, 80 * GIB])
    one(check_training_memory, healthy(tmp_path, *BASE, "train.max_duration=600"), "warning", "the smallest GPU has 8.0 GiB")


def test_training_memory_is_quiet(tmp_path: Path, memory: Callable[[float], None]) -> None:
    memory(1.0)
    assert found(check_training_memory, healthy(tmp_path)) == []
    memory(24.0)
    assert found(check_training_memory, healthy(tmp_path, *BASE, "train.max_duration=300")) == []
    memory(4.0)
    assert found(check_training_memory, healthy(tmp_path, *BASE, "train.max_duration=auto")) == []


def test_the_estimate_is_near_what_was_measured(tmp_path: Path) -> None:
    """RESULTS.md: the published model on a GPU."""
    for seconds, precision, measured in (
        (480, "float32", 10.0),
        (1992, "float32", 38.7),
        (480, "bf16", 5.7),
        (1992, "bf16", 21.9),
    ):
        run = healthy(tmp_path, *BASE, f"train.max_duration={seconds}", f"train.precision={precision}")
        assert sum(sizes.training_bytes(run, 1)) / GIB == pytest.approx(measured, rel=0.2)


def test_infinite_batches_are_no_infinite_memory(tmp_path: Path) -> None:
    run = healthy(tmp_path, "train.max_duration=.inf", "decode.max_duration=.inf")
    assert sizes.batch_bytes(run.config) < 1e9 and sum(sizes.training_bytes(run, 1)) < 10 * GIB


def test_a_checkpoint_has_the_estimated_size(tmp_path: Path) -> None:
    """Tiny's checkpoints have 49.3 MB; nine of them are kept at once: five epochs and two within epochs."""
    assert sizes.experiment_gigabytes(healthy(tmp_path, "lang.vocab_size=76")) / 7 == pytest.approx(0.0493, rel=0.05)


def shared_memory(monkeypatch: Patch, folder: Path, megabytes: float) -> None:
    monkeypatch.setattr(hardware, "SHARED", folder)
    blocks = SimpleNamespace(f_bavail=int(megabytes * 1e6) // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: blocks)


def test_shared_memory_fires(tmp_path: Path, monkeypatch: Patch) -> None:
    """A container's usual 64 MB and eight data processes with batches of ten minutes."""
    shared_memory(monkeypatch, tmp_path, 64)
    run = healthy(tmp_path, "data.num_workers=8", "train.max_duration=600")
    one(check_shared_memory, run, "error", "64 MB", "614 MB", "data.num_workers=0")


def test_shared_memory_is_quiet(tmp_path: Path, monkeypatch: Patch) -> None:
    shared_memory(monkeypatch, tmp_path, 64)
    assert found(check_shared_memory, healthy(tmp_path, "data.num_workers=1")) == []
    assert found(check_shared_memory, healthy(tmp_path, "data.num_workers=0", "train.max_duration=6000")) == []
    shared_memory(monkeypatch, tmp_path / "none", 0)
    assert found(check_shared_memory, healthy(tmp_path, "data.num_workers=8")) == []


@pytest.mark.parametrize(("limits", "words"), [((64, 4096), ["ulimit -n 292"]), ((64, 64), ["ulimit -n 292", "administrator"])])
def test_open_files_fires(tmp_path: Path, monkeypatch: Patch, limits: tuple[int, int], words: list[str]) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    one(check_open_files, healthy(tmp_path, "data.num_workers=8"), "error", "64 open files", *words)


def test_open_files_is_quiet(tmp_path: Path, monkeypatch: Patch) -> None:
    for limit in (1024, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        assert found(check_open_files, healthy(tmp_path, "data.num_workers=8")) == []


@pytest.fixture
def cores(monkeypatch: Patch) -> Callable[..., None]:
    """Return a function that sets the number of cores, those of the container, and OMP_NUM_THREADS."""

    def of(number: int, container: float | None = None, threads: str | None = None) -> None:
        monkeypatch.setattr(hardware, "cores", lambda: number)
        monkeypatch.setattr(hardware, "container_cores", lambda: container)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if threads is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)

    return of


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ((4, None, "64"), ["64", "4 cores"]),
        ((4, None, "many"), ["'many'"]),
        ((4, None, "0"), ["'0'"]),
        ((64, 2.0), ["2 of 64", "OMP_NUM_THREADS=2"]),
        ((64, 0.5), ["0.5 of 64", "OMP_NUM_THREADS=1"]),
    ],
)
def test_threads_fires(tmp_path: Path, cores: Callable[..., None], here: tuple, words: list[str]) -> None:
    cores(*here)
    one(check_threads, healthy(tmp_path), "warning", *words)


@pytest.mark.parametrize("here", [(4,), (4, None, "4"), (4, None, "1"), (64, 2.0, "2"), (4, 3.0), (4, 16.0)])
def test_threads_is_quiet(tmp_path: Path, cores: Callable[..., None], here: tuple) -> None:
    cores(*here)
    assert found(check_threads, healthy(tmp_path)) == []


@pytest.mark.parametrize(("overrides", "nproc"), [(["train.num_threads=8"], 1), (["train.num_threads=3"], 2)])
def test_thread_keys_fires(tmp_path: Path, cores: Callable[..., None], overrides: list[str], nproc: int) -> None:
    cores(4)
    one(check_thread_keys, healthy(tmp_path, *overrides, nproc=nproc), "warning", overrides[0], "4 cores")


@pytest.mark.parametrize(("overrides", "nproc"), [([], 8), (["train.num_threads=4"], 1), (["train.num_threads=2"], 2)])
def test_thread_keys_is_quiet(tmp_path: Path, cores: Callable[..., None], overrides: list[str], nproc: int) -> None:
    cores(4)
    assert found(check_thread_keys, healthy(tmp_path, *overrides, nproc=nproc)) == []
