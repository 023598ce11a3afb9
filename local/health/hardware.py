"""The doctor's checks of the machine: folders, disk, memory, files, threads. Only the standard library at the top."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from local.common.errors import UserError, one_line
from local.common.locks import BUSY, READERS, WRITER
from local.health.finding import Check, Finding, Run, error, warning

GIB = 2**30
LEAST_MEMORY = 2 * GIB  # torch and lhotse take 0.7 GB in each process
LEAST_DISK = 0.2  # GB
VENV_GB = 7.0
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
SHARED = Path("/dev/shm")
FILES = 100  # that a training has open besides the tensors of data processes
TENSORS, PREFETCHED = 6, 4  # of a batch; batches of a data process that wait (`prefetch_factor` in local/data/datamodule.py)


def existing(path: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())


def check_folders(run: Run) -> Iterator[Finding]:
    """Yield a folder that this user cannot write."""
    for option, path in (("--data-dir", run.data_dir), ("--exp-dir", run.exp_dir)):
        first = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not first.is_dir():
            yield error(f"{first} is a file, not a folder", f"name another one by {option}")
        elif not os.access(folder := existing(path), os.W_OK | os.X_OK):
            yield error(f"{folder}: this user cannot write there", f"change its rights, or name another folder by {option}")


def check_busy(run: Run) -> Iterator[Finding]:
    """Yield a folder in which another program writes, and one without locks."""
    for folder, name in ((run.exp_dir, WRITER), (run.data_dir, WRITER), (run.data_dir, READERS)):
        path = folder / name
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # writers hold it alone; it is released at once
            except OSError as e:
                if e.errno in BUSY:
                    who = one_line(path.read_text(encoding="utf-8", errors="replace"), 200) or "another process"
                    yield warning(f"{folder}: {who} works there", "wait for its end, or name another folder")
                elif e.errno in NO_LOCKS:
                    fix = "start only one program there at a time, or use a local disk"
                    yield warning(f"{folder}: its file system has no locks ({e.strerror})", fix)
            finally:
                os.close(file)


def check_disk(run: Run) -> Iterator[Finding]:
    """Yield a file system with less room than the data, the experiment and .venv will take."""
    needs: dict[int, dict[Path, float]] = defaultdict(dict)  # by file system
    for path, size in needed_gigabytes(run).items():
        needs[existing(path).stat().st_dev][path] = size
    for sizes in needs.values():
        path = next(iter(sizes))
        free, needed = shutil.disk_usage(existing(path)).free / 1e9, sum(sizes.values()) + LEAST_DISK
        if free < needed:
            parts = " and ".join(f"{size:.1f} GB in {path}" for path, size in sizes.items() if size)
            what = f"{existing(path)}: {free:.1f} GB of disk are free"
            fix = "free some space, or name folders elsewhere by --data-dir and --exp-dir"
            yield error(f"{what}, and about {parts or f'{LEAST_DISK} GB'} are needed", fix)


def needed_gigabytes(run: Run) -> dict[Path, float]:
    """Return the GB that will be written into each folder."""
    needs = {run.data_dir: 0.0, run.exp_dir: 0.0}
    if run.environment in ("missing", "unfinished"):
        needs[run.root / ".venv"] = VENV_GB
    if run.cfg is not None:
        from local.health.sizes import audio_gigabytes, experiment_gigabytes, feature_storage

        needs[run.data_dir], needs[run.exp_dir] = feature_storage(run), experiment_gigabytes(run)
        needs[run.root / "download"] = audio_gigabytes(run)
    return needs


def check_memory(run: Run) -> Iterator[Finding]:
    """Yield a memory, or a limit of it, that is too small for any training."""
    for name, size in memory_limits().items():
        if size < LEAST_MEMORY:
            yield error(f"{name} is {size / GIB:.1f} GiB, and a training needs {LEAST_MEMORY / GIB:.0f} GiB", "allow more")


def memory_limits(root: Path = Path("/")) -> dict[str, float]:
    """Return the machine's memory, and the limits on it, in bytes by name."""
    found = {}
    with contextlib.suppress(ValueError, OSError):  # macOS has these names, too
        found["the memory of this machine"] = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError, OSError):  # "max", or no such control group
            found[f"/{name}, the memory of this container,"] = float((root / name).read_text())
    if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        found["ulimit -v"] = 1.0 * limit
    return found


def check_training_memory(run: Run) -> Iterator[Finding]:
    """Yield a model, or a batch, that is too large for the memory of the GPU or of the machine."""
    from local.common.meter import free_bytes
    from local.config.schema import AUTO
    from local.health.sizes import pass_seconds, training_bytes

    import torch

    on_gpu = torch.cuda.is_available()
    try:
        free = min(gpu_bytes()) if on_gpu else free_bytes(torch.device("cpu"))
    except UserError:
        return  # the system does not tell
    weights, activations = training_bytes(run, 1 if on_gpu else max(1, run.nproc))
    has = f"{'the smallest GPU has' if on_gpu else 'free memory is'} {free / GIB:.1f} GiB"
    if weights > free:
        fix = "take a smaller model, such as include: [model/small.yaml]"
        yield error(f"the model is too large: {has}, and weights, gradients and optimiser take {weights / GIB:.1f} GiB", fix)
    elif run.config.train.max_duration != AUTO and weights + activations > free:  # auto takes what fits
        seconds = pass_seconds(run.config)
        what = f"a pass over {seconds:g} s of audio takes about {(weights + activations) / GIB:.1f} GiB: {has}"
        fits = 0.8 * seconds * (free - weights) / activations
        fix = f"set train.max_duration={fits:.2g} (and train.batch_seconds, which keeps the size of a step)"
        yield warning(what, fix)


def gpu_bytes() -> list[int]:
    """Return the memory of each GPU."""
    import torch

    return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]


def workers(run: Run) -> int:
    """Return the data processes of a training on this machine, those of all its processes."""
    chosen, processes = run.config.data.num_workers, max(1, run.nproc)
    return processes * (chosen if chosen >= 0 else max(1, min(8, cores() // processes // 2)))


def check_shared_memory(run: Run) -> Iterator[Finding]:
    """Yield a /dev/shm that cannot hold the batches which data processes have ready."""
    from local.health.sizes import batch_bytes

    count = workers(run)
    if not count or not SHARED.is_dir():
        return
    status = os.statvfs(SHARED)
    free, needed = status.f_bavail * status.f_frsize, count * PREFETCHED * batch_bytes(run.config)
    if free < needed:
        what = f"{SHARED} has {free / 1e6:.0f} MB free, and {count} data processes need up to {needed / 1e6:.0f} MB for batches"
        yield error(what, "start the container with --shm-size=2g, or set data.num_workers=0")


def check_open_files(run: Run) -> Iterator[Finding]:
    """Yield a limit of open files that is too low for the tensors of data processes."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES + workers(run) * PREFETCHED * TENSORS
    if limit != resource.RLIM_INFINITY and limit < needed:
        can = "" if most == resource.RLIM_INFINITY or most >= needed else f" (the hard limit is {most}: ask an administrator)"
        yield error(f"ulimit -n allows {limit} open files, and a training needs about {needed}", f"ulimit -n {needed}{can}")


def check_threads(run: Run) -> Iterator[Finding]:
    """Yield an OMP_NUM_THREADS that is not a number or too large, and a container with far fewer cores than it sees."""
    here, written = cores(), os.environ.get("OMP_NUM_THREADS")
    share = min(here, container_cores() or here)
    if written is None:
        if here >= 2 * share:
            what = f"this container may use {share:g} of {here} cores, and torch will start {here} threads"
            yield warning(what, f"export OMP_NUM_THREADS={max(1, round(share))}")
    elif not (written.isdecimal() and int(written) > 0):
        yield warning(f"OMP_NUM_THREADS is '{written}', not a number above 0", "unset it")
    elif int(written) > here:
        yield warning(f"OMP_NUM_THREADS is {written}, and there are {here} cores: threads wait for each other", "unset it")


def check_thread_keys(run: Run) -> Iterator[Finding]:
    """Yield a train.num_threads that starts more threads than there are cores."""
    chosen, processes, here = run.config.train.num_threads, max(1, run.nproc), cores()
    if chosen * processes > here:
        what = f"train.num_threads={chosen} x {processes} processes are more threads than the {here} cores"
        yield warning(what, "set train.num_threads=0")


def cores() -> int:
    """Return the number of cores that this process may run on, as `local.common.processes`, which imports torch, does."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def container_cores(root: Path = Path("/")) -> float | None:
    """Return how many cores this container may use at the same time; None without a limit (version 2 of control groups)."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    return None


CHECKS: tuple[Check, ...] = (check_folders, check_busy, check_disk, check_memory, check_threads)
RUN_CHECKS: tuple[Check, ...] = (  # with a configuration
    check_training_memory,
    check_shared_memory,
    check_open_files,
    check_thread_keys,
)
