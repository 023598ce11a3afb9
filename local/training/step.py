"""The gradient of one step: the sum over its micro-batches and over the processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from local.artifacts.checkpoint import save_file
from local.common.errors import UserError
from local.common.out_of_memory import in_halves_on_oom
from local.common.processes import Processes
from local.config.schema import Config
from local.data.batch import Batch
from local.training.losses import Losses, forward_losses
from local.training.mask_log import MaskLog
from model.encoder.subsampling import subsampled
from model.transducer import Transducer, pruned_scale, training_loss

import torch
from torch import Tensor


class StepSums(NamedTuple):
    """Sums over the utterances of a step and over the processes; losses in nats."""

    loss: float
    simple: float
    pruned: float
    ctc: float  # 0 without a CTC head
    consistency: float  # 0 without the consistency loss
    frames: float  # of the encoder's output
    input_frames: float
    utterances: float
    gradient_norm: float  # the L2 norm of the whole gradient


class StepGradient:
    """Adds up the gradient of `training_loss`, summed over utterances, in `p.grad`.

    A micro-batch that does not fit into the memory is processed in halves. The sum stays the same, but the gradient
    filter then takes the median over each half. All processes must call `add` equally often, then `sum_processes`.
    """

    def __init__(
        self, model: Transducer, cfg: Config, scaler: Any, masks: MaskLog, processes: Processes, device: torch.device
    ) -> None:
        """Take `scaler` from `make_scaler`; `masks` records the gradient filters."""
        self.model, self.params = model, [p for p in model.parameters() if p.requires_grad]
        self.precision, self.scales = cfg.train.precision, cfg.loss
        self.scaler, self.masks, self.processes, self.device = scaler, masks, processes, device
        self.clear()

    def clear(self) -> None:
        """Begin a step."""
        self.passes: list[tuple[Batch, Losses]] = []  # without their graphs
        self.sums = torch.zeros(len(StepSums._fields) - 1, dtype=torch.float64, device=self.device)
        for p in self.params:
            p.grad = None

    def add(self, batch: Batch, warmup: float, monitor: bool = False) -> None:
        """Run one micro-batch, which may be empty, forwards and backwards; see `forward_losses`.

        Raises `UserError` with the id of an utterance that alone does not fit into the memory.
        """

        def work(rows: slice) -> None:
            whole = rows.stop - rows.start == len(batch)
            self._backward(batch if whole else batch.rows(rows), warmup, monitor)

        if len(batch):
            in_halves_on_oom(work, batch.ids, self.device, "train on")

    def _backward(self, batch: Batch, warmup: float, monitor: bool) -> None:
        before = [p.grad for p in self.params]  # a pass that fails midway must not change these
        for p in self.params:
            p.grad = None
        try:
            with self.masks.recording(batch.ids if batch.second is None else batch.ids * 2):
                losses = forward_losses(self.model, batch, warmup=warmup, precision=self.precision, monitor=monitor)
                sums = losses.summed()
                loss = training_loss(sums, self.scales, pruned_scale(warmup))
                if not loss.requires_grad:
                    raise UserError("key 'train.freeze': what is left takes no part in the warm-up; set train.warm_step=0")
                self.scaler.scale(loss).backward()
        except (RuntimeError, MemoryError):
            for p, grad in zip(self.params, before, strict=True):
                p.grad = grad
            raise
        for p, grad in zip(self.params, before, strict=True):
            if grad is not None:
                p.grad = grad if p.grad is None else grad.add_(p.grad)
        self.passes.append((batch, losses.detach()))
        counts = torch.tensor([int(subsampled(batch.input_lens).sum()), batch.num_frames, len(batch)])
        none = torch.zeros_like(loss)
        parts = [none if x is None else x for x in (loss, sums.simple, sums.pruned, sums.ctc, sums.consistency)]
        self.sums[:5] += torch.stack(parts).detach().double()
        self.sums[5:] += counts.to(self.device, non_blocking=True)

    def sum_processes(self) -> None:
        """Add up the gradients and the sums of all processes. Does not wait for a GPU."""
        self.processes.sum_gradients(self.params)
        self.processes.sum(self.sums)

    def norms(self) -> Tensor:
        """Return the gradient's norm of each parameter, (parameters,)."""
        return torch.stack(torch._foreach_norm([p.grad if p.grad is not None else torch.zeros_like(p) for p in self.params]))

    def read(self, gradient_norm: Tensor) -> StepSums:
        """Return the sums with the norm, a scalar tensor. This is a step's only wait for a GPU, after all work is queued."""
        return StepSums(*torch.cat([self.sums, gradient_norm.double().unsqueeze(0)]).tolist())

    def outside(self) -> Tensor | None:
        """Return the `outside` of this process's utterances, (N,), if they were monitored."""
        found = [losses.outside for _, losses in self.passes if losses.outside is not None]
        return torch.cat(found) if found else None

    def save_bad(self, folder: Path, name: str) -> tuple[str, list[str], list[str]]:
        """Write the utterances of a non-finite step, or of its non-finite losses, to `folder`. All processes must call this.

        Returns "loss" or "gradient", the ids of the utterances, the paths of the files.
        """
        bad = [~losses.finite().cpu() for _, losses in self.passes]
        what = "loss" if any(self.processes.gather(any(bool(b.any()) for b in bad))) else "gradient"
        ids: list[str] = []
        paths = []
        for i, ((batch, _), rows) in enumerate(zip(self.passes, bad, strict=True)):
            keep = rows if what == "loss" else torch.ones_like(rows)
            if keep.any():
                suffix = "".join(f"-{n}" for n in (self.processes.rank, i) if n)  # first process and pass: none
                names = ("inputs", "input_lens", "tokens", "token_lens", *(["second"] if batch.second is not None else []))
                tensors = {k: getattr(batch, k)[keep].clone() for k in names}
                here = [utterance for utterance, k in zip(batch.ids, keep.tolist(), strict=True) if k]
                save_file({"model": {}, "ids": here, **tensors}, folder / f"{name}{suffix}.pt")
                ids += here
                paths.append(str(folder / f"{name}{suffix}.pt"))
        found = self.processes.gather((ids, paths))
        return what, [i for ids, _ in found for i in ids], [p for _, paths in found for p in paths]


def make_scaler(precision: str, device: torch.device) -> Any:
    """Return the gradient scaler, which does something with fp16 alone. Raises `UserError` for fp16 without a GPU."""
    enabled = precision == "fp16"
    if enabled and device.type != "cuda":
        raise UserError("key 'train.precision': fp16 needs a GPU; bf16 and float32 run on a CPU")
    # The class has another name in torch 1.
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)
