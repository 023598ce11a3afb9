"""Compare the norms at three batch sizes: losses, and the spread of gradients over sequences and layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from local.common.html_page import Page, new_figure
from local.config import config_from_dict, to_dict
from local.config.schema import Config, LossConfig
from local.data.batch import Batch
from model.build import build_model
from model.encoder.subsampling import subsampled
from model.optim import make_optimizer
from model.transducer import Transducer
from studies.short_training import (
    Row,
    Speech,
    draw_curves,
    extremes,
    held_out_losses,
    number,
    run_all,
    small_config,
    train_recogniser,
    utterance_losses,
    write_csv,
)

import torch
from torch import Tensor, nn

NORMS = ("basic", "layer", "batch", "group", "instance", "none")
SIZES = (2, 8, 32)  # utterances per batch
STEPS = 100
EVERY = 10  # batches between two measurements of the held-out loss
SPREAD_EVERY = 20  # batches between two measurements of the gradient; must be a multiple of EVERY
# Without the parts that change the measured gradient or make it random
PLAIN = ("model.encoder.dropout=0", "model.encoder.layer_dropout=0", "model.encoder.balance_prob=0", "gradient.control=none")


@dataclass(frozen=True)
class NormRun:
    """One training. cfg: complete, with the norm."""

    cfg: Config
    data_dir: Path
    size: int
    steps: int


def section(page: Page, cfg: Config, data_dir: Path, steps: int = STEPS) -> None:
    """Train a small recogniser with every norm at every batch size, on the CPU.

    Write norms_loss.csv, norms_spread.csv and their plots to page.folder and add a part to the page.

    Raises:
        UserError: data_dir is not prepared.
    """
    jobs = [
        NormRun(small_config(cfg, f"model.encoder.norm={norm}", "gradient.control=none"), data_dir, size, steps)
        for size in reversed(SIZES)  # the longest first, so that no core works alone at the end
        for norm in NORMS
    ]
    results = run_all(run, jobs, "norms")
    losses = [row for result in results for row in result[0]]
    spread = [row for result in results for row in result[1]]
    write_csv(page.folder / "norms_loss.csv", losses)
    write_csv(page.folder / "norms_spread.csv", spread)
    page.heading("Norms and batch sizes")
    encoder = jobs[0].cfg.model.encoder
    page.text(
        f"A recogniser of {encoder.num_layers} layers of {encoder.rnn_hidden_size} cells is trained with each norm for {steps} "
        f"batches of {', '.join(map(str, SIZES))} utterances, with the recipe's loss and {cfg.optim.name} at {cfg.optim.lr:g}. "
        "The gradient filter is off, since it would change the measured gradient. All runs take the same number of steps, so "
        "that batch sizes differ in noise and statistics, not in the number of updates; runs with larger batches see more "
        "utterances. A batch of fewer utterances has the first utterances of a larger one. Losses are measured on one held-out "
        "batch in evaluation mode. There is only one seed: small differences mean little."
    )
    full = 2 * jobs[0].cfg.train.warm_step  # at this step the pruned loss reaches its full weight
    _plot_losses(page, losses, full if full < steps else 0)
    page.text(
        "The spread of the gradient is measured on the held-out batch, split into batches of the training's size, in training "
        "mode without dropout and balancers. It is measured at the input of each LSTM, only for the path through the LSTM: the "
        "gradient that the filter sees. The spread over sequences is the 95th percentile of the sequences' rms divided by "
        "their median. The spread over layers is the largest norm of a layer's parameter gradient divided by the smallest."
    )
    _plot_spread(page, spread)
    _table(page, losses, spread)


def run(job: NormRun) -> tuple[list[Row], list[Row]]:
    """Run one training and return its rows of norms_loss.csv and of norms_spread.csv."""
    cfg = job.cfg
    speech = Speech(cfg, job.data_dir)
    whole, parts = speech.held_out(), speech.held_out(job.size)
    probe = build_model(config_from_dict(to_dict(cfg), PLAIN), speech.tokenizer.vocab_size)
    torch.manual_seed(cfg.train.seed)
    model = build_model(cfg, speech.tokenizer.vocab_size)
    optimizer = make_optimizer(model.parameters(), cfg.optim)
    name = {"norm": cfg.model.encoder.norm, "batch_size": job.size}
    spread: list[Row] = []

    def measure(step: int) -> Row:
        losses = held_out_losses(model, whole, cfg.loss)
        if step % SPREAD_EVERY == 0 or step == job.steps or not math.isfinite(losses["loss"]):
            probe.load_state_dict(model.state_dict())  # measuring changes the probe's batch statistics, not the model's
            rows = gradient_spread(probe, parts, cfg.loss)
            spread.extend({**name, "step": step, **row} for row in rows)
        return losses

    rows = train_recogniser(model, optimizer, speech, cfg, job.size, measure, steps=job.steps, every=EVERY)
    return [{**name, **row} for row in rows], spread


@contextmanager
def kept_inputs(model: Transducer) -> Iterator[list[list[Tensor]]]:
    """Collect, for each encoder layer, the inputs x (T, N, C) of its LSTM in every forward pass, with their gradients.

    x is a view that only the LSTM uses, so that its gradient excludes the residual path.
    """
    inputs: list[list[Tensor]] = []
    hooks = []

    def keep(found: list[Tensor], module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0].view_as(args[0])
        x.retain_grad()
        found.append(x)
        return (x, *args[1:])

    for layer in model.encoder.encoder.layers.children():
        found: list[Tensor] = []
        inputs.append(found)
        hooks.append(layer.get_submodule("lstm").register_forward_pre_hook(partial(keep, found)))
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def sequence_rms(grad: Tensor, lens: Tensor) -> Tensor:
    """Return the rms (N,) of a gradient (T, N, C) over the channels and the first `lens` frames of each sequence."""
    inside = torch.arange(grad.size(0), device=grad.device)[:, None] < lens
    squares = grad.double().square().sum(dim=2) * inside
    return (squares.sum(dim=0) / (lens * grad.size(2))).sqrt()


def gradients_at_lstms(model: Transducer, batches: list[Batch], scales: LossConfig) -> Tensor:
    """Return the rms (layers, N) of each sequence's gradient at every LSTM's input, for the N sequences of all batches.

    The loss is weighted as after the warm-up and summed over utterances. Afterwards the model's parameters have the
    gradient of all batches.
    """
    model.train()
    model.zero_grad()
    rms = []
    for batch in batches:
        with kept_inputs(model) as inputs:
            utterance_losses(model, batch, scales, warmup=2.0)["loss"].sum().backward()
        lens = subsampled(batch.input_lens)
        rms.append(torch.stack([sequence_rms(x.grad, lens) for (x,) in inputs if x.grad is not None]))
    return torch.cat(rms, dim=1)


def gradient_spread(model: Transducer, batches: list[Batch], scales: LossConfig) -> list[Row]:
    """Return one row per layer on the gradients of the sequences and on the norm of its parameter gradient.

    median_rms: median of the sequences' rms. p95_over_median, max_over_median: 95th percentile and largest / median.
    """
    rows = []
    for i, rms in enumerate(gradients_at_lstms(model, batches, scales)):
        median = rms.median()
        grads = [p.grad.flatten() for p in model.encoder.encoder.layers[i].parameters() if p.grad is not None]
        row = {"median_rms": median, "p95_over_median": rms.quantile(0.95) / median, "max_over_median": rms.max() / median}
        row["parameter_gradient_norm"] = torch.cat(grads).norm()
        rows.append({"layer": i + 1, **{key: float(value) for key, value in row.items()}})
    return rows


def layer_ratio(rows: list[Row]) -> float:
    """Return the largest norm of the layers' parameter gradients divided by the smallest."""
    norms = torch.tensor([row["parameter_gradient_norm"] for row in rows], dtype=torch.float64)
    return float(norms.max() / norms.min())


def _of(rows: list[Row], norm: str, size: int) -> list[Row]:
    return [row for row in rows if row["norm"] == norm and row["batch_size"] == size]


def _last(rows: list[Row], norm: str, size: int) -> list[Row]:
    """Return the rows of a run's last measurement."""
    own = _of(rows, norm, size)
    return [row for row in own if row["step"] == own[-1]["step"]]


def _plot_losses(page: Page, losses: list[Row], first: int) -> None:
    figure = new_figure(5.0)
    panels = figure.subplots(1, len(SIZES), sharey=True)
    for axes, size in zip(panels, SIZES, strict=True):
        points = {n: [(row["step"], row["loss"]) for row in _of(losses, n, size) if row["step"] >= first] for n in NORMS}
        draw_curves(axes, points)
        axes.set(title=f"{size} utterances per batch", xlabel="trained batches")
    panels[0].set_ylabel("held-out loss (nats per output frame)")
    figure.legend(*panels[0].get_legend_handles_labels(), title="norm", loc="outside right upper")
    caption = f"Loss of the held-out batch after {first} batches or more, weighted as after the warm-up; the CSV has all rows."
    page.figure(figure, "norms_loss", caption)


def _plot_spread(page: Page, spread: list[Row]) -> None:
    figure = new_figure(9.0)
    panels = figure.subplots(2, len(SIZES), sharey="row")
    for (above, below), size in zip(panels.T, SIZES, strict=True):
        over_steps = {n: [(r["step"], r["p95_over_median"]) for r in _of(spread, n, size) if r["layer"] == 1] for n in NORMS}
        draw_curves(above, over_steps)
        above.set(title=f"{size} utterances per batch", xlabel="trained batches")
        last = {norm: _last(spread, norm, size) for norm in NORMS}
        draw_curves(below, {n: [(row["layer"], row["parameter_gradient_norm"]) for row in rows] for n, rows in last.items()})
        below.set(xlabel="layer, after the last batch", xticks=[row["layer"] for row in last[NORMS[0]]])
    panels[0, 0].set_ylabel("gradient rms of sequences at first LSTM,\n95th percentile / median")
    panels[1, 0].set_ylabel("norm of the layer's parameter gradient")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), title="norm", loc="outside right upper")
    caption = "Top: spread of the gradient over the held-out sequences. Bottom: gradient norms of the layers after training."
    page.figure(figure, "norms_spread", caption)


def _table(page: Page, losses: list[Row], spread: list[Row]) -> None:
    head = ["norm", *(f"{what}, {n} per batch" for what in ("loss", "over sequences", "over layers") for n in SIZES)]
    loss = {n: {norm: _last(losses, norm, n)[0]["loss"] for norm in NORMS} for n in SIZES}
    sequences = {n: {norm: _last(spread, norm, n)[0]["p95_over_median"] for norm in NORMS} for n in SIZES}
    layers = {n: {norm: layer_ratio(_last(spread, norm, n)) for norm in NORMS} for n in SIZES}
    columns = [kind[n] for kind in (loss, sequences, layers) for n in SIZES]
    page.table(head, [[norm, *(number(column[norm]) for column in columns)] for norm in NORMS])
    for what, kind in {"Final loss": loss, "Spread over sequences": sequences, "Spread over layers": layers}.items():
        page.text(f"{what}: " + ". ".join(f"With {n} utterances per batch {extremes(kind[n])}" for n in SIZES) + ".")
