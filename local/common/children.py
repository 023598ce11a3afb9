"""Child processes: they die with their parent, and the death of one is an error of one line.

A process that is killed (SIGKILL, too little memory) cannot end its children, and some of them would wait for it for ever.
So each child asks the system to be killed with its parent, where it starts.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from local.common.errors import UserError
from local.common.signals import PARENT


class ChildEnded(UserError):
    """A process that worked for this one was killed, or ended by itself."""


A = TypeVar("A")
B = TypeVar("B")
PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a fork of a program with threads must not
WATCH_EVERY = 1.0  # seconds between looks at the parent, if the system does not tell that it ended


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Send this process signal `number` when its parent ends, also now if `parent`, its process number, has ended already.

    Call it in the child: as its first act, as a pool's initializer, or as the `preexec_fn` of a command. On Linux the system
    does it, as soon as the thread ends that made the child. Elsewhere a thread watches, and commands are not covered.
    """
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_EVERY)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


def begin_child(parent: int, *_: Any) -> None:
    """Begin a process that works for `parent`: it ends with `parent`. It ignores Ctrl-C, which reaches `parent` as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)


def end_with_shell() -> None:
    """End this program by SIGTERM when the shell script that started it ends, however that happens.

    Between the two there may be a wrapper (--python), which waits for this program; then it ends with the wrapper.
    """
    if script := os.environ.pop(PARENT, ""):
        parent = os.getppid()
        wrapped = parent > 1 and _exists(int(script))  # 1 adopts orphans; a script that ended may exist until it is reaped
        die_with_parent(parent if wrapped else int(script), signal.SIGTERM)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def how_it_ended(status: int | None) -> str:
    """Return how a process ended, from its exit status as `subprocess` and `multiprocessing` state it."""
    if status is None or status >= 0:
        return "ended" if status is None else f"ended with status {status}"
    hint = ": too little memory?" if -status in (signal.SIGKILL, signal.SIGBUS) else ""
    return f"was killed (signal {-status}){hint}"


@contextlib.contextmanager
def room_for_children() -> Iterator[None]:
    """Turn the system's refusal to start processes into a `UserError`: no memory, no processes, no room in /dev/shm."""
    try:
        yield
    except OSError as e:
        if e.filename is not None or e.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EAGAIN):
            raise
        where = "/dev/shm is full" if e.errno == errno.ENOSPC else f"{e.strerror}; see ulimit -a"
        raise UserError(f"no process can be started: {where}; free it, or use fewer (data.num_workers=0, --nj 1)") from None


@contextlib.contextmanager
def process_pool(
    num_jobs: int, what: str, start: str = "fork", threads: Callable[[int], Any] | None = None
) -> Iterator[Executor]:
    """Yield a pool of processes, which do `what`, and end them with the block, whatever is still submitted then.

    start: `fork`, so that they inherit the loaded libraries, or `spawn`. threads: sets the number of threads, called with 1.
    Raises `ChildEnded` naming `what` if one of them dies.
    """
    context: Any = copy.copy(multiprocessing.get_context(start))
    made: list[BaseProcess] = []
    make = context.Process

    def process(*args: Any, **kwargs: Any) -> BaseProcess:
        made.append(make(*args, **kwargs))
        return made[-1]

    context.Process = process
    with room_for_children():
        pool = ProcessPoolExecutor(num_jobs, context, _begin_worker, (os.getpid(), threads))
    # Python 3.10 would wait for ever until processes that were killed have read what was submitted.
    pool._call_queue.cancel_join_thread()  # type: ignore[attr-defined]
    try:
        with room_for_children():
            yield pool
    except BaseException as e:
        pool.shutdown(wait=False, cancel_futures=True)
        for p in made:
            p.join(0.2 if isinstance(e, BrokenProcessPool) else 0)  # the pool ends the others itself, by SIGTERM
            p.kill()
        if not isinstance(e, BrokenProcessPool):
            raise
        codes = [p.exitcode for p in made if p.exitcode not in (None, 0, -signal.SIGTERM)]
        raise _ended(what, codes[0] if codes else None) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ended(what: str, status: int | None) -> ChildEnded:
    return ChildEnded(f"a process for {what} {how_it_ended(status)}; run again, or use --nj 1")


def _begin_worker(parent: int, threads: Callable[[int], Any] | None) -> None:
    begin_child(parent)
    if threads is not None:
        threads(1)


def each_in_a_process(function: Callable[[A], B], items: Iterable[A], num_jobs: int, what: str) -> Iterator[B]:
    """Yield function(item) for each item, in order; each is computed in a process of its own, `num_jobs` at once.

    Raises `ChildEnded` naming `what` if one of the processes dies, and what the function raises.
    """
    context = multiprocessing.get_context("fork")  # much faster than a new interpreter for each
    waiting = enumerate(items)
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    done: dict[int, B] = {}
    following = 0
    try:
        while True:
            for number, item in islice(waiting, num_jobs - len(running)):
                receiver, sender = context.Pipe(duplex=False)
                # A daemon: Ctrl-C can come before it is in `running`, and Python's exit would wait for it.
                child = context.Process(target=_answer, args=(function, item, sender, os.getpid()), daemon=True)
                with room_for_children():
                    child.start()
                sender.close()
                running[receiver] = number, child
            if not running:
                return
            for ready in wait(list(running)):
                number, process = running.pop(ready)  # type: ignore[call-overload]
                done[number] = _result(ready, process, what)  # type: ignore[arg-type]
            while following in done:
                yield done.pop(following)
                following += 1
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _answer(function: Callable[[A], B], item: A, sender: Connection, parent: int) -> None:
    begin_child(parent)
    try:
        answer: tuple[Any, str] = (function(item), "")
    except Exception as e:
        answer = (e, traceback.format_exc())
    sender.send(answer)


def _result(receiver: Connection, process: BaseProcess, what: str) -> Any:
    with receiver:
        try:
            value, trace = receiver.recv()
        except EOFError:
            process.join()
            raise _ended(what, process.exitcode) from None
    process.join()
    if trace:
        raise value from RuntimeError(trace)
    return value
