"""The figure of WER against real-time factor: axes begin near the points, and the legend fits."""

from __future__ import annotations

from local.config.methods import METHODS
from local.scoring.table import Results, cost_figure

import pytest


def results(rtfs: list[float], wer: float = 3.0, sets: int = 1) -> Results:
    row = {"ci95": [wer - 0.3, wer + 0.4], "wer": wer, "oracle": False}
    methods = {method: {**row, "rtf": rtf} for method, rtf in zip(METHODS, rtfs, strict=False)}
    return {f"test-{i}": methods for i in range(sets)}


@pytest.mark.parametrize(
    ("rtfs", "scale"), [([0.0024, 0.0025, 0.0031, 0.0033], "linear"), ([0.002, 0.02, 0.2], "log"), ([0.0, 1.0], "linear")]
)
def test_axes_begin_near_the_points(rtfs: list[float], scale: str) -> None:
    figure = cost_figure(results(rtfs))
    assert figure is not None
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert axes.get_xscale() == scale
    places = axes.transAxes.inverted().transform(axes.transData.transform([(rtf, 3.0) for rtf in rtfs]))
    assert 0 < places[0, 0] < 0.1 and 0.9 < places[-1, 0] < 1
    low, high = axes.get_ylim()
    assert 2.5 < low < 2.7 and 3.4 < high < 3.6


@pytest.mark.parametrize("sets", [1, 3])
def test_the_legend_is_in_the_picture_and_has_all_methods(sets: int) -> None:
    figure = cost_figure(results([0.01 * i for i in range(1, 9)], sets=sets))
    assert figure is not None
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
    assert all(box.y1 <= axes.get_window_extent().y0 for axes in figure.axes)
    assert len({text.get_text() for text in legend.get_texts()}) == 8


def test_the_rate_is_never_below_0_and_may_be_unknown() -> None:
    figure = cost_figure(results([0.1, 0.2], wer=0.3))
    assert figure is not None and figure.axes[0].get_ylim()[0] == 0
    assert cost_figure({"test": {"m": {**results([0.1])["test-0"]["greedy_search"], "rtf": None}}}) is None
