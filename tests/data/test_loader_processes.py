"""The death of a process of a DataLoader is told at once, but only where a batch is waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from local.common.children import ChildEnded
from local.data.loader_processes import watched

import pytest
from torch.utils.data import DataLoader


class Items:
    """Items for a DataLoader, each of which takes some seconds; at `last`, its process ends with status 0."""

    def __init__(self, seconds: float, last: int = -1) -> None:
        self.seconds, self.last = seconds, last

    def __len__(self) -> int:
        return 40

    def __getitem__(self, n: int) -> int:
        time.sleep(self.seconds)
        if n == self.last:
            os._exit(0)
        return n


def loaded(items: Items, timeout: float = 60.0, prepare: Callable[[Any], None] = lambda _: None) -> Iterator[int]:
    """Yield the items by two processes; `prepare` gets torch's iterator as soon as it has started them."""

    def start() -> Iterator[int]:
        found = iter(DataLoader(items, batch_size=None, num_workers=2, timeout=timeout))  # type: ignore[arg-type, var-annotated]
        prepare(found)
        return found

    return watched(start)


def kill_one(found: Any) -> None:
    """Kill a process of torch's iterator, and wait for its end."""
    found._workers[1].kill()
    found._workers[1].join(20)


def test_a_loader_whose_processes_live() -> None:
    assert list(loaded(Items(0.0))) == list(range(40))


@pytest.mark.parametrize("seconds", [0.0, 0.3, 2.0])  # before the first look, while a batch is waited for
def test_the_death_of_a_loaders_process_is_told_at_once(seconds: float) -> None:
    def kill_later(found: Any) -> None:
        threading.Timer(seconds, found._workers[1].kill).start()

    began = time.monotonic()
    with pytest.raises(ChildEnded, match="signal 9"):
        next(loaded(Items(1000.0), prepare=kill_later if seconds else kill_one))
    assert time.monotonic() - began < 30  # of 60 that it may wait for a batch


def test_the_death_of_a_loaders_process_is_told_where_a_batch_is_waited_for() -> None:
    workers: list[Any] = []
    batches = loaded(Items(0.05), prepare=lambda found: workers.extend(found._workers))
    assert [next(batches), next(batches)] == [0, 1]
    workers[1].kill()
    workers[1].join(20)  # torch's handler would raise here; and the system has no status of it left, as after another fork
    with pytest.raises(ChildEnded, match="signal 9"):
        next(batches)


def test_a_loaders_process_that_ends_by_itself() -> None:
    began = time.monotonic()
    with pytest.raises(ChildEnded, match="status 0"):
        list(loaded(Items(0.05, last=7)))
    assert time.monotonic() - began < 30


def test_many_loaders_can_fail_in_one_program() -> None:
    for _ in range(6):
        with pytest.raises(ChildEnded, match="signal 9"):
            next(loaded(Items(1000.0), prepare=kill_one))


def test_a_loader_that_is_left_early() -> None:
    workers: list[Any] = []
    batches = loaded(Items(0.05), prepare=lambda found: workers.extend(found._workers))
    next(batches)
    workers[0].kill()
    workers[0].join(20)
    batches.close()  # type: ignore[attr-defined]
    assert [worker.is_alive() for worker in workers] == [False, False]


def test_a_loaders_process_that_stands_still() -> None:
    with pytest.raises(ChildEnded, match=r"1\.5 s.*data\.max_wait"):
        next(loaded(Items(1000.0), timeout=1.5))


def test_an_error_of_another_kind_is_left_alone() -> None:
    def fail() -> Iterator[int]:
        raise RuntimeError("CUDA error")
        yield 0

    with pytest.raises(RuntimeError, match="^CUDA error$"):
        next(watched(fail))
