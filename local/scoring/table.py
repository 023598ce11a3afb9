"""The WER table as Markdown, and WER against real-time factor as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write

Results = dict[str, dict[str, dict[str, Any]]]  # as wer.json: set, method, key

HEAD = (
    "set", "method", "WER %", "95 % interval", "sub", "del", "ins", "words", "CER %", "RTF", "memory MiB", "delay ms",
)  # fmt: skip
LEFT = 2  # columns that are texts
ORACLE_NOTE = "\n\\* of the n-best list the entry with the fewest errors, chosen with the reference: a bound, no result.\n"


def table(results: Results) -> str:
    """The WER table as Markdown; methods that look at the reference have a star and a note below."""
    rows = []
    for name, methods in results.items():
        for method, r in methods.items():
            interval = "{:.2f} - {:.2f}".format(*r["ci95"]) if r["ci95"] else "-"
            counts = [str(r[key]) for key in ("sub", "del", "ins", "words")]
            rtf = "-" if r["rtf"] is None else f"{r['rtf']:.4f}"
            memory = "-" if r["peak_memory_mib"] is None else f"{r['peak_memory_mib']:.0f}"
            delay = "-" if r["symbol_delay"] is None else f"{1000 * r['symbol_delay']:.0f}"
            shown = method + (" \\*" if r["oracle"] else "")
            rows.append([name, shown, percent(r["wer"]), interval, *counts, percent(r["cer"]), rtf, memory, delay])
    widths = [max(len(row[i]) for row in [list(HEAD), *rows]) for i in range(len(HEAD))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < LEFT else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |\n"

    rule = "|" + "|".join("-" * (w + 2) if i < LEFT else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|\n"
    note = ORACLE_NOTE if any(r["oracle"] for methods in results.values() for r in methods.values()) else ""
    return line(HEAD) + rule + "".join(map(line, rows)) + note


def percent(x: float | None) -> str:
    """Two decimals; a dash where there is no rate."""
    return "-" if x is None else f"{x:.2f}"


def plot(results: Results, path: Path) -> None:
    """WER with its interval against RTF, a picture (PNG) beside another for each set; oracles are hollow.

    Methods whose RTF is not known are left out; without any, no file is written and an older one goes.
    """
    points = {
        name: {m: r for m, r in methods.items() if r["rtf"] is not None and r["wer"] is not None}
        for name, methods in results.items()
    }
    points = {name: methods for name, methods in points.items() if methods}
    if not points:
        path.unlink(missing_ok=True)
        return
    from matplotlib import colormaps  # takes half a second; without pyplot there is no display to be looked for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(points) + 3, 4.5), layout="constrained")
    shades = colormaps["tab20"]
    colours = {m: shades(i % 20) for i, m in enumerate(dict.fromkeys(m for methods in points.values() for m in methods))}
    for axes, (name, methods) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        for method, r in methods.items():
            low, high = r["ci95"]
            axes.errorbar(
                r["rtf"], r["wer"], [[r["wer"] - low], [high - r["wer"]]], fmt="o", capsize=3, color=colours[method],
                label=method + (" (oracle)" if r["oracle"] else ""), markerfacecolor="none" if r["oracle"] else None,
            )  # fmt: skip
        axes.set(title=name, xlabel="real-time factor", ylabel="WER in %, with its 95 % interval")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    handles = {label: h for ax in figure.axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize="small")
    with atomic_write(path) as tmp:
        figure.savefig(tmp, format="png", dpi=120)
