"""Show how gradients vanish and explode in random recurrent layers, over time steps back and over depth: tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from local.common.html_page import Page, new_figure
from local.config.schema import Config
from studies.gradient_cells import ACTIVATIONS, INPUT_GAIN, TRANSIENT, Setting, Size, growth, over_depth, over_time
from studies.short_training import Row, write_csv

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (("rnn", 0.0), ("gru", 0.0), ("lstm", 0.0), ("lstm", 1.0))  # cell and forget-gate bias; one column of plots each
GAINS = (0.5, 1.0, 2.0, 8.0)
RATE_GAINS = tuple(2.0**k for k in range(-2, 5))  # must include all of GAINS
FORGET_GAINS = (0.5, 1.0, 2.0)  # must be a part of GAINS
COLOURS = ("tab:blue", "tab:green", "tab:orange", "tab:red")
FULL = Size()
SPAN = (1e-16, 1e16)  # range of the y axis of plots over time

DERIVATION = """\
rnn    h_t = phi(a_t),  a_t = W_h h_{t-1} + W_x x_t + b;      dh_t/dh_{t-1} = D_t W_h,  D_t = diag(phi'(a_t))
       dL/dh_{T-k} = (W_h' D_{T-k+1}) ... (W_h' D_T) dL/dh_T: a product of k Jacobians, about rate^k
       |dL/dh_{T-k}| <= (max phi' |W_h|)^k |dL/dh_T|,  with max phi' = 1/4 (sigmoid), 1 (tanh), 1 (ReLU)
       W_h random with entries of variance gain^2 / H (spectral radius about gain):
       rate^2 = gain^2 mean(phi'(a)^2): below 1 it vanishes, above 1 it explodes; ReLU: half of the phi' are 1, gain / sqrt 2
gru    h_t = (1 - z) n + z h_{t-1},  n = phi(W_nx x_t + r (W_nh h_{t-1}));      dh_t/dh_{t-1} = diag(z)
       + diag((1 - z) phi') (diag(r) W_nh + diag(W_nh h_{t-1}) dr/dh_{t-1}) + diag(h_{t-1} - n) dz/dh_{t-1}
lstm   c_t = f c_{t-1} + i phi(g),  h_t = o phi(c_t);     dc_t/dc_{t-1} = diag(f_t) + the paths through h_{t-1} and the gates
       dL/dc_{T-k} = (f_{T-k+1} ... f_T) dL/dc_T + ...:  no weights and no phi' in the first term
       forget bias 0: f about sigmoid(0) = 0.50, 0.50^100 = 8e-31;     bias 1: f about sigmoid(1) = 0.73, 0.73^100 = 2e-14
depth  dL/dh^(l) = D W_x^(l+1)' ... the same product over layers: rate^2 = gain^2 mean(phi'^2), with W_x in place of W_h"""

Bands = dict[Setting, NDArray[np.float64]]  # (3, steps or layers): 10th percentile, median, 90th percentile over seeds


def bands(norms: Tensor) -> NDArray[np.float64]:
    """Return the percentiles 10, 50, 90 of norms (S, K) over the seeds, (3, K)."""
    return np.percentile(norms.detach().numpy(), [10, 50, 90], axis=0)


def _rows(results: Bands, axis: str, values: Sequence[float], **more: str) -> list[Row]:
    """Return the bands as CSV rows. axis, values: the name and the values of the bands' last axis."""
    return [
        {**asdict(setting), **more, axis: at, "p10": float(low), "median": float(middle), "p90": float(high)}
        for setting, band in results.items()
        for at, (low, middle, high) in zip(values, band.T, strict=True)
    ]


def _name(cell: str, forget_bias: float) -> str:
    return f"{cell}, forget bias {forget_bias:g}" if cell == "lstm" else cell


def _draw(axes: Axes, x: Sequence[float], band: NDArray[np.float64], **style: str) -> None:
    axes.plot(x, band[1], linewidth=1.8, **style)  # type: ignore[arg-type]
    axes.fill_between(x, band[0], band[2], color=style["color"], alpha=0.2, linewidth=0)


def _grid(results: Bands, x: Sequence[float], xlabel: str, ylabel: str) -> Figure:
    """Draw one panel per activation (row) and kind of cell (column), with one line per gain."""
    figure = new_figure(9.0)
    panels = figure.subplots(len(ACTIVATIONS), len(KINDS), sharex=True, sharey=True)
    for row, activation in zip(panels, ACTIVATIONS, strict=True):
        for axes, (cell, bias) in zip(row, KINDS, strict=True):
            for gain, colour in zip(GAINS, COLOURS, strict=True):
                _draw(axes, x, results[Setting(cell, activation, gain, bias)], color=colour, label=f"{gain:g}")
            axes.axhline(1, color="black", linewidth=0.6)
            axes.set(yscale="log", ylim=SPAN, title=f"{_name(cell, bias)}: {activation}")
            axes.grid(alpha=0.3)
    panels[0, 0].legend(title="gain", ncols=2, loc="upper left")
    figure.supxlabel(xlabel)
    figure.supylabel(ylabel)
    return figure


def _growth_figure(rates: Bands) -> Figure:
    figure = new_figure(4.5)
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, (cell, bias) in zip(panels, KINDS, strict=True):
        for activation, colour in zip(ACTIVATIONS, COLOURS, strict=False):
            found = [rates[Setting(cell, activation, gain, bias)] for gain in RATE_GAINS]
            _draw(axes, RATE_GAINS, np.concatenate(found, axis=1), color=colour, label=activation)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", title=_name(cell, bias), xlabel="gain of the recurrent weights")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("growth of |dL/dh| per step back")
    panels[0].legend()
    return figure


def _forget_figure(by_c: Bands, by_gates: Bands, x: Sequence[float]) -> Figure:
    figure = new_figure(4.5)
    panels = figure.subplots(1, len(FORGET_GAINS), sharey=True)
    for axes, gain in zip(panels, FORGET_GAINS, strict=True):
        for bias, colour in ((0.0, "tab:blue"), (1.0, "tab:red")):
            setting = Setting("lstm", "tanh", gain, bias)
            _draw(axes, x, by_c[setting], color=colour, label=f"bias {bias:g}: whole gradient")
            _draw(axes, x, by_gates[setting], color=colour, linestyle="--", label=f"bias {bias:g}: product of f only")
        axes.set(yscale="log", title=f"gain {gain:g}", xlabel="time steps back, k")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("|dL/dc| at T - k")
    panels[0].legend(loc="lower left")
    return figure


def _settings(gains: Sequence[float]) -> list[Setting]:
    return [Setting(cell, phi, gain, bias) for cell, bias in KINDS for phi in ACTIVATIONS for gain in gains]


def _time_part(page: Page, size: Size, seed: int) -> None:
    found = {setting: over_time(setting, size, seed) for setting in _settings(RATE_GAINS)}
    rates = {setting: bands(growth(norms.by_h)[:, None]) for setting, norms in found.items()}
    shown = {s: norms for s, norms in found.items() if s.gain in GAINS}
    by_h = {s: bands(norms.by_h) for s, norms in shown.items()}
    by_c, by_gates = ({s: bands(norms[part]) for s, norms in shown.items() if s.cell == "lstm"} for part in (1, 2))
    back = range(size.back + 1)
    parts = (("dL/dh", by_h), ("dL/dc", by_c), ("dL/dc by forget gates only", by_gates))
    rows = [row for name, results in parts for row in _rows(results, "steps_back", back, norm_of=name)]
    write_csv(page.folder / "gradient_time.csv", rows)
    write_csv(page.folder / "gradient_growth.csv", _rows(rates, "from_step", [min(TRANSIENT, size.back // 2)]))
    about = f"median and 10th to 90th percentile of {size.seeds} random networks of {size.hidden} units"
    figure = _grid(by_h, back, "time steps back, k", "|dL/dh| at T - k, divided by that at T")
    page.figure(figure, "gradient_time", f"Gradient by time steps back, shown from {SPAN[0]:g} to {SPAN[1]:g}; {about}.")
    caption = f"Growth of the gradient per step back against the gain: it vanishes below 1 and explodes above; {about}."
    page.figure(_growth_figure(rates), "gradient_growth", caption)
    table: dict[str, list[str]] = {}
    for s, (_, median, _) in rates.items():
        table.setdefault(f"{_name(s.cell, s.forget_bias)}: {s.activation}", []).append(f"{float(median[0]):.3f}")
    head = ["growth per step back", *(f"gain {gain:g}" for gain in RATE_GAINS)]
    page.table(head, [[name, *medians] for name, medians in table.items()])
    caption = f"LSTM with tanh: gradient with respect to its cells c, and its part through the forget gates only; {about}."
    page.figure(_forget_figure(by_c, by_gates, back), "forget_gate", caption)


def section(page: Page, cfg: Config, data_dir: Path, size: Size = FULL) -> None:
    """Add gradients over time and depth to the page; write gradient_{time,growth,depth}.csv and plots to page.folder."""
    page.heading("Vanishing and exploding gradients")
    page.text(
        "Networks have random weights and standard normal input. L is the last step's output in a random direction of norm 1. "
        "phi is the non-linearity of the rnn, of gru's candidate, and of lstm's cell input and output; gates are sigmoids. "
        "gain is about the spectral radius of every gate's recurrent matrix; the input's matrices have gain "
        f"{INPUT_GAIN:g}."
    )
    page.formula(DERIVATION)
    _time_part(page, size, cfg.train.seed)
    by_depth = {setting: bands(over_depth(setting, size, cfg.train.seed)) for setting in _settings(GAINS)}
    below = range(size.layers)
    write_csv(page.folder / "gradient_depth.csv", _rows(by_depth, "layers_below_top", below))
    figure = _grid(by_depth, below, "layers below the top layer", "|dL/dh| of a layer's outputs, divided by the top layer's")
    caption = (
        f"Gradient by depth: {size.layers} layers without residual connections, {size.steps} steps, a loss at every step. Here "
        f"gain is that of the matrices between layers; recurrent matrices have gain {INPUT_GAIN:g}. Median and 10th to 90th "
        f"percentile of {size.depth_seeds} random networks."
    )
    page.figure(figure, "gradient_depth", caption)
