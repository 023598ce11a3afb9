"""The report's section on training: losses, dev error rate, learning rate, gradients, the gradient filter, speed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from local.common.html_page import Page, new_figure
from local.reporting.curves import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    HEIGHT,
    LARGEST,
    LOW,
    ORANGE,
    PURPLE,
    WIDTH,
    Curves,
    draw,
    finish,
    read_curves,
    shades,
)
from local.reporting.experiment import Experiment
from local.reporting.glossary import counted

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 14  # layers in a legend; of more, every second, third, ... is named
HEALTHY = {
    "loss": "Healthy: all lines fall; the pruned loss begins to count after the warm-up (dotted line) and then falls fast. "
    "The dev lines end near the training lines. Dev lines that rise while the training lines fall mean too little data or "
    "too many epochs. Losses are in nats per encoder frame (40 ms), on a logarithmic axis. In a long "
    "training each point of a line is the median of several steps; the pale band has their lowest and highest values.",
    "wer": "Healthy: it falls in steps, then stays low. A few dev utterances are decoded by greedy search with the weights of "
    "that moment, so single points vary much; the averaged weights of the results are usually better.",
    "sharpness": "How sharply the model places tokens in time: the probability that a token is emitted in its best frame, "
    "given the transcript; mean over the tokens of the dev parts. Healthy: it rises towards 1. Well below 0.5, searches "
    "lose words, above all those that are said twice: see the line of repeated words in errors/*.txt.",
    "rate": "Healthy: it falls slowly, with a small step at each new epoch (schedule Eden). It rises only if the training was "
    "resumed with other keys.",
    "gradient": "Healthy: all parts lie within about two powers of ten, and fall or stay level. Gradients explode if they grow "
    "by powers of ten from the last layer to the first; a layer whose gradient falls towards 0 learns nothing. "
    "Layers are solid lines, from the first to the last; other parts are dashed. Measured after the gradient filter, "
    "before clipping; logarithmic axis.",
    "masks": "The gradient filter multiplies the gradient of an utterance in a layer by a mask from 0 to 1. Above: the "
    "median mask of each layer (thick) and the lowest (thin). Below: the share of utterances with a mask below one half. "
    "Healthy: the medians are close to 1 and the shares near 0. Single low masks are expected; a "
    "median well below 1 means that gradient.threshold is too low for these data.",
    "speed": "Healthy: level lines, and a share of waiting below 10 %. More waiting means that the training waits for data: "
    "raise data.num_workers, or store the features (features.type=precomputed). A frame is 10 ms of speech.",
    "lm": "The language model: perplexity per token over the epochs. Healthy: both lines fall and end near each other; train "
    "can be the higher one, as it is measured with dropout. The epoch with the lowest dev perplexity is kept.",
}


def add_training(page: Page, experiment: Experiment) -> None:
    """Add the drawings of train.csv, valid.csv and lm/log.csv, each with what a healthy one looks like.

    Raises `UserError` if one of these files is not a table of steps or epochs.
    """
    train = read_curves(experiment.exp_dir / "train.csv")
    valid = read_curves(experiment.exp_dir / "valid.csv")
    lm = read_curves(experiment.exp_dir / "lm" / "log.csv", "epoch")
    page.section("Training", "training")
    if train is None and valid is None and lm is None:
        page.text("train.csv and valid.csv are missing or empty: this model was not trained in this folder.")
        return
    rate = experiment.rate
    page.text(" ".join(summary(train, valid, rate)))
    for figure, name in drawings(train, valid, warm_up(experiment.config), rate):
        page.drawing(figure, HEALTHY[name])
    for figure in perplexities(lm) if lm is not None else ():
        page.drawing(figure, HEALTHY["lm"])


def summary(train: Curves | None, valid: Curves | None, rate: str) -> Iterator[str]:
    """Yield sentences with the figures that one looks for first."""
    if train is not None:
        epoch, loss = train.last("epoch"), train.last("pruned_loss")
        yield counted(int(train.steps[-1]), "step") + (f" in {counted(int(epoch), 'epoch')}." if epoch is not None else ".")
        if loss is not None:
            yield f"Last pruned loss of the training: {loss:.3g} nats per frame."
        bad = int((~np.isfinite(train.column("loss"))).sum()) if "loss" in train.columns else 0
        if bad:
            yield f"In {bad} of {counted(len(train.steps), 'row')} the loss is not a number."
    if valid is not None and (loss := valid.last("pruned_loss")) is not None:
        yield f"Last pruned loss of the dev parts: {loss:.3g}."
    if valid is not None and np.isfinite(wer := valid.column("wer")).any():
        best = int(np.nanargmin(np.where(np.isfinite(wer), wer, np.nan)))
        yield f"Lowest {rate} of the dev utterances: {wer[best]:.2f} % at step {valid.steps[best]:.0f}."
    for curves, name in ((train, "train.csv"), (valid, "valid.csv")):
        if curves is not None and curves.damaged:
            yield f"{name}: {counted(curves.damaged, 'damaged row')} left out."


def warm_up(config: Mapping[str, Any]) -> float | None:
    """Return the step at which the warm-up ends; None if it is a share of the training, or unknown."""
    train = config.get("train")
    step, share = (train.get(key) for key in ("warm_step", "warm_share")) if isinstance(train, Mapping) else (None, None)
    return float(step) if isinstance(step, int) and 0 < step < LARGEST and not share else None


def drawings(train: Curves | None, valid: Curves | None, warm_step: float | None, rate: str) -> Iterator[tuple[Figure, str]]:
    """Yield each drawing that has a line, with its name in `HEALTHY`."""
    yield from ((figure, "loss") for figure in losses(train, valid, warm_step))
    if valid is not None:
        yield from ((figure, "wer") for figure in single(valid, "wer", f"{rate} of dev utterances in %", marker="o"))
        yield from ((figure, "sharpness") for figure in single(valid, "sharpness", "sharpness", marker="o"))
    if train is not None:
        yield from ((figure, "rate") for figure in single(train, "lr", "learning rate"))
        yield from ((figure, "gradient") for figure in gradients(train))
        yield from ((figure, "masks") for figure in masks(train))
        yield from ((figure, "speed") for figure in speed(train))


def losses(train: Curves | None, valid: Curves | None, warm_step: float | None) -> Iterator[Figure]:
    """Yield the simple and pruned losses, and those of a CTC head, of the training and of the dev parts over the steps."""
    figure = new_figure(HEIGHT, WIDTH)
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="loss, nats per frame", yscale="log")
    drawn = False
    for curves, part, style in ((train, "train", {"alpha": 0.8}), (valid, "dev", {"marker": "o", "linestyle": "--"})):
        for name, colour in (("simple_loss", BLUE), ("pruned_loss", ORANGE), ("ctc_loss", GREEN), ("consistency_loss", PURPLE)):
            if curves is not None:
                label = f"{name.removesuffix('_loss')}, {part}"
                drawn |= draw(axes, curves.steps, curves.column(name), color=colour, label=label, markersize=4, **style)
    if drawn and warm_step is not None and warm_step < axes.get_xlim()[1]:
        axes.axvline(warm_step, color=GREY, linestyle=":", label="end of warm-up")
    finish(axes)
    if drawn:
        yield figure


def single(curves: Curves, name: str, label: str, **style: Any) -> Iterator[Figure]:
    """Yield one column over the steps, from 0 on."""
    figure = new_figure(LOW, WIDTH)
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel=label)
    if draw(axes, curves.steps, curves.column(name), color=BLUE, **style):
        axes.set(xlim=(0, None), ylim=(0, None))
        finish(axes)
        yield figure


def by_layer(axes: Any, curves: Curves, columns: dict[str, np.ndarray], band: bool) -> bool:
    """Draw a line for each layer, in colours from the first to the last; return whether there was anything."""
    drawn, colours = False, shades(len(columns))
    every = -(-len(columns) // MOST_LABELS)
    for i, ((name, values), colour) in enumerate(zip(columns.items(), colours, strict=True)):
        drawn |= draw(axes, curves.steps, values, band, color=colour, label=name if i % every == 0 else None)
    return drawn


def gradients(curves: Curves) -> Iterator[Figure]:
    """Yield the gradient norms of the whole model and of its parts over the steps."""
    figure = new_figure(4.0, WIDTH)
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="gradient norm", yscale="log")
    drawn = draw(axes, curves.steps, curves.column("gradient_norm"), color=GREY, linewidth=2.5, label="whole model")
    layers = {f"layer {name}": values for name, values in curves.named("gradient_norm_layer_").items()}
    others = {name: values for name, values in curves.named("gradient_norm_").items() if not name.startswith("layer_")}
    drawn |= by_layer(axes, curves, layers, band=True)
    for (name, values), colour in zip(others.items(), itertools.cycle(COLOURS[2:]), strict=False):
        drawn |= draw(axes, curves.steps, values, color=colour, linestyle="--", label=name.replace("_", " "))
    finish(axes)
    if drawn:
        yield figure


def masks(curves: Curves) -> Iterator[Figure]:
    """Yield the median (thick) and lowest (thin) masks of the layers, and below them the share of damped utterances."""
    figure = new_figure(4.6, WIDTH)
    above, below = figure.subplots(2, 1, sharex=True)
    above.set(ylabel="mask: median, lowest", ylim=(0, 1.05))
    below.set(xlabel="step", ylabel="% below one half")
    medians, lowest = curves.named("filter_median_mask_"), curves.named("filter_min_mask_")
    drawn = by_layer(above, curves, {f"layer {name}": values for name, values in medians.items()}, band=False)
    for values, colour in zip(lowest.values(), shades(len(lowest)), strict=True):
        drawn |= draw(above, curves.steps, values, band=False, color=colour, linewidth=0.6)
    shares = {name: 100 * values for name, values in curves.named("filter_share_below_half_").items()}
    for values, colour in zip(shares.values(), shades(len(shares)), strict=True):
        drawn |= draw(below, curves.steps, values, band=False, color=colour)
    below.set_ylim(bottom=0)
    finish(above)
    finish(below)
    if drawn:
        yield figure


def speed(curves: Curves) -> Iterator[Figure]:
    """Yield the frames per second, the share of the time that waits for data, and the memory if it was logged."""
    panels = [("frames_per_second", "frames / s", 1.0), ("data_wait_share", "% waiting for data", 100.0)]
    panels += [(name, name.replace("_", " "), 1.0) for name in curves.columns if "memory" in name][:1]
    figure = new_figure(0.8 + 1.7 * len(panels), WIDTH)
    drawn = False
    for axes, (name, label, factor) in zip(figure.subplots(len(panels), 1, sharex=True), panels, strict=True):
        drawn |= draw(axes, curves.steps, factor * curves.column(name), color=GREEN)
        axes.set(ylabel=label)
        axes.set_ylim(bottom=0)
        finish(axes)
    axes.set_xlabel("step")
    if drawn:
        yield figure


def perplexities(curves: Curves) -> Iterator[Figure]:
    """Yield the perplexities per token of a language model over the epochs of its training."""
    figure = new_figure(LOW, WIDTH)
    axes = figure.subplots()
    axes.set(xlabel="epoch", ylabel="perplexity per token", yscale="log")
    drawn = False
    for name, colour in (("train", BLUE), ("dev", ORANGE)):
        drawn |= draw(axes, curves.steps, curves.column(f"{name}_per_token"), color=colour, label=name)
    finish(axes)
    if drawn:
        yield figure
