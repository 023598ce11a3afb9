"""The WER table as Markdown, and WER against real-time factor as a plot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local.artifacts.decoded_sets import DecodedSet
from local.common.atomic import atomic_write
from local.common.html_page import new_figure, save_figure
from local.common.visible import markdown, shortened
from local.scoring.align import RATES, Unit
from local.scoring.hypotheses import is_oracle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, dict[str, dict[str, Any]]]  # the content of wer.json: set, method, key

HEAD = ("set", "method", "WER %", "95 % interval", "sub", "del", "ins", "words", "CER %", "RTF", "memory MiB", "delay ms")
CHAR_HEAD = tuple({"WER %": "CER %", "words": "characters"}.get(name, name) for name in HEAD if name != "CER %")
HEADS: dict[Unit, tuple[str, ...]] = {"word": HEAD, "char": CHAR_HEAD}
EARLIER_HEAD = ("set", "method", "WER %", "average", "other options", "decoded")
MOST_PANELS = 50  # of the plot, which may be 65,535 pixels wide
PANEL, CHARACTER = 5.5, 0.085  # inches: the width of a panel, and of a letter of the legend
MARKERS = "osD^vP*X"
WIDE = 20  # times the lowest RTF: a larger one needs a logarithmic axis
NOTE = (
    "\n95 % interval: what other utterances of the same kind would give. RTF: seconds of processing per second of audio.\n"
    "delay ms: from a word's end in the audio to its last token; below 0 if the token comes before the word ends.\n"
)
CHAR_NOTE = (
    "\nCER: errors per 100 characters of the references. Spaces do not count. score.unit=auto chooses it if the references\n"
    "have no spaces between words; score.unit=word counts words.\n"
)
ORACLE_NOTE = "\n\\* chosen from the n-best list with the reference (fewest errors): a lower bound, not a result.\n"


def table(results: Results) -> str:
    """Return the WER table as Markdown with a note below; oracle methods have a star, and their own note.

    Sets that were scored by characters have a CER table of their own.
    """
    rows: dict[Unit, list[list[str]]] = {"word": [], "char": []}
    for name, methods in results.items():
        for method, r in methods.items():
            interval = "{:.2f} - {:.2f}".format(*r["ci95"]) if r["ci95"] else "-"
            counts = [str(r[key]) for key in ("sub", "del", "ins", "words")]
            costs = [decimals(r["rtf"], 4), decimals(r["peak_memory_mib"], 0), decimals(r["symbol_delay"], 0, factor=1000)]
            label = markdown(method) + (" \\*" if r["oracle"] else "")
            cer = [decimals(r["cer"])] if unit_in(r) == "word" else []
            rows[unit_in(r)].append([markdown(name), label, decimals(r["wer"]), interval, *counts, *cer, *costs])
    note = ORACLE_NOTE if any(r["oracle"] for methods in results.values() for r in methods.values()) else ""
    note += CHAR_NOTE if rows["char"] else ""
    tables = [markdown_table(HEADS[unit], found, range(2)) for unit, found in rows.items() if found]
    return "\n".join(tables) + note + NOTE


def unit_in(row: Mapping[str, Any]) -> Unit:
    """Return the unit of an entry of wer.json; older ones count words and do not say so."""
    return "char" if row.get("unit") == "char" else "word"


def marked_rate(rate: float | None, unit: Unit) -> str:
    """Return an error rate in percent for a column of WERs, in which "(CER)" marks those by characters."""
    return decimals(rate) + (" (CER)" if unit == "char" else "")


def origin(sets: Iterable[DecodedSet]) -> str:
    """Return the line above the table: the average, commit and date of the newest set; "" if none is known."""
    made = max((s.made_by for s in sets if s.made_by), key=lambda m: m["date"], default=None)
    if made is None:
        return ""
    label, average, when, commit = map(markdown, (made["label"], made["average"], minute(made), made["commit"]))
    return f"Average {label} ({average}), decoded {when} by commit {commit}.\n\n"


def earlier_table(rows: Sequence[tuple[DecodedSet, str, DecodedSet | None]]) -> str:
    """Return the table of sets by earlier settings as Markdown, with the options that differ from the main table's.

    rows: a set, its error rate by `marked_rate`, and the set of the same name and method in the main table, if there is one.
    """
    if not rows:
        return ""
    cells = []
    for decoded, wer, now in rows:
        ours, theirs = decoded.made_by.get("options", {}), now.made_by.get("options", {}) if now else {}
        differing = ", ".join(f"{key}={value}" for key, value in ours.items() if now and theirs.get(key) != value)
        label, date = decoded.made_by.get("label", "unknown"), minute(decoded.made_by)
        row = [decoded.name, decoded.method, wer, label, differing or "-", date]
        cells.append(list(map(markdown, row)))
    return "\nEarlier settings\n\n" + markdown_table(EARLIER_HEAD, cells, (0, 1, 3, 4, 5))


def minute(made_by: dict[str, Any]) -> str:
    """Return the date and time of decoding (UTC), to the minute; a dash if unknown."""
    return made_by["date"][:16].replace("T", " ") if "date" in made_by else "-"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Iterable[int]) -> str:
    """Return a Markdown table with padded cells, which are Markdown; left: the columns that are left-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    texts = set(left)

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i in texts else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |\n"

    rule = "|" + "|".join("-" * (w + 2) if i in texts else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|\n"
    return line(head) + rule + "".join(map(line, rows))


def decimals(x: float | None, digits: int = 2, factor: int = 1) -> str:
    """Return `factor` times `x` with `digits` decimals; a dash for None."""
    return "-" if x is None else f"{factor * x:.{digits}f}"


def plot(results: Results, path: Path) -> None:
    """Write `cost_figure` as a PNG. Without any RTF, remove `path`."""
    figure = cost_figure(results)
    if figure is None:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as tmp:
        save_figure(figure, tmp, dpi=120)


def cost_figure(results: Results) -> Figure | None:
    """Return WER with its interval against RTF, one panel per set; oracles are hollow. None if no RTF is known."""
    points: Results = {}
    for name, methods in results.items():
        if shown := {m: r for m, r in methods.items() if r["rtf"] is not None and r["wer"] is not None}:
            points[name] = shown
    if not points:
        return None
    points = dict(itertools.islice(points.items(), MOST_PANELS))
    found = list(dict.fromkeys(m for methods in points.values() for m in methods))
    labels = {m: shortened(m) + (" (oracle)" if is_oracle(m) else "") for m in found}
    width = PANEL * len(points)
    columns = max(1, int(width / (CHARACTER * (max(map(len, labels.values())) + 6))))
    figure = new_figure(3.2 + 0.2 * math.ceil(len(labels) / columns), width)
    for axes, (name, methods) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        for method, r in methods.items():
            place, (low, high) = found.index(method), r["ci95"]
            style = {
                "color": f"C{place % 10}",
                "marker": MARKERS[place % len(MARKERS)],
                "markersize": 7,
                "label": labels[method],
            }
            style["markerfacecolor"] = "none" if r["oracle"] else style["color"]
            axes.errorbar(r["rtf"], r["wer"], [[r["wer"] - low], [high - r["wer"]]], linestyle="", capsize=3, **style)
        rtfs = [r["rtf"] for r in methods.values()]
        if min(rtfs) > 0 and max(rtfs) > WIDE * min(rtfs):
            axes.set_xscale("log")
        rate = RATES[unit_in(next(iter(methods.values())))]
        axes.set(title=shortened(name), xlabel="real-time factor", ylabel=f"{rate} in %, with its 95 % interval")
        axes.margins(0.08)
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        axes.grid(alpha=0.3)
    handles = {label: h for ax in figure.axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=columns, fontsize="small", frameon=False)
    return figure
