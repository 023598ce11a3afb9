"""Numbers of a training run: train.csv, valid.csv, outliers.tsv and TensorBoard, over the batches between two lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write
from local.common.errors import UserError
from model.layers.gradient_filter import GradientFilter
from model.transducer import Transducer

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

DAMPED = 0.5  # a mask below it counts as damped
LAYER = re.compile(r"encoder\.encoder\.layers\.(\d+)\.")


class Telemetry:
    """Collects without waiting for a GPU; `flush` writes one row. Losses are per encoder frame, in nats.

    gradient_norm and gradient_norm_<part> are taken before clipping and after the filter; filter_<what>_mask_<layer> are
    over the sequences of all batches since the last row, filter_share_below_half_<layer> the share with a mask below 0.5.
    """

    def __init__(self, exp_dir: Path, model: Transducer, step: int) -> None:
        """Rows of earlier runs after `step` (lost with a kill) are removed, so that each step stands once."""
        has_filter = any(isinstance(m, GradientFilter) for m in model.modules())
        self.writer = SummaryWriter(str(exp_dir / "tensorboard"), purge_step=step + 1)
        self.train_csv = _Table(exp_dir / "train.csv", step)
        self.valid_csv = _Table(exp_dir / "valid.csv", step)
        self.outliers = Outliers(exp_dir / "outliers.tsv") if has_filter else None
        self.parts = GradientParts(model)
        self.note = ""
        self._reset()

    def _reset(self) -> None:
        self.sums: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.outside: list[Tensor] = []
        self.batches = self.frames = self.input_frames = 0
        self.waited = self.seconds = 0.0

    def add(self, losses: Sequence[Tensor], norms: Tensor, outside: Tensor | None, frames: int, input_frames: int) -> None:
        """One step: its losses (all, simple, pruned; summed), the gradient's norm by parameter as `GradientParts` takes
        it, `outside` (N,) or None, encoder frames and input frames."""
        self.sums.append(torch.stack([x.detach() for x in losses]).float())
        self.norms.append(self.parts.of(norms))
        if outside is not None:
            self.outside.append(outside.detach().mean())
        self.batches += 1
        self.frames += frames
        self.input_frames += input_frames

    def add_masks(self, step: int, ids: list[str], masks: Tensor) -> None:
        """The filters' masks (layers, N) of N utterances of a step."""
        self.masks.append(masks)
        if self.outliers is not None:
            self.outliers.add(step, ids, masks)

    def add_time(self, waited: float, seconds: float) -> None:
        """Seconds that one batch took, and how many of them were spent waiting for its data."""
        self.waited += waited
        self.seconds += seconds

    def flush(self, epoch: int, step: int, lr: float) -> None:
        """Write the row of the batches since the last one, if there are any."""
        if self.batches == 0:
            return
        loss, simple, pruned = torch.stack(self.sums).double().sum(dim=0).tolist()
        norm, *by_part = torch.stack(self.norms).double().mean(dim=0).tolist()
        row: dict[str, float] = {
            "loss": loss / self.frames,
            "simple_loss": simple / self.frames,
            "pruned_loss": pruned / self.frames,
            "gradient_norm": norm,
            "lr": lr,
            "data_wait_share": self.waited / self.seconds if self.seconds else 0.0,
            "frames_per_second": self.input_frames / self.seconds if self.seconds else 0.0,
        }
        row["outside_pruned_band"] = torch.stack(self.outside).mean().item() if self.outside else float("nan")
        row.update({f"gradient_norm_{part}": value for part, value in zip(self.parts.names, by_part, strict=True)})
        if self.masks:
            row.update(mask_statistics(torch.cat(self.masks, dim=1)))
        self.train_csv.write(epoch, step, row)
        for name, value in row.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        if self.outliers is not None:
            self.outliers.write()
        self.note = f"loss {row['loss']:.4f}"
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep of it: the counts of outliers.tsv."""
        return self.outliers.state_dict() if self.outliers is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from what `state_dict` returned."""
        if self.outliers is not None:
            self.outliers.load_state_dict(state)

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


def mask_statistics(masks: Tensor) -> dict[str, float]:
    """Smallest, median and mean mask and the share below 0.5 of every layer. masks: (layers, sequences)."""
    values = torch.stack(
        [masks.min(dim=1).values, masks.median(dim=1).values, masks.mean(dim=1), (masks < DAMPED).float().mean(dim=1)], dim=1
    ).tolist()
    names = ("min_mask", "median_mask", "mean_mask", "share_below_half")
    return {f"filter_{name}_{i}": v for i, layer in enumerate(values) for name, v in zip(names, layer, strict=True)}


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: encoder_embed, layer_0, ..., decoder, joiner, ..."""
    layer = LAYER.match(name)
    return f"layer_{layer[1]}" if layer else name.removeprefix("encoder.").split(".")[0]


class GradientParts:
    """Norms of the gradient by part of the model: the front end, every layer, the decoder, the joiner, the heads."""

    def __init__(self, model: Transducer) -> None:
        found = [(part_of(name), p) for name, p in model.named_parameters()]
        self.names = list(dict.fromkeys(part for part, _ in found))
        places = [self.names.index(part) for part, _ in found]
        self.place = torch.tensor(places, device=found[0][1].device)

    def of(self, norms: Tensor) -> Tensor:
        """norms (parameters,), in the model's order -> (1 + parts,), the whole model's first."""
        squares = norms.detach().float().square()
        parts = squares.new_zeros(len(self.names)).index_add_(0, self.place, squares)
        return torch.cat([parts.sum().unsqueeze(0), parts]).sqrt()


class Outliers:
    """outliers.tsv: the utterances that the filter damped to less than half in any layer, with how often it did."""

    HEAD = ("utterance", "steps_damped", "lowest_mask", "layer", "last_step")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending: list[tuple[int, list[str], Tensor]] = []
        self.found: dict[str, list[Any]] = {}  # utterance: the other columns
        self.changed = True  # since the file was written

    def add(self, step: int, ids: list[str], masks: Tensor) -> None:
        """One batch's masks (layers, N); read later, so that nothing waits for a GPU here."""
        self.pending.append((step, ids, masks))

    def _absorb(self) -> None:
        if not self.pending:
            return
        masks = torch.cat([m for _, _, m in self.pending], dim=1)
        lowest, layers = (values.cpu() for values in masks.min(dim=0))
        names = [(step, name) for step, ids, _ in self.pending for name in ids]
        for i in (lowest < DAMPED).nonzero().flatten().tolist():
            step, name = names[i]
            times, least, layer, _ = self.found.get(name, (0, 1.0, 0, 0))
            mask = float(lowest[i])
            least, layer = (mask, int(layers[i])) if mask < least else (least, layer)
            self.found[name] = [times + 1, least, layer, step]
            self.changed = True
        self.pending = []

    def write(self) -> None:
        """Write the file, the most often damped first, where there is something new."""
        self._absorb()
        if not self.changed:
            return
        self.changed = False
        rows = sorted(self.found.items(), key=lambda item: (-item[1][0], item[1][1], item[0]))
        with atomic_write(self.path) as tmp, tmp.open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, delimiter="\t", lineterminator="\n")
            writer.writerow(self.HEAD)
            writer.writerows([name, times, f"{least:.3g}", layer, step] for name, (times, least, layer, step) in rows)

    def state_dict(self) -> dict[str, Any]:
        """All that was found so far."""
        self._absorb()
        return {name: list(values) for name, values in self.found.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.found = {name: list(values) for name, values in state.items()}


class _Table:
    """A CSV file with the columns epoch, step and those of its rows; appended to, one line a row."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        self.last = 0  # step of the last row
        if path.is_file():
            header, *rows = self._read() or [[]]
            kept = [r for r in rows if len(r) == len(header) > 1 and r[1].isdecimal() and int(r[1]) <= step]
            self._rewrite(header, kept)
            self.last = int(kept[-1][1]) if kept else 0

    def _read(self) -> list[list[str]]:
        try:
            with self.path.open(newline="", encoding="utf-8") as f:
                return list(csv.reader(f))
        except (UnicodeDecodeError, csv.Error) as e:
            raise UserError(f"{self.path}: damaged ({e}); move it away to go on without its earlier rows") from None

    def _rewrite(self, columns: list[str], rows: list[list[str]]) -> None:
        self.columns = columns
        with atomic_write(self.path) as tmp, tmp.open("w", newline="", encoding="utf-8") as f:
            csv.writer(f, lineterminator="\n").writerows([columns, *rows] if columns else [])

    def write(self, epoch: int, step: int, row: dict[str, float]) -> None:
        """Append a row; one of the same step, from before a kill or from another validation, is replaced.

        Columns that earlier rows lack (of an older version, or switched on since) stay empty there.
        """
        new = [name for name in ("epoch", "step", *row) if name not in self.columns]
        if new:
            rows = self._read()[1:] if self.columns else []
            self._rewrite([*self.columns, *new], [r + [""] * len(new) for r in rows])
        if step == self.last:
            self._rewrite(self.columns, [r for r in self._read()[1:] if int(r[1]) != step])
        self.last = step
        values = {"epoch": str(epoch), "step": str(step), **{name: f"{v:.6g}" for name, v in row.items()}}
        with self.path.open("a", newline="", encoding="utf-8") as f:
            csv.writer(f, lineterminator="\n").writerow([values.get(name, "") for name in self.columns])
