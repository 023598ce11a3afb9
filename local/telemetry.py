"""Numbers of a training run: train.csv, valid.csv and TensorBoard, averaged over the batches between two lines."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.layers.gradient_filter import GradientFilter
from model.transducer import Transducer


class Telemetry:
    """Collects without waiting for a GPU; `flush` writes one row. Losses are per encoder frame, in nats."""

    def __init__(self, exp_dir: Path, model: Transducer, step: int) -> None:
        """Rows of earlier runs after `step` (lost with a kill) are removed, so that each step stands once."""
        self.writer = SummaryWriter(str(exp_dir / "tensorboard"), purge_step=step + 1)
        self.filters = [m for m in model.modules() if isinstance(m, GradientFilter)]
        self.train_csv = _Table(exp_dir / "train.csv", step)
        self.valid_csv = _Table(exp_dir / "valid.csv", step)
        self.note = ""
        self._reset()

    def _reset(self) -> None:
        self.sums: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.outside: list[Tensor] = []
        self.batches = self.frames = self.input_frames = 0
        self.waited = self.seconds = 0.0

    def add(
        self,
        simple: Tensor,
        pruned: Tensor,
        loss: Tensor,
        norm: Tensor,
        outside: Tensor | None,
        frames: int,
        input_frames: int,
    ) -> None:
        """One batch: summed losses, gradient norm, `outside` (N,) or None, frames after and before subsampling."""
        self.sums.append(torch.stack([loss.detach(), simple.detach(), pruned.detach(), norm.detach()]).float())
        if outside is not None:
            self.outside.append(outside.detach().mean())
        masks = [f.mask.mean() for f in self.filters if f.mask is not None]
        if masks:
            self.masks.append(torch.stack(masks))
        self.batches += 1
        self.frames += frames
        self.input_frames += input_frames

    def add_time(self, waited: float, seconds: float) -> None:
        """Seconds that one batch took, and how many of them were spent waiting for its data."""
        self.waited += waited
        self.seconds += seconds

    def flush(self, epoch: int, step: int, lr: float) -> None:
        """Write the row of the batches since the last one, if there are any."""
        if self.batches == 0:
            return
        loss, simple, pruned, norm = torch.stack(self.sums).double().sum(dim=0).tolist()
        row: dict[str, float] = {
            "loss": loss / self.frames,
            "simple_loss": simple / self.frames,
            "pruned_loss": pruned / self.frames,
            "gradient_norm": norm / self.batches,
            "lr": lr,
            "data_wait_share": self.waited / self.seconds if self.seconds else 0.0,
            "frames_per_second": self.input_frames / self.seconds if self.seconds else 0.0,
        }
        row["outside_pruned_band"] = torch.stack(self.outside).mean().item() if self.outside else float("nan")
        if self.masks:
            for i, mask in enumerate(torch.stack(self.masks).mean(dim=0).tolist()):
                row[f"filter_mean_mask_{i}"] = mask
        self.train_csv.write(epoch, step, row)
        for name, value in row.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        self.note = f"loss {row['loss']:.4f}"
        self._reset()

    def add_valid(self, epoch: int, step: int, simple: float, pruned: float) -> None:
        """Losses on the dev parts, per encoder frame."""
        self.valid_csv.write(epoch, step, {"simple_loss": simple, "pruned_loss": pruned})
        self.writer.add_scalar("valid/simple_loss", simple, step)
        self.writer.add_scalar("valid/pruned_loss", pruned, step)
        self.writer.flush()
        print(f"epoch {epoch}, {step} batches: dev simple {simple:.4f}, pruned {pruned:.4f} nats per frame", flush=True)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        self.writer.close()


class _Table:
    """A CSV file with the columns epoch, step and those of its rows; appended to, one line a row."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if not path.is_file():
            return
        with path.open(newline="") as f:
            rows = list(csv.reader(f))
        kept = [r for i, r in enumerate(rows) if i == 0 or (len(r) == len(rows[0]) and int(r[1]) <= step)]
        with path.open("w", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows(kept)

    def write(self, epoch: int, step: int, row: dict[str, float]) -> None:
        new = not self.path.is_file() or self.path.stat().st_size == 0
        with self.path.open("a", newline="") as f:
            writer = csv.writer(f, lineterminator="\n")
            if new:
                writer.writerow(["epoch", "step", *row])
            writer.writerow([epoch, step, *(f"{v:.6g}" for v in row.values())])
