"""The gradient filters' masks, from the backward pass to train.csv and outliers.tsv."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local.common.csv_table import write_table
from local.common.processes import Processes
from model.layers.gradient_filter import GradientFilter

import torch
from torch import Tensor, nn

DAMPED_BELOW = 0.5  # a sequence with a smaller mask counts as damped
OUTLIER_COLUMNS = ("utterance", "steps_damped", "lowest_mask", "layer", "last_step")


class MaskLog:
    """Collects the filters' masks without waiting for a GPU; outliers.tsv counts an utterance's masks below `DAMPED_BELOW`."""

    def __init__(self, model: nn.Module, path: Path, processes: Processes) -> None:
        """Find the filters of `model`; `path` is that of outliers.tsv."""
        self.filters = [m for m in model.modules() if isinstance(m, GradientFilter)]
        self.path, self.processes = path, processes
        self.passes: list[tuple[list[str], Tensor]] = []  # of this step: utterances, masks (filters, N)
        self.steps: list[tuple[int, list[str], Tensor]] = []  # of this process since the last `collect`
        self.row: list[Tensor] = []  # of all processes since the last `flush`
        self.outliers: dict[str, list[Any]] = {}  # utterance: the other columns
        self.changed = True  # since outliers.tsv was written

    @contextmanager
    def recording(self, ids: list[str]) -> Iterator[None]:
        """Record the masks of the backward pass over the utterances `ids` inside; nothing if it fails."""
        for module in self.filters:
            module.mask = None
        yield
        masks = [module.mask for module in self.filters]
        made = next((mask for mask in masks if mask is not None), None)
        if made is not None:  # a layer below all that is trained has no backward pass: nothing is damped there
            self.passes.append((ids, torch.stack([torch.ones_like(made) if mask is None else mask for mask in masks])))

    def end_step(self, step: int, keep: bool) -> None:
        """Count the passes since the last call as those of `step`; keep: False drops them."""
        if keep:
            self.steps += [(step, *one) for one in self.passes]
        self.passes = []

    def collect(self) -> None:
        """Bring the masks of all processes to the first. All processes must call this."""
        gathered = self.processes.gather([(step, ids, masks.cpu()) for step, ids, masks in self.steps])
        self.steps = []
        if self.processes.rank > 0:
            return
        for step, ids, masks in (one for process in gathered for one in process):
            self.row.append(masks)
            self._count(step, ids, masks)

    def _count(self, step: int, ids: list[str], masks: Tensor) -> None:
        lowest, layers = masks.min(dim=0)
        for i in (lowest < DAMPED_BELOW).nonzero().flatten().tolist():
            times, least, layer, last = self.outliers.get(ids[i], (0, 1.0, 0, -1))
            mask = float(lowest[i])
            least, layer = (mask, int(layers[i])) if mask < least else (least, layer)
            times += last != step  # with loss.cr_scale a step has each utterance twice
            self.outliers[ids[i]] = [times, least, layer, step]
            self.changed = True

    def flush(self) -> dict[str, float]:
        """Write outliers.tsv and return the statistics for train.csv of what was collected since the last call."""
        if self.filters and self.changed:
            self._write()
        masks, self.row = self.row, []
        return mask_statistics(torch.cat(masks, dim=1)) if masks else {}

    def _write(self) -> None:
        """Write outliers.tsv; the utterance that was damped most often comes first."""
        found = sorted(self.outliers.items(), key=lambda item: (-item[1][0], item[1][1], item[0]))
        rows = [(name, times, f"{least:.3g}", layer, step) for name, (times, least, layer, step) in found]
        write_table(self.path, OUTLIER_COLUMNS, [dict(zip(OUTLIER_COLUMNS, row, strict=True)) for row in rows], "\t")
        self.changed = False

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of outliers.tsv for a checkpoint."""
        return {name: list(values) for name, values in self.outliers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the values of `state_dict`."""
        self.outliers = {name: list(values) for name, values in state.items()}


def mask_statistics(masks: Tensor) -> dict[str, float]:
    """Return train.csv's columns: each layer's smallest, median, mean mask, and share damped. masks: (layers, sequences)."""
    columns = {
        "min_mask": masks.min(dim=1).values,
        "median_mask": masks.median(dim=1).values,
        "mean_mask": masks.mean(dim=1),
        "share_below_half": (masks < DAMPED_BELOW).float().mean(dim=1),
    }
    return {f"filter_{name}_{i}": float(values[i]) for i in range(len(masks)) for name, values in columns.items()}
