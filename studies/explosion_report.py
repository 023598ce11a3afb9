"""The page of studies/explosion.py: the map of all trainings, and the demonstration with each control of the gradient."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from local.common.html_page import Page, new_figure
from studies.explosion_rows import MEASURES, Run, lower_and_upper, read_run
from studies.explosion_run import DAMPED, EVERY, EXPLODED, FEWEST
from studies.short_training import number

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEMONSTRATION = ("control", "threshold", "clip")  # axes of the grid: the same weights and batches with other controls
MOST = 1e18  # larger values are drawn here
COLOURS = {"none": "tab:red", "clip": "tab:orange", "filter": "tab:blue"}
SHOWN = {"none": "none", "clip": "clip 5", "filter": "filter 25"}  # the recipe's settings of each control
LINES = {"filter 5": ":", "filter 100": "--", "clip 100": "--"}
THEORY = """\
LSTM with a projection, states (h, c), a = W_h h_{t-1} + ..., gates i, f, o = sigmoid(a), g = tanh(a):
dc_t/dc_{t-1} = diag(f)        dc_t/dh_{t-1} = (diag(g i (1 - i)) W_i + diag(c_{t-1} f (1 - f)) W_f + diag(i (1 - g^2)) W_g)
dh_t = W_r (diag(o (1 - tanh(c_t)^2)) dc_t + diag(tanh(c_t) o (1 - o)) W_o dh_{t-1})
at rest (i = f = o = 1/2, g = c = 0): dc_t/dc_{t-1} = 1/2 + 1/4 W_g W_r: it grows if the spectral radius of W_g W_r exceeds 2
initial weights, H cells, P outputs: radius = sqrt(P / H) s = 0.71 s for H = 2 P, with s the factor of W_h: grows from s = 2.8
T frames on, the gradient is exp(r T) times as large; 25 times (the filter's threshold) in T = 500 frames (20 s): r = 0.0064
r T differs between sequences by about its frames' deviation x sqrt(T): around r = 0 some sequences explode, others vanish"""


def write_page(exp_dir: Path, folders: Sequence[Path]) -> Path:
    """Write EXP/explosion.html and its plots from the folders of the finished trainings; return its path."""
    runs = [read_run(folder) for folder in folders]
    page = Page("The gradient that explodes", exp_dir)
    seconds = sum(run.value("cpu_seconds") for run in runs)
    found = sum(run.summary["found"] == "True" for run in runs)
    page.text(
        f"{len(runs)} trainings, {seconds / 3600:.1f} hours of one core. In {found} of them the gradient explodes: in at least "
        f"{FEWEST} steps one sequence's gradient at the input of an LSTM is more than {EXPLODED:g} times the batch's median or "
        "the gradient at the LSTM's output. No fault is planted: the speech is real, and all layers are treated alike."
    )
    page.heading("When it explodes")
    page.formula(THEORY)
    _map(page, runs)
    shown = [run for run in runs if run.summary["axis"] in DEMONSTRATION]
    if shown:
        _demonstration(page, shown)
    return page.write("explosion")


def _map(page: Page, runs: Sequence[Run]) -> None:
    page.heading("The map")
    page.figure(
        map_figure(runs),
        "explosion_map",
        "A point is a training. Across: the largest growth of the gradient per frame in one of its layers and sequences, "
        f"measured every {EVERY} steps and when it rises. Up: the largest gradient of a sequence at an LSTM's input / the "
        f"batch's median, drawn at {MOST:g} if it is larger or not finite. Lines: {DAMPED:g}, from which the filter damps to "
        f"less than half, and {EXPLODED:g}.",
    )
    head = ["training", "ended", "steps", "exploded", "damped", "ratio", "in layer", "amplification", "rate", "sigma", "loss"]
    rows = []
    for run in runs:
        s = run.summary
        numbers = [number(run.value(f"largest_{name}")) for name in ("amplification", "rate_max", "sigma")]
        counts = [s["trained"], s["steps_exploded"], s["steps_damped"]]
        rows.append([s["name"], s["ended"], *counts, number(run.value("largest_ratio")), s["ratio_layer"], *numbers])
        rows[-1].append(number(run.value("loss")))
    page.table(head, rows, left=(0, 1))
    page.note(
        f"exploded, damped: steps with a sequence above {EXPLODED:g} and {DAMPED:g}. ratio: the largest. amplification: by one "
        "LSTM from its output to its input. rate: growth per frame, in nats. sigma: the largest singular value of a recurrent "
        "matrix. loss: of the last ten steps, nats per frame."
    )


def map_figure(runs: Sequence[Run]) -> Figure:
    """Draw the largest ratio of every training against its largest rate, with one marker per axis."""
    figure = new_figure(6.0)
    axes = figure.subplots()
    names = list(dict.fromkeys(run.summary["axis"] for run in runs))
    for i, name in enumerate(names):
        own = [run for run in runs if run.summary["axis"] == name]
        x, y = ([run.value(f"largest_{column}") for run in own] for column in ("rate_max", "ratio"))
        axes.scatter(x, np.minimum(y, MOST), s=40, marker="osv^DXP*<>ph"[i % 12], color=f"C{i % 10}", label=name)
    for height in (DAMPED, EXPLODED):
        axes.axhline(height, color="black", linewidth=0.8, linestyle="--")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(yscale="log", xlabel="largest growth per frame (nats)", ylabel="largest gradient / median of the batch")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), title="axis", loc="outside right upper")
    return figure


def _demonstration(page: Page, runs: Sequence[Run]) -> None:
    page.heading("Filter, clipping, nothing")
    page.text(
        "The same initial weights and the same batches with each control of the gradient; a seed chooses both. Held-out: dev "
        "utterances, joined to sequences of the same length, in evaluation mode; loss as after the warm-up, nats per frame."
    )
    _table(page, runs)
    first = min(int(run.summary["seed"]) for run in runs)
    by_control = {run.control: run for run in runs if int(run.summary["seed"]) == first}
    chosen = {name: by_control[key] for name, key in SHOWN.items() if key in by_control}
    page.figure(
        gradient_figure(chosen),
        "explosion_gradients",
        f"Seed {first}. Top: norm of the gradient of each layer's parameters at every step, after the filter and before "
        "clipping. Bottom: gradient of every sequence at the input of every LSTM, before the filter; a point is a sequence in "
        "the layer where it is largest, the line the median of all.",
    )
    page.figure(
        growth_figure(chosen),
        "explosion_growth",
        f"Seed {first}. Growth of the gradient per frame by layer, the largest of the batch's sequences: "
        "above 0 the gradient of an early frame is larger than that of a late one.",
    )
    page.figure(
        loss_figure(runs),
        "explosion_loss",
        "Left: loss of each step, the mean of ten. Right: how far a step moves the weights of the lower half of the "
        "layers, in learning rates. Lines are means over the seeds.",
    )


def _table(page: Page, runs: Sequence[Run]) -> None:
    seeds = sorted({int(run.summary["seed"]) for run in runs})
    rows = []
    for control in dict.fromkeys(run.control for run in runs):
        own = {int(run.summary["seed"]): run for run in runs if run.control == control}
        losses = [own[seed].value("dev_loss") if seed in own else math.nan for seed in seeds]
        finite = [loss for loss in losses if math.isfinite(loss)]
        spread = number(statistics.stdev(finite)) if len(finite) > 1 else "-"
        others = [[run.value("loss") for run in own.values()], *([f(run) for run in own.values()] for f in MEASURES)]
        rows.append([control, *map(number, losses), _mean(losses), spread, *map(_mean, others)])
    seeded = [f"held-out, seed {seed}" for seed in seeds]
    head = [
        "control",
        *seeded,
        "mean",
        "sd",
        "training",
        "part damped",
        "lower steps",
        "upper steps",
        "healthy steps",
        "norm if one",
        "norm if most",
    ]
    page.table(head, rows)
    page.note(
        "training: loss of the last ten steps, mean of the seeds. part damped: share of sequences and layers with a gradient "
        f"above {DAMPED:g} times the median, which the filter damps to less than half. lower, upper steps: how far a step "
        "moves the weights of the lower and of the upper half of the layers, in learning rates. healthy steps: how far a "
        "layer without such a sequence moves in a step in which another has one / in the step before. norm if one, if most: "
        "norm of a layer's gradient / its usual value in steps in which one sequence of the batch explodes, or most of them."
    )


def _mean(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    return number(statistics.mean(finite)) if finite else "-"


def gradient_figure(runs: dict[str, Run]) -> Figure:
    """Draw the gradient by layer and by sequence over the steps of one run of each control."""
    figure = new_figure(9.0)
    panels = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
    for (above, below), (name, run) in zip(panels.T, runs.items(), strict=True):
        norms = np.clip(run.by_layer("gradient_norm_layer"), None, MOST)
        for layer, values in enumerate(norms.T):
            above.plot(run.steps["step"], values, color=_shade(layer, norms.shape[1]), linewidth=1, label=str(layer))
        above.set(yscale="log", title=name)
        _sequences(below, run)
        below.set(yscale="log", xlabel="step")
        for axes in (above, below):
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("gradient norm of a layer")
    panels[1, 0].set_ylabel("gradient rms of a sequence")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), title="layer", loc="outside right upper")
    return figure


def _sequences(axes: Axes, run: Run) -> None:
    gradients = np.nan_to_num(run.gradients(), nan=MOST, posinf=MOST).clip(max=MOST)
    largest = gradients.max(axis=1)  # (steps, sequences)
    steps = run.steps["step"]
    axes.scatter(np.repeat(steps, largest.shape[1]), largest.ravel(), s=6, color="tab:purple")
    axes.plot(steps, np.median(gradients, axis=(1, 2)), color="black", linewidth=1.2)


def growth_figure(runs: dict[str, Run]) -> Figure:
    """Draw the largest growth per frame of each layer over the steps, for one run of each control."""
    figure = new_figure(4.5)
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        layers = sorted(set(run.layers["layer"].astype(int)))
        for layer in layers:
            own = run.layers["layer"] == layer
            x, y = (run.layers[name][own] for name in ("step", "rate_max"))
            axes.plot(x, y, marker=".", linewidth=1, color=_shade(layer, len(layers)), label=str(layer))
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("growth per frame (nats)")
    figure.legend(*panels[0].get_legend_handles_labels(), title="layer", loc="outside right upper")
    return figure


def loss_figure(runs: Sequence[Run]) -> Figure:
    """Draw the loss and the movement of the median layer over the steps, by control, as means over the seeds."""
    figure = new_figure(4.5)
    left, right = figure.subplots(1, 2)
    for control in dict.fromkeys(run.control for run in runs):
        own = [run for run in runs if run.control == control]
        steps = min(len(run.steps["step"]) for run in own)
        curves = {
            left: np.mean([run.steps["loss"][:steps] for run in own], axis=0),
            right: np.mean([lower_and_upper(run)[0].mean(axis=1)[:steps] for run in own], axis=0),
        }
        style = {"color": COLOURS[control.split()[0]], "linestyle": LINES.get(control, "-")}
        for axes, values in curves.items():
            smooth = np.convolve(values, np.ones(10) / 10, "valid") if steps >= 10 else values
            axes.plot(np.arange(len(smooth)) + len(values) - len(smooth), smooth, label=control, **style)
    left.set(xlabel="step", ylabel="loss (nats per frame)")
    right.set(xlabel="step", ylabel="movement of the lower half of the layers", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), title="control", loc="outside right upper")
    return figure


def _shade(layer: int, layers: int) -> tuple[float, ...]:
    import matplotlib

    return tuple(matplotlib.colormaps["viridis"](layer / max(layers - 1, 1)))
