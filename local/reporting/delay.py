"""The report's section on the symbol delay: how long after a word's end its last token comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from local.common.html_page import Page, new_figure
from local.common.visible import shortened
from local.reporting.curves import COLOURS, GREY, HEIGHT, LARGEST, WIDTH, finish
from local.reporting.experiment import Experiment
from local.reporting.glossary import short
from local.reporting.overview import add_table
from local.scoring.align import symbol_delays

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DRAWN = 6  # sets in a drawing each
HEAD = ("set", "method", "words", "mean ms", "10th percentile ms", "median ms", "90th percentile ms", "% after the word's end")
STEP = 40  # ms: an encoder frame, the smallest step between two delays of the same word
EXPLANATION = (
    "The delay of a word is the time from its end in the audio to the frame of its last token. A negative number means that "
    "the token comes before the word ends. This is usual: the beginning of a word often decides it, and this encoder has "
    "learnt to emit it then. It is the delay of the alignment, not all that a listener waits: in streaming, the frames that "
    "the front end must see first, the size of the pieces of audio and the time of the computation are added. Only correct "
    "words count."
)


def add_delay(page: Page, experiment: Experiment) -> None:
    """Add how the delays are distributed, by set and method; a line if no times of words are known."""
    found = {name: methods for name in experiment.scores if (methods := delays_of(experiment, name))}
    page.section("Symbol delay", "delay")
    if not found:
        page.text(
            "Unknown: the prepared data have no times of words (an alignment of the test sets, such as a CTM file), or the "
            "report was made without them (option --data-dir)."
        )
        return
    page.text(EXPLANATION)
    for name, methods in list(found.items())[:MOST_DRAWN]:
        page.drawing(
            diagram(methods),
            f"Set {name}: delays of the correct words. Healthy: one narrow peak. A second peak or a long tail to the right is "
            "made by words that the model emits late, often the last word of an utterance.",
        )
    rows = []
    for name, methods in found.items():
        for method, delays in methods.items():
            low, middle, high = np.percentile(delays, [10, 50, 90])
            numbers = [f"{x:.0f}" for x in (delays.mean(), low, middle, high)]
            rows.append([name, method, str(len(delays)), *numbers, f"{100 * (delays > 0).mean():.1f}"])
    add_table(page, HEAD, rows)


def delays_of(experiment: Experiment, name: str) -> dict[str, np.ndarray]:
    """Return the delays of a set in milliseconds by method; methods without a delay are left out."""
    spoken = {i: speech.words for i, speech in experiment.speech.get(name, {}).items() if speech.words}
    found = {}
    for method, score in experiment.scores[name].items():
        seconds = np.array(symbol_delays(score, spoken), dtype=float)
        seconds = seconds[np.abs(seconds) < LARGEST]
        if len(seconds):
            found[method] = 1000 * seconds
    return found


def diagram(methods: Mapping[str, np.ndarray]) -> Figure:
    """Draw a histogram of the delays of each method; the outermost hundredths are left out."""
    figure = new_figure(HEIGHT, WIDTH)
    axes = figure.subplots()
    low, high = np.percentile(np.concatenate(list(methods.values())), [0.5, 99.5])
    bins = int(min(60, max(4, (high - low) // STEP)))
    edges = np.linspace(low - STEP, high + STEP, bins + 1)
    for i, (method, delays) in enumerate(methods.items()):
        label = shortened(short(method), 30)
        share = 100 * np.histogram(delays, edges)[0] / len(delays)
        axes.stairs(share, edges, color=COLOURS[i % len(COLOURS)], label=label, linewidth=1.3)
    axes.axvline(0, color=GREY, linestyle=":")
    axes.set(xlabel="delay in ms", ylabel="% of the correct words")
    finish(axes)
    return figure
