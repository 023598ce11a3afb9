"""The report's beginning: the best WER, and the WER table with what its columns and methods mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from local.common.html_page import Page, escape, table_html
from local.reporting.experiment import Experiment
from local.reporting.glossary import explain, short
from local.scoring.align import RATES, Unit
from local.scoring.table import HEADS, decimals, minute, unit_in


def add_overview(page: Page, experiment: Experiment) -> None:
    """Add the sentence on the best WER and its origin, and the section with the WER table."""
    for name in experiment.scores:
        page.text(best_line(experiment, name))
    made = max((s.made_by for s in experiment.sets if s.made_by), key=lambda m: m["date"], default=None)
    if made:
        average = f"Average {made['label']} ({made['average']}), decoded {minute(made)} UTC by commit {made['commit']}."
        page.text(average)
    rows: dict[Unit, list[list[str]]] = {}
    for name, found in experiment.results.items():
        for method, r in found.items():
            rows.setdefault(unit_in(r), []).append(cells(name, method, r))
    page.section(" and ".join(RATES[unit] for unit in rows), "wer")
    first = 1 if len(experiment.results) == 1 else 0  # a single set needs no column
    for unit, lines in rows.items():
        page.html(
            table_html([escape(c) for c in HEADS[unit][first:]], [line[first:] for line in lines], "wer", range(2 - first))
        )
    methods = list(dict.fromkeys(m for found in experiment.results.values() for m in found))
    terms = [(name, explain(name)) for name in dict.fromkeys(name for unit in rows for name in HEADS[unit][first:])]
    terms += [(m if (brief := short(m)) == m.replace("_", " ") else f"{m} (below: {brief})", explain(m)) for m in methods]
    known = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in terms if text)
    page.html(f'<dl class="explained">{known}</dl>')


def best_line(experiment: Experiment, name: str) -> str:
    """Return a sentence on the lowest WER of a set."""
    method = experiment.best_method(name)
    score = experiment.scores[name][method]
    if score.wer is None or score.ci95 is None:
        return f"Set {name}: no reference has a word."
    low, high = score.ci95
    return f"Set {name}: the lowest {score.rate} is {score.wer:.2f} % (95 % interval {low:.2f} to {high:.2f}), by {method}."


def cells(name: str, method: str, r: dict) -> list[str]:
    """Return one row of the WER table as HTML. r: its entry in wer.json."""
    interval = "{:.2f}\u00a0-\u00a0{:.2f}".format(*r["ci95"]) if r.get("ci95") else "-"
    costs = [decimals(r.get("rtf"), 4), decimals(r.get("peak_memory_mib"), 0), decimals(r.get("symbol_delay"), 0, factor=1000)]
    label = method_html(method) + (" (oracle)" if r.get("oracle") else "")
    counts = [str(r[key]) for key in ("sub", "del", "ins", "words")]
    cer = [decimals(r.get("cer"))] if unit_in(r) == "word" else []
    return [escape(name), label, decimals(r["wer"]), interval, *counts, *cer, *costs]


def method_html(method: str) -> str:
    """Return the name of a method as HTML, short on a phone; elsewhere it may be broken behind its underscores."""
    full = escape(method).replace("_", "_<wbr>")
    return f'<span class="full">{full}</span><abbr class="brief" title="{escape(method)}">{escape(short(method))}</abbr>'


def add_table(page: Page, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Add a table of texts whose first two columns are a set and a method, which has a short name on a phone."""
    cells = [[escape(name), method_html(method), *map(escape, others)] for name, method, *others in rows]
    page.html(table_html([escape(c) for c in head], cells, "wer", (0, 1)))
