"""One backend of the loss in one interpreter: runs head steps that it is sent as JSON lines, answers with JSON lines.

A head step is everything between the encoder and the gradients: the two simple projections, the simple loss, the ranges,
the joiner's projections, the pruned loss, and the backward pass of 0.5 * simple + pruned. bench_loss.py starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.worker import serve
from local.common.allocator import release_free_memory
from model.loss import get_backend
from tests.loss import definition as reference

import numpy as np
import torch
from torch import Tensor, nn

LM_SCALE = 0.25
MIB = 1 << 20


class Head(nn.Module):
    """The simple projections, the joiner's projections and its output layer, all linear."""

    def __init__(self, width: int, classes: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.am, self.lm, self.enc, self.dec, self.out = (
            nn.Linear(width, c, dtype=dtype) for c in (classes, classes, width, width, classes)
        )


class Problem:
    """Encoder and decoder output, tokens and lengths of a batch; numpy makes them, so that every torch gets the same."""

    def __init__(self, request: dict[str, Any], dtype: torch.dtype, device: str) -> None:
        random = np.random.default_rng(request["seed"])
        lengths, width, classes = request["lengths"], request["width"], request["classes"]
        n, t, u = len(lengths), max(t for t, _ in lengths), max(u for _, u in lengths)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = random.standard_normal(shape, dtype=np.float32) * scale
            return torch.from_numpy(values).to(device, dtype)

        self.head = Head(width, classes, dtype).to(device)
        with torch.no_grad():
            for p in self.head.parameters():
                p.copy_(normal(*p.shape, scale=width**-0.5))
        self.encoder_out = normal(n, t, width).requires_grad_()
        self.decoder_out = normal(n, u + 1, width).requires_grad_()
        self.tokens = torch.from_numpy(random.integers(1, classes, (n, u))).to(device)
        self.boundary = torch.tensor([[0, 0, u, t] for t, u in lengths], device=device)
        self.s_range = request["s_range"]
        self.ranges = torch.tensor(request["ranges"], device=device) if "ranges" in request else None

    def leaves(self) -> list[Tensor]:
        return [self.encoder_out, self.decoder_out, *self.head.parameters()]


class Meter:
    """Seconds and peak memory (above what was in use before the step) of each part of a step."""

    def __init__(self, device: str, memory: bool) -> None:
        self.cuda, self.memory = device.startswith("cuda"), memory
        self.seconds: dict[str, float] = {}
        self.mib: dict[str, float] = {}
        if memory and not self.cuda:
            give_back()
        self.base = self.used() if memory else 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self.memory:
            self.reset()
        start = time.perf_counter()
        yield
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - start
        if self.memory:
            self.mib[name] = self.peak() - self.base

    def used(self) -> float:
        return torch.cuda.memory_allocated() / MIB if self.cuda else _status("VmRSS")

    def peak(self) -> float:
        if self.cuda:
            return torch.cuda.max_memory_allocated() / MIB
        try:
            return _status("VmHWM")
        except FileNotFoundError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if platform.system() == "Darwin" else 1024)

    def reset(self) -> None:
        """Forget the peak so far; on a CPU this needs Linux, elsewhere the peak of a part is that of all before it."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Return freed memory to the system, so that a step does not run in the room that one before it left (glibc)."""
    gc.collect()
    release_free_memory()


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise FileNotFoundError(key)


def head_step(backend: Any, p: Problem, meter: Meter, autocast: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """One step; returns the losses (N,) of the simple and the true joiner."""
    with autocast():
        with meter.part("simple projections"):
            am, lm = p.head.am(p.encoder_out), p.head.lm(p.decoder_out)
        with meter.part("simple loss"):
            simple, grads = backend.simple_loss(am, lm, p.tokens, p.boundary, lm_scale=LM_SCALE)
        with meter.part("ranges"):
            ranges = backend.prune_ranges(*grads, p.boundary, p.s_range) if p.ranges is None else p.ranges
        with meter.part("joiner projections"):
            enc, dec = p.head.enc(p.encoder_out), p.head.dec(p.decoder_out)
        with meter.part("pruned loss"):
            pruned = backend.pruned_loss(enc, dec, p.head.out.weight, p.head.out.bias, p.tokens, ranges, p.boundary)
    with meter.part("backward"):
        (0.5 * simple + pruned).sum().backward()
    return simple.detach(), pruned.detach()


def exact_losses(p: Problem) -> dict[str, list]:
    """The float64 definition's losses, simple, pruned and full, and its ranges."""
    with torch.no_grad():
        am, lm, enc, dec = (
            f(x)
            for f, x in (
                (p.head.am, p.encoder_out),
                (p.head.lm, p.decoder_out),
                (p.head.enc, p.encoder_out),
                (p.head.dec, p.decoder_out),
            )
        )
        simple, grads = reference.simple_loss(am, lm, p.tokens, p.boundary, lm_scale=LM_SCALE)
        ranges = reference.prune_ranges(*grads, p.boundary, p.s_range)
        joiner = (enc, dec, p.head.out.weight, p.head.out.bias, p.tokens)
        pruned = reference.pruned_loss(*joiner, ranges, p.boundary)
        full = reference.full_loss(*joiner, p.boundary)
    return {"simple": simple.tolist(), "pruned": pruned.tolist(), "full": full.tolist(), "ranges": ranges.tolist()}


def answer(request: dict[str, Any], backend: Any, device: str, precision: str) -> dict[str, Any]:
    """Warm up, a step for memory where it is asked for, and one for time."""
    if request["kind"] == "exact":
        return exact_losses(Problem(request, torch.float64, device))
    problem = Problem(request, torch.float32, device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.bfloat16)

    def autocast() -> Any:
        return torch.autocast(device.split(":")[0], dtype=dtype, enabled=precision != "float32")

    result: dict[str, Any] = {}
    if request["memory"]:
        # The first calls compile and allocate what stays; k2 and numba do so at any size.
        small = {k: v for k, v in request.items() if k != "ranges"} | {"lengths": [[20, 5]]}
        head_step(backend, Problem(small, torch.float32, device), Meter(device, False), autocast)
        memory = Meter(device, True)
        head_step(backend, problem, memory, autocast)
        result["mib"] = memory.mib
        for leaf in problem.leaves():
            leaf.grad = None
    meter = Meter(device, False)
    simple, pruned = head_step(backend, problem, meter, autocast)
    return {**result, "seconds": meter.seconds, "simple": simple.tolist(), "pruned": pruned.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", default="float32")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        backend = get_backend(args.backend)
    except (ImportError, ValueError) as e:
        print(json.dumps({"error": str(e)}), flush=True)
        return
    versions = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if args.device.startswith("cuda"):
        versions["gpu"] = torch.cuda.get_device_name()
    serve(versions, lambda request: answer(request, backend, args.device, args.precision))


if __name__ == "__main__":
    main()
