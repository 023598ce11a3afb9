"""Numbers of a training run: train.csv, valid.csv, curves (train.logger) and the note beside the progress."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from local.common.atomic import atomic_write
from local.common.errors import UserError
from local.training.loggers import Logger
from local.training.step import StepSums
from local.training.validation import DevScores
from model.transducer import Transducer

import torch
from torch import Tensor

LAYER = re.compile(r"encoder\.encoder\.layers\.(\d+)\.")


class Telemetry:
    """Collects the numbers of steps; `flush` writes one row. Losses are per encoder frame, in nats.

    gradient_norm and gradient_norm_<part> are taken after the gradient filter and before clipping.
    filter_<what>_mask_<layer> are over the sequences of all steps since the last row; filter_share_below_half_<layer> is the
    share of those with a mask below 0.5.
    """

    def __init__(self, exp_dir: Path, model: Transducer, step: int, logger: Logger) -> None:
        """Remove the rows after `step`, which a killed run left, so that each step appears once."""
        self.logger = logger
        self.train_csv = _Table(exp_dir / "train.csv", step)
        self.valid_csv = _Table(exp_dir / "valid.csv", step)
        self.parts = GradientParts(model)
        self.loss = self.dev = ""
        self._reset()

    @property
    def note(self) -> str:
        """The last loss and the last WER of the dev utterances."""
        return ", ".join(filter(None, (self.loss, self.dev)))

    def _reset(self) -> None:
        self.sums: list[StepSums] = []
        self.norms: list[Tensor] = []
        self.outside: list[Tensor] = []
        self.waited = self.seconds = 0.0

    def add(self, sums: StepSums, norms: Tensor, outside: Tensor | None) -> None:
        """Add a step. norms: (parameters,) gradient norms as in `GradientParts`. outside: (N,) as in `Losses`."""
        self.sums.append(sums)
        self.norms.append(self.parts.norms(norms))
        if outside is not None:
            self.outside.append(outside.mean())

    def add_time(self, waited: float, seconds: float) -> None:
        """Add the seconds of one batch; `waited`: those spent waiting for its data."""
        self.waited += waited
        self.seconds += seconds

    def flush(self, epoch: int, step: int, lr: float, masks: dict[str, float]) -> None:
        """Write the row of the steps since the last one, if there are any; masks: the columns of `MaskLog`."""
        if not self.sums:
            return
        frames, input_frames = (int(sum(getattr(s, name) for s in self.sums)) for name in ("frames", "input_frames"))
        loss, simple, pruned, ctc, consistency = torch.tensor([s[:5] for s in self.sums]).double().sum(dim=0).tolist()
        norm, *by_part = torch.stack(self.norms).double().mean(dim=0).tolist()
        row: dict[str, float] = {
            "loss": loss / frames,
            "simple_loss": simple / frames,
            "pruned_loss": pruned / frames,
            **({"ctc_loss": ctc / frames} if ctc else {}),
            **({"consistency_loss": consistency / frames} if consistency else {}),
            "gradient_norm": norm,
            "lr": lr,
            "data_wait_share": self.waited / self.seconds if self.seconds else 0.0,
            "frames_per_second": input_frames / self.seconds if self.seconds else 0.0,
            "outside_pruned_band": torch.stack(self.outside).mean().item() if self.outside else float("nan"),
            **{f"gradient_norm_{part}": value for part, value in zip(self.parts.names, by_part, strict=True)},
            **masks,
        }
        self.train_csv.write(epoch, step, row)
        self.logger.add_scalars(step, {f"train/{name}": value for name, value in row.items()})
        self.loss = f"loss {row['loss']:.4f}"
        self._reset()

    def add_valid(self, epoch: int, step: int, scores: Mapping[str, DevScores]) -> None:
        """Write and print the scores on the dev parts of each corpus by its mark: "" for the first, "@NAME" for others."""
        row: dict[str, float] = {}
        notes = []
        for mark, own in scores.items():
            values = {"simple_loss": own.simple, "pruned_loss": own.pruned, "ctc_loss": own.ctc}
            values |= {"sharpness": own.sharpness, "wer": own.wer}
            row |= {name + mark: value for name, value in values.items() if value is not None}
            text = f"dev{mark} simple {own.simple:.4f}, pruned {own.pruned:.4f}"
            text += f"{'' if own.ctc is None else f', CTC {own.ctc:.4f}'} nats per frame"
            if own.sharpness is not None:
                text += f", sharpness {own.sharpness:.2f}"
            if own.wer is not None:
                notes.append(f"dev{mark} {own.rate} {own.wer:.1f} %")
                text += f", {own.rate} {own.wer:.1f} % ({own.utterances} utterances)"
            print(f"epoch {epoch}, {step} batches: {text}", flush=True)
        self.dev = ", ".join(notes) or self.dev
        self.valid_csv.write(epoch, step, row)
        self.logger.add_scalars(step, {f"valid/{name}": value for name, value in row.items()})

    def close(self) -> None:
        """End the run of the logger."""
        self.logger.close()


def part_of(name: str) -> str:
    """Return the part of the model that the parameter `name` belongs to: encoder_embed, layer_0, decoder, joiner, ..."""
    layer = LAYER.match(name)
    return f"layer_{layer[1]}" if layer else name.removeprefix("encoder.").split(".")[0]


class GradientParts:
    """Norms of the gradient by part of the model: the front end, every layer, the decoder, the joiner, the heads.

    Parameters that do not change (train.freeze) take no part.
    """

    def __init__(self, model: Transducer) -> None:
        """Assign every parameter of `model` to its part."""
        found = [(part_of(name), p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = list(dict.fromkeys(part for part, _ in found))
        places = [self.names.index(part) for part, _ in found]
        self.place = torch.tensor(places, device=found[0][1].device)

    def norms(self, norms: Tensor) -> Tensor:
        """Return the norms of the whole model and of its parts, (1 + parts,), from those of its parameters, (parameters,)."""
        squares = norms.detach().float().square()
        parts = squares.new_zeros(len(self.names)).index_add_(0, self.place, squares)
        return torch.cat([parts.sum().unsqueeze(0), parts]).sqrt()


class _Table:
    """A CSV file with the columns epoch, step and those of its rows; rows are appended."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        self.last = 0  # step of the last row
        if path.is_file():
            header, *rows = self._read() or [[]]
            earlier = [r for r in rows if len(r) == len(header) > 1 and r[1].isdecimal() and int(r[1]) <= step]
            self._rewrite(header, earlier)

    def _read(self) -> list[list[str]]:
        try:
            with self.path.open(newline="", encoding="utf-8") as f:
                return list(csv.reader(f))
        except (UnicodeDecodeError, csv.Error) as e:
            raise UserError(f"{self.path}: damaged ({e}); remove it to resume without its earlier rows") from None

    def _rewrite(self, columns: list[str], rows: list[list[str]]) -> None:
        self.columns, self.last = columns, int(rows[-1][1]) if rows else 0
        with atomic_write(self.path) as tmp, tmp.open("w", newline="", encoding="utf-8") as f:
            csv.writer(f, lineterminator="\n").writerows([columns, *rows] if columns else [])

    def write(self, epoch: int, step: int, row: dict[str, float]) -> None:
        """Append a row; it replaces one of the same step, as after a kill. New columns stay empty in earlier rows."""
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
