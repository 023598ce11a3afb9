"""Plot the measurements of `local.diagnosis.probe.Probe`: gradients by layer and sequence, before and after the filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from local.common.html_page import new_figure
from local.common.visible import shortened
from local.diagnosis.probe import Probed

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TINY = 1e-30
LABELLED = 40  # largest number of sequences that all have a label on the axis
MAX_NAMED = 8  # labels if there are more sequences
COLOURS = ("tab:red", "tab:orange", "tab:purple", "tab:brown", "tab:pink")


def layers_before_and_after(modules: dict[str, Probed]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the recurrent layers' names, and the gradient norms (layers, sequences) by panel: before and after a filter."""
    names = [n.removesuffix(".lstm") for n, p in modules.items() if n.endswith(".lstm") and p.passed]
    before = np.stack([np.concatenate(modules[f"{n}.lstm"].passed) for n in names])
    filters = [modules.get(f"{n}.gradient_filter") for n in names]
    after = [np.concatenate(p.passed) for p in filters if p is not None and p.passed]
    if len(after) < len(names):
        return names, {"without a filter": before}
    return names, {"before the filter": before, "after the filter": np.stack(after)}


def short(name: str) -> str:
    """Return a module's name for a plot, without the common prefix."""
    return name.replace("encoder.encoder.layers.", "layer ").replace("encoder.encoder_embed", "front end")


def filter_heat_map(modules: dict[str, Probed], ids: Sequence[str], marked: Sequence[str]) -> Figure:
    """Plot the gradient norm at each recurrent layer's input by sequence, before and after the filter, on one scale."""
    names, panels = layers_before_and_after(modules)
    logs = [np.log10(np.maximum(values, TINY)) for values in panels.values()]
    shown = np.concatenate([v[np.isfinite(v) & (v > np.log10(TINY))].ravel() for v in logs])
    low, high = (shown.min(), shown.max()) if len(shown) else (0.0, 1.0)
    figure = new_figure(1.6 + len(panels) * (1.2 + 0.28 * len(names)) + (1.4 if marked or len(ids) <= LABELLED else 0))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, title, values in zip(axes, panels, logs, strict=True):
        image = ax.imshow(values, aspect="auto", origin="lower", vmin=low, vmax=high, interpolation="nearest")
        ax.set_title(f"Gradient at each recurrent layer's input, {title}")
        ax.set_yticks(range(len(names)), [short(n) for n in names])
        ax.set_ylabel("recurrent layer")
    _name_sequences(axes[-1], ids, marked)
    figure.colorbar(image, ax=list(axes), label="log10 of the gradient norm")
    return figure


def amplification_heat_map(modules: dict[str, Probed], ids: Sequence[str], marked: Sequence[str]) -> Figure:
    """Plot log10 of the gradient norm at each module's input / at its output, by sequence."""
    kept = {n: a for n, p in modules.items() if (a := p.amplification()).numel() == len(ids) and not n.endswith("balancer")}
    values = np.log10(np.stack([a.numpy().clip(1e-3) for a in kept.values()]))
    limit = max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
    figure = new_figure(2.5 + 0.17 * len(kept) + (1.4 if marked or len(ids) <= LABELLED else 0))
    ax = figure.subplots()
    image = ax.imshow(values, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_yticks(range(len(kept)), [short(n) for n in kept], fontsize=8)
    ax.set_ylabel("module, in the order of the forward pass (upwards)")
    _name_sequences(ax, ids, marked)
    ax.set_title("Amplification: gradient norm at a module's input / at its output")
    figure.colorbar(image, ax=ax, label="log10 (red: the gradient grows)")
    return figure


def depth_curves(modules: dict[str, Probed], ids: Sequence[str], marked: Sequence[str]) -> Figure:
    """Plot the gradient norm at the recurrent layers' inputs, one curve per sequence; those of `marked` are coloured."""
    names, panels = layers_before_and_after(modules)
    figure = new_figure(5.5)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        values = np.where(np.isfinite(values) & (values > TINY), values, np.nan)
        for i, name in enumerate(ids):
            if name not in marked[: len(COLOURS)]:
                ax.plot(values[:, i], color="0.75", linewidth=0.8)
        ax.plot(np.nanmedian(values, axis=1), color="black", linewidth=2, label="median over sequences")
        for name, colour in zip(marked, COLOURS, strict=False):
            ax.plot(values[:, list(ids).index(name)], color=colour, marker="o", label=shortened(name))
        _log_axis(ax)
        ax.set_xticks(range(len(names)), [short(n) for n in names])
        ax.set_xlabel("recurrent layer (the loss is on the right)")
        ax.set_title(title)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("gradient norm at the layer's input")
    axes[0].legend(fontsize=9)
    return figure


def time_curves(modules: dict[str, Probed]) -> Figure:
    """Plot the rms of the gradient at each recurrent layer's output against time, over all sequences of that length."""
    from matplotlib import colormaps

    figure = new_figure(4.5)
    ax = figure.subplots()
    names = [n for n in modules if n.endswith(".lstm")]
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for name, shade in zip(names, shades, strict=True):
        p = modules[name].gradient
        rms = (p.times / p.times_count.clamp(min=1)).sqrt().numpy()
        ax.plot(np.where(rms > 0, rms, np.nan), label=short(name), color=shade)
    _log_axis(ax)
    ax.set_xlabel("encoder frame (40 ms)")
    ax.set_ylabel("gradient rms at the output")
    ax.set_title("Gradient at each recurrent layer's output against time")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9, ncols=max(1, len(names) // 4))
    return figure


def _log_axis(ax: Any) -> None:
    """Make the y axis logarithmic, with labels even if it spans less than two decades."""
    from matplotlib.ticker import LogFormatterSciNotation

    ax.set_yscale("log")
    ax.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 1)))


def _name_sequences(ax: Any, ids: Sequence[str], marked: Sequence[str]) -> None:
    """Label the axis of sequences: all of them or, if there are too many, the marked ones."""
    named = list(ids) if len(ids) <= LABELLED else list(marked[:MAX_NAMED])
    ax.set_xlabel("utterance, in the order of sequences.tsv")
    if named:
        places = [list(ids).index(name) for name in named]
        ax.set_xticks(places, list(map(shortened, named)), rotation=90, fontsize=8)
