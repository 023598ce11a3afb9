"""The report's section on what decoding costs: time, memory, device, and WER against time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from local.common.html_page import Page
from local.reporting.experiment import Experiment
from local.reporting.overview import add_table
from local.scoring.table import cost_figure

HEAD = ("set", "method", "audio s", "encoder s", "search s", "RTF", "memory MiB", "threads", "device")


def add_cost(page: Page, experiment: Experiment) -> None:
    """Add a table of the costs and, by set, WER against real-time factor; a line if no costs are known."""
    rows = list(cost_rows(experiment))
    page.section("Cost of decoding", "cost")
    if not rows:
        page.text("Unknown: the decoded sets have no <set>.stats.json; local/decode.py writes them.")
        return
    add_table(page, HEAD, rows)
    page.note(
        "The encoder runs once for all methods of a decoding; each method counts it as its own. RTF is the real-time factor, "
        "seconds of computation per second of audio. A machine that also does other work gives larger times."
    )
    for name, methods in experiment.results.items():
        known = {method: r for method, r in methods.items() if {"wer", "rtf", "ci95", "oracle"} <= r.keys()}
        if (figure := cost_figure({name: known})) is not None:
            page.drawing(figure, f"Set {name}: error rate against real-time factor; the lower left is best.")


def cost_rows(experiment: Experiment) -> Iterator[list[str]]:
    """Yield a row for each decoded set with costs, in the table's order."""
    stats = {(s.name, s.method): s.stats for s in experiment.sets if s.stats}
    for name, methods in experiment.scores.items():
        for method in methods:
            if (found := stats.get((name, method))) is not None:
                seconds, audio = number(found.get("seconds")), number(found.get("audio_seconds"))
                rtf = seconds / audio if seconds is not None and audio else None
                costs = [number(found.get(key)) for key in ("encoder_seconds", "search_seconds")]
                memory, threads = number(found.get("peak_memory_mib")), number(found.get("threads"))
                cells = [shown(audio, 1), *(shown(x, 2) for x in costs), shown(rtf, 4), shown(memory, 0), shown(threads, 0)]
                yield [name, method, *cells, str(found.get("device", "-"))]


def number(value: Any) -> float | None:
    """Return a finite number of a stats file; None for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)
    return float(value) if good else None


def shown(value: float | None, digits: int) -> str:
    """Return a number with this many decimals; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"
