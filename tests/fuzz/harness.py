"""Feeds a reader with damaged files, each made from a seed, and reports what it must not do.

A case is a target's name and a seed: `python -m tests.fuzz NAME --seed N` repeats it. Cases run in a forked process with
bounds on memory and time, watched by `tests.fuzz.watch`; if it dies, another one goes on after the case.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from local.common.errors import UserError
from tests.fuzz.mutations import mutate
from tests.fuzz.watch import Forbidden, Watch

import torch

LIMIT = 20.0  # seconds of one case
PATIENCE = 10.0  # seconds more for a case in a library, which no signal ends
MEMORY = 2 << 30  # bytes that a process may take beside what it begins with
TRACES = ("PWNED",)  # files that hostile words would make


class Hang(BaseException):
    """A case took longer than `LIMIT`. No `Exception`, so that no reader catches it."""


@dataclass(frozen=True)
class Target:
    """A reader of foreign files.

    make: writes good files into a folder, each variant of them into a folder of its own (`refused...`: files that no reader
    takes). read: reads one such folder and checks what it accepts. refusals: its ways to refuse. changed: the endings of files
    that are mutated, all if empty. ready: called once in the process of the cases. slowest: seconds of a case.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], None]
    changed: tuple[str, ...] = ()
    ready: Callable[[], None] = lambda: None
    refusals: tuple[type[BaseException], ...] = (UserError,)
    cases: int = 2000
    slowest: float = LIMIT


@dataclass(frozen=True)
class Failure:
    """What a case did that it must not. kind: traceback, hang, memory, crash, refusal without a reason, file or command."""

    seed: int
    kind: str
    detail: str

    @property
    def signature(self) -> tuple[str, str]:
        """What is equal for cases that fail in the same way: the kind and the last line of the project in the traceback."""
        places = [line.strip() for line in self.detail.splitlines() if "/local/" in line or "/model/" in line]
        return self.kind, places[-1] if places else " ".join(
            self.detail.split()[-3:] if "\n" in self.detail else self.detail.split()[:3]
        )


class Seeds:
    """The good files of a target: {variant: {path in its folder: content}}."""

    def __init__(self, target: Target, folder: Path) -> None:
        """Make the files in `folder`."""
        self.folder = folder
        target.make(folder)
        self.files: dict[str, dict[str, bytes]] = {}
        for variant in sorted(p for p in folder.iterdir() if p.is_dir()):
            paths = sorted(p for p in variant.rglob("*") if p.is_file())
            names = {str(p.relative_to(variant)): p for p in paths if not target.changed or p.name.endswith(target.changed)}
            self.files[variant.name] = {name: path.read_bytes() for name, path in names.items()}


def case(target: Target, seeds: Seeds, seed: int) -> tuple[str, dict[str, bytes]]:
    """Return the variant of a case and its changed files."""
    rng = random.Random(f"{target.name} {seed}")
    variant = rng.choice(list(seeds.files))
    files = seeds.files[variant]
    names = rng.sample(list(files), min(len(files), rng.choice((1, 1, 1, 2, 3))))
    return variant, {name: mutate(name, files[name], rng) for name in names}


def run(target: Target, numbers: Sequence[int], times: dict[int, float] | None = None) -> list[Failure]:
    """Return the failures of the cases with these seeds; put the processor's seconds of each into `times`."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        here = Path(root, "a", "b", "here")  # folders that `../../x` would be written to are looked at
        here.mkdir(parents=True)
        seeds = Seeds(target, here)
        left, failures = list(numbers), []
        while left:
            done, found = _batch(target, seeds, left, {} if times is None else times)
            failures += found
            left = left[done:]
        return failures


def save(target: Target, seed: int, folder: Path) -> Path:
    """Write the files of a case, changed and unchanged, and return their folder."""
    place = folder / f"{target.name}-{seed}"
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        seeds = Seeds(target, Path(root))
        variant, files = case(target, seeds, seed)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(Path(root, variant), place)
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place


def _batch(target: Target, seeds: Seeds, numbers: Sequence[int], times: dict[int, float]) -> tuple[int, list[Failure]]:
    """Run cases in one process until all are done or it dies; return how many are done, and the failures."""
    receiving, sending = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(receiving)
        with contextlib.suppress(BaseException):
            _work(target, seeds, numbers, sending)
        os._exit(1)
    os.close(sending)
    begun, failures, whole = 0, [], False
    for message in _messages(receiving, target.slowest + PATIENCE):
        if message is None:
            os.kill(process, signal.SIGKILL)
            failures.append(Failure(numbers[begun - 1], "hang", f"longer than {target.slowest:g} s in a library"))
        elif "begun" in message:
            begun += 1
        elif "took" in message:
            times[numbers[begun - 1]] = message["took"]
        elif "end" in message:
            whole = True
        else:
            failures.append(Failure(**message))
    os.close(receiving)
    status = os.waitpid(process, 0)[1]
    if not whole and not (failures and failures[-1].seed == numbers[max(begun, 1) - 1]):
        code = os.waitstatus_to_exitcode(status)
        failures.append(Failure(numbers[max(begun, 1) - 1], "crash", f"the process ended with {code}"))
    return (len(numbers) if whole else max(begun, 1)), failures


def _messages(pipe: int, patience: float) -> Iterator[dict[str, Any] | None]:
    """Yield what a process reports, until it ends; None, and then nothing, if it is silent for `patience` seconds."""
    waiting = b""
    while True:
        if not select.select([pipe], [], [], patience)[0]:
            yield None
            return
        if not (data := os.read(pipe, 1 << 16)):
            return
        *lines, waiting = (waiting + data).split(b"\n")
        yield from map(json.loads, lines)


def _work(target: Target, seeds: Seeds, numbers: Sequence[int], pipe: int) -> NoReturn:
    """Run cases and report them."""

    def report(**message: object) -> None:
        os.write(pipe, json.dumps(message).encode() + b"\n")

    _quiet(seeds.folder)
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    target.ready()
    watch = Watch(seeds.folder)
    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, _hang)
    base = _limit_memory()
    for variant in seeds.files:
        try:
            target.read(seeds.folder / variant)
        except BaseException as e:
            if isinstance(e, target.refusals) and variant.startswith("refused"):
                continue
            report(seed=-1, kind="good files refused", detail=f"{variant}: {traceback.format_exc()[-6000:]}")
    for seed in numbers:
        report(begun=seed)
        began = time.process_time()
        for kind, detail in _problems(target, seeds, seed, watch):
            report(seed=seed, kind=kind, detail=detail[-6000:])
        report(took=time.process_time() - began)
        if _most_memory() > base + MEMORY:
            report(seed=seed, kind="memory", detail=f"{(_most_memory() - base) >> 20} MiB")
            os._exit(0)  # the next case begins with less
    report(end=True)
    os._exit(0)


def _quiet(folder: Path) -> None:
    """Turn the process's output off, and let it work and keep its temporary files in `folder`, without programs to call."""
    faulthandler.disable()  # pytest's
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    sys.stdout, sys.stderr = (open(os.devnull, "w", encoding="utf-8", errors=e) for e in ("strict", "backslashreplace"))
    sys.dont_write_bytecode = True
    (folder / "tmp").mkdir(exist_ok=True)
    os.environ.update(TMPDIR=str(folder / "tmp"), PATH="")
    tempfile.tempdir = None
    os.fsync = lambda _: None  # no case outlives the machine
    os.chdir(folder)


def _hang(*_: object) -> NoReturn:
    raise Hang


def _most_memory() -> int:
    """Return the most bytes of memory that the process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _limit_memory() -> int:
    """Let the process take `MEMORY` more, as far as the system can; return the bytes that it has used so far."""
    with contextlib.suppress(OSError, ValueError):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return _most_memory()


def _problems(target: Target, seeds: Seeds, seed: int, watch: Watch) -> Iterator[tuple[str, str]]:
    """Run one case and yield what is wrong, as a kind and the details."""
    try:
        variant, files = case(target, seeds, seed)
    except Exception:
        yield "the mutation itself failed", traceback.format_exc()
        return
    folder = seeds.folder / variant
    for name, content in files.items():
        (folder / name).write_bytes(content)
    try:
        yield from _outcome(target, folder, watch)
        yield from (("file outside or command", found) for found in watch.found)
        yield from (("file outside or command", trace) for trace in _traces(seeds))
    finally:
        watch.found.clear()
        for name in files:
            (folder / name).write_bytes(seeds.files[variant][name])


def _outcome(target: Target, folder: Path, watch: Watch) -> Iterator[tuple[str, str]]:
    signal.setitimer(signal.ITIMER_REAL, target.slowest)
    watch.on = True
    try:
        target.read(folder)
    except target.refusals as e:
        if not str(e).strip():
            yield "refusal without a reason", traceback.format_exc()
    except Hang:
        yield "hang", traceback.format_exc()
    except MemoryError:
        yield "memory", traceback.format_exc()
    except Forbidden:
        pass  # the watch knows it
    except BaseException:
        yield "traceback", traceback.format_exc()
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)


def _traces(seeds: Seeds) -> Iterator[str]:
    """Yield, and remove, files that a library or a command made where none belongs."""
    here = seeds.folder
    for folder, own in ((here.parent, [here.name]), (here.parent.parent, [here.parent.name])):
        for name in set(os.listdir(folder)) - set(own):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).unlink(missing_ok=True)
            yield f"{name} in a folder above"
    for name in TRACES:
        if os.path.lexists(here / name):
            (here / name).unlink()
            yield f"a command ran: {name}"
