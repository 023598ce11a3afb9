"""Measure head steps of one loss backend for bench_loss.py, which starts this program and asks it by JSON lines.

A head step is everything between the encoder and the gradients: the two simple projections, the simple loss, the ranges,
the joiner's projections, the pruned loss, and the backward pass of 0.5 * simple + pruned.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
from collections.abc import Callable
from typing import Any

from benchmarks.worker import serve
from local.common.allocator import release_free_memory
from local.common.meter import Meter
from model.loss import get_backend
from tests.loss.definition import reference

import numpy as np
import torch
from torch import Tensor, nn

LM_SCALE = 0.25


class Head(nn.Module):
    """The simple projections, the joiner's projections and its output layer, all linear."""

    def __init__(self, width: int, classes: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.am, self.lm, self.enc, self.dec, self.out = (
            nn.Linear(width, c, dtype=dtype) for c in (classes, classes, width, width, classes)
        )


class Problem:
    """Encoder and decoder output, tokens and lengths of a batch, made by numpy so that every version of torch gets the same."""

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
        """Return the tensors that get gradients."""
        return [self.encoder_out, self.decoder_out, *self.head.parameters()]


def give_back() -> None:
    """Return freed memory to the system, so that a step does not reuse what an earlier one freed (glibc)."""
    gc.collect()
    release_free_memory()


def head_step(backend: Any, p: Problem, meter: Meter, autocast: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """Make one step and return the losses (N,) of the simple and the true joiner."""
    with autocast():
        with meter.of("simple projections"):
            am, lm = p.head.am(p.encoder_out), p.head.lm(p.decoder_out)
        with meter.of("simple loss"):
            simple, grads = backend.simple_loss(am, lm, p.tokens, p.boundary, lm_scale=LM_SCALE)
        with meter.of("ranges"):
            ranges = backend.prune_ranges(*grads, p.boundary, p.s_range) if p.ranges is None else p.ranges
        with meter.of("joiner projections"):
            enc, dec = p.head.enc(p.encoder_out), p.head.dec(p.decoder_out)
        with meter.of("pruned loss"):
            pruned = backend.pruned_loss(enc, dec, p.head.out.weight, p.head.out.bias, p.tokens, ranges, p.boundary)
    with meter.of("backward"):
        (0.5 * simple + pruned).sum().backward()
    return simple.detach(), pruned.detach()


def exact_losses(p: Problem) -> dict[str, list]:
    """Return the float64 definition's losses, simple, pruned and full, and its ranges."""
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
    """Make a step for memory if the request asks for it, and one for time; return MiB and seconds by part, and the losses."""
    if request["kind"] == "exact":
        return exact_losses(Problem(request, torch.float64, device))
    problem = Problem(request, torch.float32, device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.bfloat16)

    def autocast() -> Any:
        return torch.autocast(device.split(":")[0], dtype=dtype, enabled=precision != "float32")

    result: dict[str, Any] = {}
    meter = Meter(torch.device(device))
    if request["memory"]:
        # The first calls of k2 and numba compile and allocate memory that stays, at any size.
        small = {k: v for k, v in request.items() if k != "ranges"} | {"lengths": [[20, 5]]}
        head_step(backend, Problem(small, torch.float32, device), meter, autocast)
        give_back()
        meter.reset()
        base = meter.in_use()
        head_step(backend, problem, meter, autocast)
        result["mib"] = {part: peak - base for part, peak in meter.peak_mib.items()}
        for leaf in problem.leaves():
            leaf.grad = None
    meter.reset()
    simple, pruned = head_step(backend, problem, meter, autocast)
    return {**result, "seconds": meter.seconds, "simple": simple.tolist(), "pruned": pruned.tolist()}


def main() -> None:
    """Run the program."""
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
