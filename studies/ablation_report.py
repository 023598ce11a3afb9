"""Write the ablation's report from the runs' files: ablation.md, ablation.csv, ablation.html and plots (PNG).

It has the WER by control and seed with a bootstrap interval, a comparison of each pair of controls, and curves of the
losses, of the gradient norm by part of the model and of the filter's masks, if train.csv has these columns. It also says
how many of the outliers that studies/stress_data.py planted the filter found.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from local.common.atomic import atomic_write
from local.common.html_page import Page, new_figure
from local.common.visible import cell, markdown, unquoted
from local.scoring.align import RATES, Unit, Utterance, Wanted, score, unit_of, units
from local.scoring.hypotheses import read_hypotheses
from local.scoring.intervals import REPLICATIONS, SEED
from local.scoring.table import decimals

import kaldialign
import numpy as np

Columns = dict[str, np.ndarray]
Table = tuple[list[str], list[list[str]]]  # head, rows
COLOURS = {"filter": "tab:blue", "clip": "tab:orange", "none": "tab:red"}
WER_NOTE = (
    "Interval: 95 %, bootstrap over utterances, with the decodings of all seeds pooled. Dev loss: pruned loss of the last "
    "epoch, in nats per frame, mean over seeds. Skipped: batches with a non-finite loss or gradient, sum over seeds. A "
    "training that stopped because of too many of them is shown as diverged and is in no mean."
)
PAIR_NOTE = (
    "P is the probability of a lower WER by a paired bootstrap over utterances (Bisani and Ney, 2004): decodings of the "
    "same seed are paired, and all seeds are pooled. A P of at least 0.975 is a difference at the 5 % level, two-sided. P "
    "covers the choice of utterances. It treats the seeds' decodings of one utterance as independent, so it is somewhat too "
    "confident, and it covers the variation between trainings only by these seeds; the standard deviation over seeds and "
    "the counts of seeds say more about that."
)


@dataclass(frozen=True)
class Outcome:
    """The results of one run.

    sets: decoded utterances by set; empty if the run diverged. train, valid: train.csv and valid.csv by column. skipped:
    number of skipped batches. damped: how often the filter damped each utterance of outliers.tsv; None without this file.
    """

    control: str
    seed: int
    diverged: bool
    sets: dict[str, list[Utterance]]
    train: Columns
    valid: Columns
    skipped: int
    damped: dict[str, int] | None
    units: dict[str, Unit]  # by set: what its error rate counts

    @property
    def dev_loss(self) -> float:
        """Return the pruned loss of the dev parts after the last epoch, in nats per frame; NaN if it is missing."""
        values = self.valid.get("pruned_loss", np.empty(0))
        return float(values[-1]) if len(values) else math.nan


def read_outcome(folder: Path, control: str, seed: int, method: str, diverged: bool, wanted: Wanted = "auto") -> Outcome:
    """Read the results from a run's folder. wanted: key score.unit."""
    files = [] if diverged else sorted((folder / "decode" / method).glob("*.jsonl"))
    sets = {file.stem: read_hypotheses(file) for file in files}
    skipped = len(list((folder / "bad").glob("step-*.pt")))
    damped, path = None, folder / "outliers.tsv"
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as f:
            damped = {unquoted(row["utterance"]): int(row["steps_damped"]) for row in csv.DictReader(f, delimiter="\t")}
    train, valid = (read_columns(folder / f"{name}.csv") for name in ("train", "valid"))
    found = {name: unit_of((u.ref for u in utterances), wanted) for name, utterances in sets.items()}
    return Outcome(control, seed, diverged, sets, train, valid, skipped, damped, found)


def read_columns(path: Path) -> Columns:
    """Read a CSV file of numbers; an empty cell is NaN. Return no columns if the file does not exist."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else ())}


def wer_table(outcomes: Sequence[Outcome], name: str) -> Table:
    """Return a table with one row per control: WER (or CER) in percent by seed, its mean and interval, dev loss."""
    seeds = list(dict.fromkeys(o.seed for o in outcomes))
    unit = unit_for(outcomes, name)
    head = [
        "control",
        *(f"seed {s}" for s in seeds),
        f"mean {RATES[unit]} %",
        "95 % interval",
        "sd of seeds",
        "dev loss",
        "skipped",
    ]
    rows = []
    for control in dict.fromkeys(o.control for o in outcomes):
        own = {o.seed: o for o in outcomes if o.control == control}
        scored = {seed: score(o.sets[name], unit) for seed, o in own.items() if name in o.sets}
        wers = [s.wer for s in scored.values() if s.wer is not None]
        pooled = score([u for seed in scored for u in own[seed].sets[name]], unit)
        losses = [o.dev_loss for o in own.values() if not o.diverged]
        row = [control]
        row += [decimals(scored[s].wer) if s in scored else "diverged" if s in own and own[s].diverged else "-" for s in seeds]
        row.append(decimals(statistics.mean(wers)) if wers else "-")
        row.append("{:.2f} - {:.2f}".format(*pooled.ci95) if pooled.ci95 else "-")
        row.append(decimals(statistics.stdev(wers)) if len(wers) > 1 else "-")
        row.append(f"{statistics.mean(losses):.4f}" if losses else "-")
        rows.append([*row, str(sum(o.skipped for o in own.values()))])
    return head, rows


def pair_table(outcomes: Sequence[Outcome], name: str) -> Table:
    """Return a table with one row per pair of controls, over the seeds that both finished."""
    unit = unit_for(outcomes, name)
    head = ["pair", f"mean {RATES[unit]} %", "first better in", "second better in", "P(first better)", "P(second better)"]
    rows = []
    by_control: dict[str, dict[int, list[Utterance]]] = {}
    for o in outcomes:
        by_control.setdefault(o.control, {}).update({o.seed: o.sets[name]} if name in o.sets else {})
    for first, second in combinations(by_control, 2):
        seeds = [s for s in by_control[first] if s in by_control[second]]
        if not seeds:
            rows.append([f"{first}, {second}", *["-"] * 5])
            continue
        a, b = ([u for s in seeds for u in by_control[c][s]] for c in (first, second))
        errors = [[score(by_control[c][s], unit).errors for s in seeds] for c in (first, second)]
        wins = [sum(x < y for x, y in zip(*pair, strict=True)) for pair in (errors, errors[::-1])]
        better = probability_better(a, b, unit), probability_better(b, a, unit)
        wers = f"{decimals(score(a, unit).wer)}, {decimals(score(b, unit).wer)}"
        counts = [f"{n} of {len(seeds)} seeds" for n in wins]
        rows.append([f"{first}, {second}", wers, *counts, *(f"{p:.3f}" for p in better)])
    return head, rows


def unit_for(outcomes: Sequence[Outcome], name: str) -> Unit:
    """Return what the error rate of a set counts."""
    return next((o.units[name] for o in outcomes if name in o.units), "word")


def probability_better(a: Sequence[Utterance], b: Sequence[Utterance], unit: Unit = "word") -> float:
    """Return the share of bootstraps in which `a` has the lower rate. Utterances without a reference word do not count."""
    spoken = [[units(text, unit) for text in (x.ref, x.hyp, y.hyp)] for x, y in zip(a, b, strict=True) if x.ref.split()]
    if not spoken:
        return 0.0
    refs, hyps, others = (list(column) for column in zip(*spoken, strict=True))
    return float(kaldialign.bootstrap_wer_ci(refs, others, hyps, replications=REPLICATIONS, seed=SEED)["p_s2_improv_over_s1"])


def damped_table(outcomes: Sequence[Outcome], planted: Sequence[str]) -> Table:
    """Return a table with one row per run with a filter: how many planted and other utterances it damped.

    An utterance counts if its gradient was damped to less than half at least once.
    """
    head = ["run", "planted", "planted and damped", "times each, median", "others damped", "times each, median"]
    rows = []
    for o in outcomes:
        if o.damped is None:
            continue
        found = [o.damped[i] for i in planted if i in o.damped]
        others = [times for i, times in o.damped.items() if i not in set(planted)]
        times = [f"{statistics.median(x):g}" if x else "-" for x in (found, others)]
        rows.append([f"{o.control}-{o.seed}", str(len(planted)), str(len(found)), times[0], str(len(others)), times[1]])
    return head, rows


def numbers(outcomes: Sequence[Outcome]) -> Table:
    """Return the table of ablation.csv: one row per run and set."""
    head = "control seed set diverged wer low high errors words dev_simple_loss dev_pruned_loss skipped steps".split()
    rows = []
    for o in outcomes:
        steps = int(o.train["step"][-1]) if len(o.train.get("step", ())) else 0
        simple = o.valid.get("simple_loss", np.array([math.nan]))[-1]
        after = [f"{simple:.6g}", f"{o.dev_loss:.6g}", str(o.skipped), str(steps)]
        run = [o.control, str(o.seed)]
        for name, utterances in o.sets.items():
            s = score(utterances, o.units[name])
            rates = ["" if x is None else f"{x:.4f}" for x in (s.wer, *(s.ci95 or (None, None)))]
            rows.append([*run, cell(name), "false", *rates, str(s.errors), str(s.words), *after])
        if not o.sets:
            rows.append([*run, "", str(o.diverged).lower(), *[""] * 5, *after])
    return head, rows


def curves(
    outcomes: Sequence[Outcome], part: str, column: str, x: str, positive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (S,) and each run's values at them (runs, S).

    Values between a run's rows are linearly interpolated, values outside of them are NaN. Non-finite values are left out,
    and with `positive`, for a logarithmic axis, also values that are not above 0. If nothing is left, the arrays are empty.
    """
    found = []
    for o in outcomes:
        table = getattr(o, part)
        if column in table:
            keep = np.isfinite(table[column]) & (table[column] > 0 if positive else True)
            found.append((table[x][keep], table[column][keep]))
    found = [(steps, values) for steps, values in found if len(steps)]
    if not found:
        return np.empty(0), np.empty((0, 0))
    grid = np.unique(np.concatenate([steps for steps, _ in found]))
    return grid, np.stack([np.interp(grid, *pair, left=np.nan, right=np.nan) for pair in found])


def draw(axes, outcomes: Sequence[Outcome], part: str, column: str, x: str) -> None:  # type: ignore[no-untyped-def]
    """Draw a line per control, the median over seeds, and a band, their range."""
    for control in dict.fromkeys(o.control for o in outcomes):
        steps, values = curves([o for o in outcomes if o.control == control], part, column, x, positive=True)
        if len(steps):
            axes.set_yscale("log")
            colour = COLOURS.get(control)
            axes.plot(steps, np.nanmedian(values, axis=0), color=colour, label=control, marker="o" if len(steps) < 12 else None)
            axes.fill_between(steps, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=colour, alpha=0.2)
    axes.grid(alpha=0.3)


def plot_losses(page: Page, outcomes: Sequence[Outcome]) -> None:
    """Plot training and dev loss."""
    figure = new_figure(5.0)
    left, right = figure.subplots(1, 2)
    draw(left, outcomes, "train", "loss", "step")
    left.set(title="training loss, weighted as in the warm-up", xlabel="batches", ylabel="nats per frame")
    draw(right, outcomes, "valid", "pruned_loss", "epoch")
    right.set(title="pruned loss on dev", xlabel="epochs", ylabel="nats per frame")
    right.xaxis.get_major_locator().set_params(integer=True)
    left.legend(title="gradient.control")
    page.figure(figure, "losses", "Loss by gradient control: median and range over seeds.")


def plot_norms(page: Page, outcomes: Sequence[Outcome]) -> None:
    """Plot the gradient norm of the whole model and of each of its parts, one panel each."""
    columns = dict.fromkeys(c for o in outcomes for c in o.train if re.match(r"gradient_norm(_|$)", c))
    if not columns:
        return
    height = math.ceil(len(columns) / 3)
    figure = new_figure(2.8 * height + 0.4)
    panels = figure.subplots(height, 3, squeeze=False, sharex=True).flatten()
    for axes, column in zip(panels, columns, strict=False):
        draw(axes, outcomes, "train", column, "step")
        axes.set_title(column.removeprefix("gradient_norm").strip("_") or "whole model")
        axes.tick_params(labelbottom=True)
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    panels[0].legend(title="gradient.control")
    figure.supxlabel("batches")
    figure.supylabel("gradient norm")
    caption = (
        "Gradient norm by part of the model, after the filter and before clipping: mean over the batches between two rows "
        "of train.csv, median and range over seeds."
    )
    page.figure(figure, "gradient_norms", caption)


def plot_masks(page: Page, outcomes: Sequence[Outcome]) -> None:
    """Plot the filter's masks by layer, one panel per statistic; nothing if no run has a filter."""
    found = {m[0]: (m[1], int(m[2])) for o in outcomes for c in o.train if (m := re.fullmatch(r"filter_(.+)_(\d+)", c))}
    if not found:
        return
    kinds = list(dict.fromkeys(kind for kind, _ in found.values()))
    figure = new_figure(4.5)
    from matplotlib import colormaps

    last = max(layer for _, layer in found.values())
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for column, (_, layer) in found.items():
            if found[column][0] == kind:
                steps, values = curves(outcomes, "train", column, "step")
                if not len(steps):
                    continue
                axes.plot(steps, np.nanmedian(values, axis=0), color=colormaps["viridis"](layer / (last + 1)), label=str(layer))
        axes.set(title=kind.replace("_", " "), xlabel="batches", ylim=(0, 1.05 if "mask" in kind else None))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mask (1: unchanged) or share of sequences")
    figure.axes[0].legend(title="layer")
    page.figure(figure, "filter_masks", "Masks of the gradient filter by encoder layer: median over seeds.")


def write_report(outcomes: Sequence[Outcome], about: str, folder: Path, planted: Sequence[str] = ()) -> str:
    """Write FOLDER/ablation.{md,csv,html} and the plots; return the Markdown.

    about: one line on the setting. planted: ids of the training utterances that are planted outliers.
    """
    page = Page("Gradient control: filter, clipping, none", folder)
    lines = [f"# {page.title}\n", f"{about}.\n"]
    page.text(f"{about}.")

    def add(heading: str, table: Table, note: str) -> None:
        lines.extend([f"## {markdown(heading)}\n", markdown_table(*table), f"{note}\n"])
        page.heading(heading)
        page.table(*table)
        page.text(note)

    for name in dict.fromkeys(name for o in outcomes for name in o.sets) or [""]:
        add(f"{RATES[unit_for(outcomes, name)]} of {name}" if name else "No run finished", wer_table(outcomes, name), WER_NOTE)
        add(f"Pairs on {name}" if name else "Pairs", pair_table(outcomes, name), PAIR_NOTE)
    if planted:
        note = "Damped: the filter reduced its gradient to less than half in some layer at least once (outliers.tsv)."
        add("Planted outliers", damped_table(outcomes, planted), note)
    page.heading("Curves")
    plot_losses(page, outcomes)
    plot_norms(page, outcomes)
    plot_masks(page, outcomes)
    page.write("ablation")
    with atomic_write(folder / "ablation.csv") as tmp, tmp.open("w", encoding="utf-8", newline="") as f:
        head, rows = numbers(outcomes)
        csv.writer(f, lineterminator="\n").writerows([head, *rows])
    text = "\n".join([*lines, "Plots: ablation.html, losses.png, gradient_norms.png, filter_masks.png.\n"])
    with atomic_write(folder / "ablation.md") as tmp:
        tmp.write_text(text, encoding="utf-8")
    return text


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown with the first column aligned to the left."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    cells = [[markdown(cell) for cell in row] for row in (head, *rows)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (cells[0], rule, *cells[1:]))
