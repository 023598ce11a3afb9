"""A training by run.sh that is killed again and again equals the uninterrupted one bit for bit, and nothing of it is left.

    python -m tests.soak --minutes 30 [--pace 30 90] [--seed 1] [--folder DIR]

For --minutes, a run of the small recipe on noise is started again and again; --pace seconds after it goes on, something
happens to it, chosen by --seed (see `Soak.attacks`). Then it is left alone until its epoch is done. Then the same training is
made without interruption, which takes about as long as the other one has trained. The last line says PASSED, or what failed.
Where the system allows it, /dev/shm is a private one of 64 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from local.artifacts.checkpoint import load_file
from tests.conftest import ROOT
from tests.killed_run import SMALL, assert_as_if_whole, assert_equal, last_step, state
from tests.speech_tree import WORDS, write_noise

SHM = Path("/dev/shm")
MARK, PRIVATE = "SOAK_RUN", "SOAK_PRIVATE"  # environment: of all that is started here; set in the private mount
PRIVATE_SHM = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec env SOAK_PRIVATE=1 "$@"'
OPTIONS = [
    *(*SMALL, "data.num_workers=2", "data.max_wait=60", "train.average_period=1", "train.log_every=1", "train.save_every=2"),
    *("train.keep_last=3", "train.valid_utterances=2", "average.num=1", "average.mode=running"),
]
FOREVER, LEAST = 100_000, 2  # epochs of the killed run before it may end, and of both runs at least
START, STOP = 180.0, 90.0  # seconds within which a run must go on, and end after what was done to it


def make_audio(folder: Path) -> Path:
    """Write a corpus of one's own: 60 utterances of noise for training, 8 each for dev and test."""
    for part, count in (("train", 60), ("dev", 8), ("test", 8)):
        rows = []
        for n in range(count):
            write_noise(folder / part / f"{part}{n}.wav", 1.0 + n % 5 / 2, seed=n)
            rows.append(f"{part}/{part}{n}.wav\t{WORDS[n % 10]} {WORDS[n // 7 % 10]}\n")
        (folder / f"{part}.tsv").write_text("".join(rows))
    return folder


class Run:
    """One call of run.sh up to stage average, in a group of its own; `mark` finds all processes that come from it."""

    def __init__(self, world: Path, name: str, epochs: int, mark: str, log: Path) -> None:
        """Start it; data, experiment and temporary files are in folders `*-<name>` of `world`."""
        folders = ["--data-dir", world / f"data-{name}", "--exp-dir", world / f"exp-{name}"]
        command = ["./run.sh", "--corpus", "custom", "--corpus-dir", world / "audio", *folders, "--conf", "conf/base.yaml"]
        command += ["--nj", 2, "--nproc", 1, "--python", sys.executable, "--stop-stage", "average", *OPTIONS]
        temporary = world / f"tmp-{name}"
        temporary.mkdir(exist_ok=True)
        environment = {**os.environ, MARK: mark, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        self.log, self.table, self.mark = log, world / f"exp-{name}" / "train.csv", mark
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*map(str, command), f"train.num_epochs={epochs}"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self, seconds: float) -> bool:
        """Wait for the end of run.sh and of all that it started; return whether both came."""
        return waited(lambda: self.process.poll() is not None and not marked(self.mark), seconds)

    def goes_on(self, begun: int) -> bool:
        """Wait until it trains; return False if it ends, or does not within `START` seconds."""
        reached = waited(lambda: last_step(self.table) > begun or self.process.poll() is not None, START)
        return reached and self.process.poll() is None

    def programs(self) -> list[int]:
        """Return its Python programs, parents before their children."""
        return [pid for pid in sorted(marked(self.mark)) if "local." in command_of(pid)]

    def kill_all(self) -> None:
        while found := marked(self.mark):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()


def waited(reached: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def marked(mark: str) -> list[int]:
    """Return the living processes whose environment has the mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            pid = int(path.parent.name)
            if wanted in path.read_bytes().split(b"\0") and state(pid) not in (None, "Z", "X"):
                found.append(pid)
    return found


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


@contextlib.contextmanager
def full_shared_memory() -> Iterator[bool]:
    """Fill /dev/shm; yield whether it is full. The machine's own, and one above a quarter of the memory, are left alone."""
    filler, free = SHM / f"soak-{os.getpid()}", shutil.disk_usage(SHM).free
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        if PRIVATE in os.environ and free <= pages // 4:
            with filler.open("wb") as f:
                os.posix_fallocate(f.fileno(), 0, free)
        yield shutil.disk_usage(SHM).free == 0
    finally:
        filler.unlink(missing_ok=True)


def left_in_memory() -> list[str]:
    """Return the files in /dev/shm except semaphores without a name.

    The C library leaves one, of 32 bytes, when a process is killed within sem_open(3). It says of no process whose it is, so
    no program can remove it.
    """
    files = [path for path in SHM.iterdir() if not re.fullmatch(r"sem\.\w{6}", path.name) or path.stat().st_size > 32]
    return [path.name for path in files]


class Soak:
    """The killed run in the folder `world`, and what went wrong so far."""

    def __init__(self, world: Path, seed: int, pace: tuple[float, float]) -> None:
        self.world, self.rng, self.pace, self.seed = world, random.Random(seed), pace, seed
        self.mark, self.failures, self.counts = uuid.uuid4().hex, list[str](), dict[str, int]()
        self.numbers = itertools.count(1)
        self.attacks = {
            "worker": self.kill_worker,
            "program": self.kill_program,
            "group": lambda run: run.kill_all(),
            "shell": lambda run: run.process.kill(),
            "stop": lambda run: run.process.terminate(),
            "twice": self.start_twice,
            "shm": self.fill_shared_memory,
        }

    def start(self, name: str, epochs: int) -> Run:
        log = self.world / "log" / f"{next(self.numbers):04d}-{name}"
        log.parent.mkdir(exist_ok=True)
        return Run(self.world, name, epochs, self.mark if name == "killed" else f"{self.mark}-{name}", log)

    def failed(self, what: str, run: Run) -> None:
        print(f"FAILED: {what} ({run.log}):\n{run.output()[-2000:]}", flush=True)
        self.failures.append(what)

    def round(self, attack: str, early: bool) -> None:
        """Start the run, wait until it trains (early: only a moment), attack it, and see that all of it ends."""
        begun = last_step(self.world / "exp-killed" / "train.csv")
        run = self.start("killed", FOREVER)
        going = early or run.goes_on(begun)
        if going:
            waited(lambda: run.process.poll() is not None, self.rng.uniform(*self.pace))
        if run.process.poll() is not None or not going:
            self.failed("a run ended, or did not go on, before anything was done to it", run)
        else:
            self.attacks[attack](run)
        if not run.ended(STOP):
            left = [command_of(pid) for pid in marked(self.mark)]
            if attack != "worker":  # the epoch may have had no more work for it
                self.failed(f"{STOP:g} s after '{attack}' these are left: {left}", run)
        if "Traceback" in run.output():
            self.failed(f"a traceback after '{attack}'", run)
        run.kill_all()
        self.counts[attack] = self.counts.get(attack, 0) + 1
        done = last_step(self.world / "exp-killed" / "train.csv")
        print(f"{attack}{' (early)' if early else ''}: steps {begun} to {done}, status {run.process.poll()}", flush=True)

    def kill_worker(self, run: Run) -> None:
        """Kill a process that a Python program has made."""
        programs = run.programs()
        parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in programs}
        workers = [pid for pid, parent in parents.items() if parent in programs]
        self.kill(self.rng.choice(workers or programs or [run.process.pid]))
        if workers and run.ended(STOP) and run.process.poll() != 0 and "signal 9" not in run.output():
            self.failed("the death of a worker is not named", run)

    def kill_program(self, run: Run) -> None:
        self.kill((run.programs() or [run.process.pid])[0])

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def start_twice(self, run: Run) -> None:
        """Start it once more: the second must say who works there, or wait; the first must not care."""
        if not (ROOT / "local" / "common" / "locks.py").exists():
            return run.kill_all()
        second = Run(self.world, "killed", FOREVER, f"{self.mark}-second", run.log.with_suffix(".second"))
        second.ended(min(STOP, 20.0))
        if second.process.poll() == 0 or second.process.poll() and "error: " not in second.output():
            self.failed("the second of two runs neither stopped with a line nor waited", second)
        second.kill_all()
        if run.process.poll() is not None:
            self.failed("the second of two runs ended the first", run)
        run.kill_all()

    def fill_shared_memory(self, run: Run) -> None:
        with full_shared_memory() as full:
            if full and run.ended(self.pace[0]) and "/dev/shm" not in run.output():
                self.failed("a full /dev/shm is not named", run)
        run.kill_all()

    def check(self, epochs: int) -> None:
        """Compare the killed run with the whole one; look for what is left."""
        killed, whole = self.world / "exp-killed", self.world / "exp-whole"
        assert_as_if_whole(killed, whole, epochs, f"seed {self.seed}")
        ours, expected = load_file(killed / "averaged.pt"), load_file(whole / "averaged.pt")
        for key in ("model", "averaged", "label"):
            assert_equal(ours[key], expected[key], f"averaged.pt, {key}")
        names = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (killed, whole)]
        differs = sorted(name for name in names[0] ^ names[1] if not name.startswith(("log/", "tensorboard/")))
        assert differs == [], f"files that only one of the experiments has: {differs}"
        unfinished = [path for path in self.world.rglob("*") if path.name.startswith(".tmp-") or path.suffix == ".tmp"]
        assert unfinished == [], unfinished
        left = {path.name for path in (self.world / "tmp-killed").iterdir()}
        assert left <= {path.name for path in (self.world / "tmp-whole").iterdir()}, f"left in TMPDIR: {left}"


def soak(world: Path, minutes: float, least: int, pace: tuple[float, float], seed: int) -> list[str]:
    """Attack for `minutes`, and `least` times; return what failed."""
    make_audio(world / "audio")
    shared, test = set(left_in_memory()), Soak(world, seed, pace)
    end, order = time.monotonic() + 60 * minutes, list(test.attacks)

    def going_on() -> bool:
        return time.monotonic() < end or sum(test.counts.values()) < least

    while going_on():
        for attack in order if test.counts else ["group", *order]:  # the first before anything is trained
            if going_on():
                test.round(attack, early=not test.counts or test.rng.random() < 0.1)
        test.rng.shuffle(order)
    rows = (world / "exp-killed" / "train.csv").read_text().splitlines() if test.counts else []
    epochs = max(LEAST, int(rows[-1].split(",")[0]) if len(rows) > 1 else 0)
    for name in ("killed", "whole"):
        run = test.start(name, epochs)
        if not run.ended(120 + 120 * minutes) or run.process.poll() != 0:
            test.failed(f"the last run of '{name}'", run)
        run.kill_all()
    try:
        test.check(epochs)
    except (AssertionError, OSError, LookupError) as e:
        test.failures.append(f"{type(e).__name__}: {e}")
    if PRIVATE in os.environ and (new := set(left_in_memory()) - shared):
        test.failures.append(f"left in {SHM}: {sorted(new)}")
    print(f"{sum(test.counts.values())} attacks in {epochs} epochs: {test.counts}")
    return test.failures


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--least", type=int, default=5, help="attacks, also if they take longer (%(default)s)")
    parser.add_argument("--pace", type=float, nargs=2, default=(30.0, 90.0), metavar=("LEAST", "MOST"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="empty or new; kept (default: a temporary one)")
    args = parser.parse_args()
    if PRIVATE not in os.environ:
        for options in (["-m"], ["-rm"]):
            private = ["unshare", *options, "sh", "-c", PRIVATE_SHM, "sh"]
            if shutil.which("unshare") and subprocess.run([*private, "true"], capture_output=True).returncode == 0:
                os.execvp(private[0], [*private, sys.executable, "-m", "tests.soak", *sys.argv[1:]])
        print("warning: /dev/shm cannot be a private one here", flush=True)
    with contextlib.ExitStack() as stack:
        world = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        failures = soak(world.resolve(), args.minutes, args.least, tuple(args.pace), args.seed)
    print("\n".join(f"FAILED: {failure}" for failure in failures) or "PASSED")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
