"""The gradient of one step: passes over parts of its batch, added up over the passes and over the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import save_file
from local.common.errors import is_out_of_memory
from local.common.out_of_memory import in_halves_on_oom
from local.common.processes import Processes
from local.data.batch import Batch
from model.encoder.subsampling import subsampled
from model.layers.gradient_filter import Exchange, GradientFilter
from model.transducer import Transducer, training_loss

import torch
from torch import Tensor

Losses = dict[str, Tensor]


@dataclass
class Pass:
    """What one backward pass leaves: its batch, losses (simple, pruned, outside: (N,)) and masks (filters, N) or None."""

    batch: Batch
    losses: Losses
    masks: Tensor | None


class StepGradient:
    """Adds up, in `p.grad`, the gradient of scale_simple * simple + scale_pruned * pruned summed over utterances.

    A pass that does not fit into the memory is made in halves: the sum is the same, but the gradient filter then takes its
    median over the half. All processes call `add` equally often and then `total`.
    """

    def __init__(self, model: Transducer, scaler: Any, processes: Processes, device: torch.device) -> None:
        self.params = list(model.parameters())
        self.filters = [m for m in model.modules() if isinstance(m, GradientFilter)]
        self.scaler, self.processes, self.device = scaler, processes, device
        self.clear()

    def clear(self) -> None:
        """Begin a step."""
        self.passes: list[Pass] = []
        self.sums = torch.zeros(6, dtype=torch.float64, device=self.device)
        for p in self.params:
            p.grad = None

    def add(self, batch: Batch, losses_of: Callable[[Batch], Losses], scales: tuple[float, float]) -> None:
        """Forward and backward pass of this process's part. `UserError` naming an utterance that alone is too long."""
        exchange = self._exchange(batch)
        if not len(batch):
            if exchange is not None:
                exchange.finish()
            return

        def work(rows: slice) -> None:
            whole = rows.stop - rows.start == len(batch)
            self._backward(batch if whole else batch.rows(rows), losses_of, scales, exchange if whole else None)

        in_halves_on_oom(work, batch.ids, self.device, "train on")

    def _backward(
        self,
        batch: Batch,
        losses_of: Callable[[Batch], Losses],
        scales: tuple[float, float],
        exchange: Exchange | None,
    ) -> None:
        before = [p.grad for p in self.params]  # out of the reach of a pass that fails midway
        for p in self.params:
            p.grad = None
        try:
            with self._sharing(exchange):
                losses = losses_of(batch)
                simple, pruned = losses["simple"].sum(), losses["pruned"].sum()
                loss = training_loss(simple, pruned, *scales)
                self.scaler.scale(loss).backward()
        except (RuntimeError, MemoryError) as e:
            for p, grad in zip(self.params, before, strict=True):
                p.grad = grad
            if exchange is not None and is_out_of_memory(e):
                exchange.finish()
            raise
        for p, grad in zip(self.params, before, strict=True):
            if grad is not None:
                p.grad = grad if p.grad is None else grad.add_(p.grad)
        masks = [f.mask for f in self.filters if f.mask is not None]
        detached = {name: value.detach() for name, value in losses.items()}
        self.passes.append(Pass(batch, detached, torch.stack(masks) if masks else None))
        counts = torch.tensor([int(subsampled(batch.input_lens).sum()), batch.num_frames, len(batch)])
        self.sums[:3] += torch.stack([loss, simple, pruned]).detach().double()
        self.sums[3:] += counts.to(self.device, non_blocking=True)

    def total(self) -> Tensor:
        """Add up over the processes: `p.grad`, and (6,) float64, which is returned: loss, simple and pruned loss, encoder
        frames, input frames, utterances of the whole step. Nothing waits for a GPU here."""
        self.processes.sum_gradients(self.params)
        return self.processes.sum(self.sums)

    def save_bad(self, folder: Path, name: str) -> tuple[str, list[str], list[str]]:
        """Write the utterances behind a step that is not finite: those whose loss is not or, where only the gradient is
        not, all. All processes call it. Returns "loss" or "gradient", the utterances, the files."""
        bad = [~torch.isfinite(p.losses["simple"] + p.losses["pruned"]).cpu() for p in self.passes]
        what = "loss" if any(self.processes.gather(any(bool(b.any()) for b in bad))) else "gradient"
        ids: list[str] = []
        paths = []
        for i, (one, rows) in enumerate(zip(self.passes, bad, strict=True)):
            keep = rows if what == "loss" else torch.ones_like(rows)
            if keep.any():
                own = "".join(f"-{n}" for n in (self.processes.rank, i) if n)  # of the first process and pass: none
                tensors = {k: getattr(one.batch, k)[keep].clone() for k in ("inputs", "input_lens", "tokens", "token_lens")}
                here = [utterance for utterance, k in zip(one.batch.ids, keep.tolist(), strict=True) if k]
                save_file({"model": {}, "ids": here, **tensors}, folder / f"{name}{own}.pt")
                ids += here
                paths.append(str(folder / f"{name}{own}.pt"))
        found = self.processes.gather((ids, paths))
        return what, [i for ids, _ in found for i in ids], [p for _, paths in found for p in paths]

    def _exchange(self, batch: Batch) -> Exchange | None:
        """How the filters see the sequences of the other processes, where these have parts of the same micro-batch."""
        batch_of = batch.batch_of
        if not batch_of or not self.filters:
            return None
        return Exchange(batch_of, self.processes.rank, batch.share_rows, len(self.filters), self.device)

    @contextmanager
    def _sharing(self, exchange: Exchange | None) -> Iterator[None]:
        for module in self.filters:
            module.exchange = exchange
        try:
            yield
        finally:
            for module in self.filters:
                module.exchange = None


def make_scaler(enabled: bool) -> Any:
    """The gradient scaler of fp16, under the name that this torch gives it."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)
