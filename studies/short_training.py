"""Shared parts of the studies of norms and optimisers: small models, the same batches for every run, tables and plots.

Runs are independent jobs with one thread each and run in parallel, so that their numbers do not depend on the cores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from local.common.children import process_pool
from local.common.csv_table import write_table
from local.common.errors import UserError
from local.common.progress import Progress
from local.config import config_from_dict, to_dict
from local.config.schema import Config, LossConfig
from local.corpus.corpus_yaml import load_corpus
from local.corpus.shard_store import shard_store
from local.data.batch import Batch
from local.data.dataset import AsrDataset
from local.data.tokenizer import Tokenizer, lang_dir
from local.data.training_cuts import ShuffledCuts
from local.training.losses import forward_losses
from local.training.run_length import warmed_up
from model.encoder.subsampling import subsampled
from model.transducer import Transducer, pruned_scale, training_loss

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENCODER = {"rnn": "lstm", "num_layers": 3, "d_model": 64, "rnn_hidden_size": 128, "dim_feedforward": 128}
SMALL = (
    *(f"model.encoder.{key}={value}" for key, value in ENCODER.items()),
    *("model.decoder.dim=64", "model.joiner.dim=64", "lm.dim=128", "lm.hidden=128", "lm.num_layers=1"),
    *("lm.batch_tokens=500", "train.warm_step=10", "train.warm_share=0"),
)
LARGEST = 32  # utterances of similar length in a group; a batch consists of the first ones of a group
WINDOW = 16  # groups that are sorted by length together
POOL = 20_000  # training utterances, or sentences, to draw from
HELD_OUT = 32  # dev utterances of the held-out loss
MARKERS = "osv^DX"
Row = dict[str, Any]
Job = TypeVar("Job")
Result = TypeVar("Result")


def small_config(cfg: Config, *overrides: str) -> Config:
    """Return the experiment's settings with a model of 0.5 M parameters, a warm-up of ten batches, and `overrides`."""
    return config_from_dict(to_dict(cfg), [*SMALL, *overrides], where="the study")


class Speech:
    """Training batches of a prepared corpus and one held-out batch, without augmentation, the same for all runs.

    Batches depend only on train.seed. A batch of fewer utterances has the first utterances of a larger one.
    """

    def __init__(self, cfg: Config, data_dir: Path) -> None:
        """Draw the utterances.

        Raises:
            UserError: data_dir is not prepared, or the training or dev parts have no utterance.
        """
        self.seed = cfg.train.seed
        lang = lang_dir(data_dir, cfg.lang)
        self.tokenizer = Tokenizer.from_file(lang / "bpe.model")
        corpus = load_corpus(data_dir / "corpus.yaml", cfg.data)
        store = shard_store(data_dir, cfg.data, corpus)
        self.dataset = AsrDataset(cfg, self.tokenizer, None, augment=False, epoch=0, stores=[store])
        precomputed = cfg.features.type == "precomputed"
        folder = data_dir / ("features" if precomputed else "cuts")

        def draw(parts: Sequence[str], most: int) -> list[Cut]:
            cuts = ShuffledCuts([folder / f"{part}.jsonl.gz" for part in parts], lang, self.seed, False, precomputed)
            drawn = [cuts.cut(number) for number in cuts.order(0)[:most].tolist()]
            if not drawn:
                raise UserError(f"{folder}: no utterance in {', '.join(parts)}")
            return sorted(drawn, key=lambda cut: (cut.duration, cut.id))

        self.train, self.dev = draw(corpus.train, POOL), draw(corpus.dev, HELD_OUT)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield training batches of `size` utterances (at most `LARGEST`) of similar length, without end."""
        lengths = np.array([cut.duration for cut in self.train])
        for epoch in itertools.count():
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(len(lengths))
            windows = np.split(order, range(WINDOW * LARGEST, len(order), WINDOW * LARGEST))
            order = np.concatenate([window[np.argsort(lengths[window])] for window in windows])
            whole = max(len(order) // LARGEST, 1)
            for first in rng.permutation(whole) * LARGEST:
                group = rng.permutation(order[first : first + LARGEST])
                yield self._load([self.train[i] for i in group[:size]])

    def held_out(self, size: int = HELD_OUT) -> list[Batch]:
        """Return the held-out utterances in batches of `size`, the shortest first."""
        return [self._load(self.dev[first : first + size]) for first in range(0, len(self.dev), size)]

    def _load(self, cuts: list[Cut]) -> Batch:
        batch = self.dataset[CutSet.from_cuts(cuts)]
        if not batch.ids:
            raise UserError(f"cannot load any of the utterances {', '.join(batch.skipped[:5])}")
        return batch


def utterance_losses(model: Transducer, batch: Batch, scales: LossConfig, warmup: float) -> dict[str, Tensor]:
    """Losses (N,) of a batch in nats: `simple`, `pruned`, and `loss`, in which training combines them at that warm-up."""
    found = forward_losses(model, batch, warmup=warmup)
    return {"simple": found.simple, "pruned": found.pruned, "loss": training_loss(found, scales, pruned_scale(warmup))}


@torch.no_grad()
def held_out_losses(model: Transducer, batches: list[Batch], scales: LossConfig) -> dict[str, float]:
    """Return the losses in evaluation mode, weighted as after the warm-up, in nats per output frame.

    The model is in training mode afterwards.
    """
    model.eval()
    parts = [utterance_losses(model, batch, scales, warmup=2.0) for batch in batches]
    model.train()
    frames = sum(int(subsampled(batch.input_lens).sum()) for batch in batches)
    return {name: float(sum(part[name].double().sum() for part in parts)) / frames for name in parts[0]}


def train(
    model: nn.Module,
    optimizer: Optimizer,
    loss_at: Callable[[int], Tensor],
    measure: Callable[[int], Row],
    *,
    steps: int,
    every: int,
    clip_norm: float | None = None,
) -> list[Row]:
    """Train for `steps` batches and return the rows measured before the first, after every `every` and after the last.

    loss_at: step -> the scalar to minimise. measure: number of trained batches -> numbers, with a held-out `loss`. A
    non-finite `loss` ends the run; it is in the last row. clip_norm: largest norm of the whole gradient.
    """
    rows: list[Row] = []
    model.train()
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            rows.append({"step": step, **measure(step)})
            if step == steps or not math.isfinite(rows[-1]["loss"]):
                break
        optimizer.zero_grad(set_to_none=True)
        loss_at(step).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
    return rows


def train_recogniser(
    model: Transducer,
    optimizer: Optimizer,
    speech: Speech,
    cfg: Config,
    size: int,
    measure: Callable[[int], Row],
    *,
    steps: int,
    every: int,
) -> list[Row]:
    """Call `train` on batches of `size` utterances, with the recipe's loss (a sum over the batch) and gradient.control."""
    batches = speech.batches(size)

    def loss_at(step: int) -> Tensor:
        warmup = warmed_up(step, cfg.train.warm_step)
        return utterance_losses(model, next(batches), cfg.loss, warmup)["loss"].sum()

    clip_norm = cfg.gradient.clip_norm if cfg.gradient.control == "clip" else None
    return train(model, optimizer, loss_at, measure, steps=steps, every=every, clip_norm=clip_norm)


def run_all(function: Callable[[Job], Result], jobs: Sequence[Job], desc: str) -> list[Result]:
    """Return function(job) for all jobs, in their order, computed by as many one-thread processes as torch has threads.

    function and jobs must be picklable. An exception of a job is raised here, and jobs that have not started are dropped.
    """
    workers = min(torch.get_num_threads(), len(jobs))
    with Progress(len(jobs), desc, "runs") as progress:
        if workers == 1:
            return _one_by_one(function, jobs, progress)
        # a fork would share torch's threads, which then hang
        with process_pool(workers, desc, "spawn", torch.set_num_threads) as pool:
            futures = [pool.submit(function, job) for job in jobs]
            for future in as_completed(futures):
                future.result()
                progress.update()
            return [future.result() for future in futures]


def _one_by_one(function: Callable[[Job], Result], jobs: Sequence[Job], progress: Progress) -> list[Result]:
    """Return function(job) for all jobs with one thread, as the processes have."""
    threads, results = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for job in jobs:
            results.append(function(job))
            progress.update()
    finally:
        torch.set_num_threads(threads)
    return results


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the same keys as CSV."""
    write_table(path, list(rows[0]), rows)


def number(value: float) -> str:
    """Format a number for a table: three digits, or `not finite`."""
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def extremes(values: dict[str, float]) -> str:
    """Return a text such as `lowest for a (1.2), highest for b (3.4); not finite for c`."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    parts = []
    if finite:
        low, high = min(finite, key=lambda name: finite[name]), max(finite, key=lambda name: finite[name])
        parts.append(f"lowest for {low} ({number(finite[low])}), highest for {high} ({number(finite[high])})")
    if lost := [name for name in values if name not in finite]:
        parts.append(f"not finite for {', '.join(lost)}")
    return "; ".join(parts)


def draw_curves(axes: Axes, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw the points (x, y) of each name as one line, with a logarithmic y axis and a marker by the names' order."""
    from matplotlib.ticker import LogFormatter  # takes half a second

    class Plain(LogFormatter):
        """Labels such as 0.01 for powers of ten; LogFormatter chooses which ticks have one."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    for i, (name, points) in enumerate(curves.items()):
        x, y = [x for x, _ in points], [y for _, y in points]
        axes.plot(x, y, marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1.5, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain(minor_thresholds=(2.0, 0.7)))
    axes.grid(alpha=0.3, which="both")
