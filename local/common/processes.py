"""Several processes that train one model: how they start, and what they add up.

torchrun (`torch.distributed.run`) starts them; gloo (CPU) or nccl (GPUs) connects them. Every process holds the whole model
and takes its micro-batches of every step. Losses are sums over utterances, so gradients are summed, once per step after
the last backward pass. torch's DistributedDataParallel sums earlier, but it cannot continue after a backward pass that ran
out of memory, and it must know which parameters get no gradient during the warm-up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from local.common.children import die_with_parent, how_it_ended
from local.common.errors import TrainingDiverged, UserError, reason
from local.common.signals import Stopped

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 2**23  # elements of the gradient per call of all_reduce
LAUNCHER = "ASR_LAUNCHER"  # environment variable: the process number of the launcher
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
STOPPING = 10.0  # seconds within which the launcher stops the other processes when one has ended


@dataclass(frozen=True)
class Processes:
    """The processes of a run, `local_size` of them on this machine; one by default. cpu_group: for CPU tensors and objects."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    cpu_group: Any = None

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the processes in place; the shape must be equal in all, the device that of `start`."""
        if self.size > 1:
            with _connected():
                dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, by rank, to all of them; values are plain or CPU tensors."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _connected():
            dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def sum_gradients(self, params: Sequence[nn.Parameter]) -> None:
        """Sum `grad` over the processes; it stays None if no process has one. A process may have none at all."""
        if self.size > 1:
            with _connected():
                self._sum_gradients(params)

    def _sum_gradients(self, params: Sequence[nn.Parameter]) -> None:
        holders = torch.tensor([float(p.grad is not None) for p in params], device=params[0].device)
        nothing_here = all(p.grad is None for p in params)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
        pending: list[tuple[Tensor, list[Tensor], Any]] = [(holders, [], dist.all_reduce(holders, async_op=True))]
        for bucket in _buckets(grads):
            flat = torch.cat([g.flatten() for g in bucket])
            pending.append((flat, bucket, dist.all_reduce(flat, async_op=True)))
        for flat, bucket, work in pending:
            work.wait()
            for grad, total in zip(bucket, flat.split([g.numel() for g in bucket]) if bucket else (), strict=True):
                grad.copy_(total.view_as(grad))
        if nothing_here:
            for p, grad, held in zip(params, grads, holders.tolist(), strict=True):
                p.grad = grad if held else None

    def stop(self) -> None:
        """Leave the group at the end of a successful run."""
        if self.size > 1:
            dist.destroy_process_group()


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Wait to be stopped if another process has ended, which the launcher reports; without a launcher, raise `UserError`."""
    try:
        yield
    except RuntimeError as e:
        if not re.search(r"gloo|NCCL|[Cc]onnection|socket|[Tt]imed out", str(e)):
            raise
        time.sleep(STOPPING)
        raise UserError(f"another process of the training has ended, or cannot be reached: {reason(e)[:200]}") from None


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield groups of up to `BUCKET` elements, in order."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def check_gpus(processes: int) -> None:
    """Raise `UserError` if this machine has GPUs, but not one for each of its `processes`."""
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(f"--nproc {processes}: this machine has {torch.cuda.device_count()} GPUs; use one process per GPU")


def start() -> tuple[Processes, torch.device]:
    """Join the processes of torchrun, if any; return them and this one's device. Raises `UserError` for too few GPUs."""
    defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    rank, size, local_rank, local_size = (int(os.environ.get(name, default)) for name, default in defaults.items())
    cuda = torch.cuda.is_available()
    check_gpus(local_size)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        return Processes(), device
    die_with_parent(int(os.environ.get(LAUNCHER, os.getppid())))  # without the launcher, it must not keep writing
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:  # end at once, without a word: the launcher passes them on, and says so
            signal.signal(number, signal.SIG_DFL)
    with _connected():
        dist.init_process_group("nccl" if cuda else "gloo")
    cpu_group = dist.new_group(backend="gloo") if cuda else dist.group.WORLD
    if rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (the first process prints for all)
    return Processes(rank, size, local_size, cpu_group), device


def is_launched() -> bool:
    """Return whether torchrun (or `launch`) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(module: str, args: Sequence[str], nproc: int, nnodes: int = 1, rdzv: str = "") -> None:
    """Run `python -m module` in `nproc` processes on this machine by torchrun; make the same call on each machine.

    rdzv: HOST:PORT where the machines meet; HOST is one of them. Raises `UserError` if a process fails or they do not
    meet, `Stopped` for a signal.
    """
    if torch.__version__.startswith("1."):  # its launcher fails on Python 3.11
        raise UserError(f"several processes need torch 2, this is {torch.__version__}; train with --nproc 1")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the errors below are one line
    if nnodes > 1 and not re.fullmatch(r"[^\s:]+:[0-9]+", rdzv):
        raise UserError("--nnodes needs --rdzv HOST:PORT, the same on every machine")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // nproc)))
    where = ["--rdzv_backend=c10d", f"--rdzv_endpoint={rdzv}", "--rdzv_id=train"] if rdzv else ["--standalone"]
    os.environ[LAUNCHER] = str(os.getpid())
    # No folder for logs: it would stay in TMPDIR.
    options = [f"--nnodes={nnodes}", f"--nproc_per_node={nproc}", "--max_restarts=0", f"--log_dir={os.devnull}", *where]
    handlers = {number: signal.getsignal(number) for number in STOPS}
    try:
        run(parse_args([*options, "--module", module, *args]))
    except ChildFailedError as e:
        # A process that was killed comes first: the others failed without it. SIGTERM is the launcher's own.
        killed = {rank for rank, found in e.failures.items() if found.exitcode < 0 and found.exitcode != -signal.SIGTERM}
        rank, failure = min(e.failures.items(), key=lambda found: (found[0] not in killed, found[1].timestamp))
        error = TrainingDiverged if failure.exitcode == TrainingDiverged.exit_status else UserError
        how = how_it_ended(failure.exitcode)
        raise error(f"process {rank} of the training {how}; the others were stopped") from None
    except SignalException as e:
        raise Stopped(e.sigval) from None
    except RendezvousError as e:
        raise UserError(f"--rdzv {rdzv}: the {nnodes} machines did not find each other: {e}") from None
    finally:
        del os.environ[LAUNCHER]
        for number, handler in handlers.items():  # with torchrun's handlers, forked processes would ignore these signals
            signal.signal(number, handler)


def cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
