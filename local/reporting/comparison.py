"""The page that compares experiments: WER, utterances that got better or worse, configurations, trainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from local.common.html_page import Page, escape, new_figure
from local.common.visible import shortened
from local.reporting.audio import AudioBudget
from local.reporting.breakdowns import count
from local.reporting.curves import COLOURS, HEIGHT, WIDTH, draw, finish, read_curves
from local.reporting.experiment import Experiment
from local.reporting.origin import RUN, differences
from local.reporting.overview import add_table
from local.reporting.utterances import MARKS, Wrong, alignment
from local.scoring.comparison import Comparison, compare_experiments
from local.scoring.hypotheses import is_oracle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CHANGED = 40  # utterances that are shown of those that got better, and of those that got worse
LINES = (  # file, column, label ({rate}: WER or CER), whether on a logarithmic axis
    ("train.csv", "pruned_loss", "pruned loss of the training, nats per frame", True),
    ("valid.csv", "pruned_loss", "pruned loss of the dev parts, nats per frame", True),
    ("valid.csv", "wer", "{rate} of dev utterances in %", False),
)
SIGNIFICANT = (
    "Significant: if both were equally good, so large a difference would come by chance in less than one of 20 comparisons "
    "(exact permutation test over utterances, two-sided). Of many comparisons a few are significant by chance. The test "
    "accounts for the choice of utterances, not for that of the seed: a second training may differ by more."
)


def add_comparison(page: Page, experiments: Sequence[Experiment], limit_bytes: int) -> None:
    """Add the comparison of the first experiment with each other. limit_bytes: of the audio.

    Raises `UserError` if one has no set, method or utterance in common with the first.
    """
    first, *others = experiments
    names = labels(experiments)
    found = [compare_experiments(first.scores, other.scores, str(other.exp_dir)) for other in others]
    page.table(("name", "folder"), list(zip(names, (str(e.exp_dir) for e in experiments), strict=True)), left=(0, 1))
    rates = {e.rate for e in experiments}
    rate = rates.pop() if len(rates) == 1 else "error rate"
    page.section(f"{rate[0].upper()}{rate[1:]}", "wer")
    add_table(page, ["set", "method", *names], list(side_by_side(experiments)))
    page.note(
        f"In brackets: the 95 % interval of each {rate}. Two intervals may overlap although the difference is significant."
    )
    for name, comparisons in zip(names[1:], found, strict=True):
        page.heading(f"{names[0]} against {name}")
        head = ["set", "method", names[0], name, "fewer errors", "difference"]
        add_table(page, head, [row(c, names[0], name) for c in comparisons])
        for line in dict.fromkeys(f"Set {c.name}{c.restriction}." for c in comparisons if c.restriction):
            page.text(line)
    page.note(SIGNIFICANT)
    page.section("Utterances that changed", "changed")
    page.html(f'<p class="note aligned">{MARKS}</p>')
    budget = AudioBudget(limit_bytes, page.folder)
    for name, other, comparisons in zip(names[1:], others, found, strict=True):
        for comparison in best_by_set(comparisons):
            page.heading(f"Set {comparison.name}, {comparison.method}: from {names[0]} to {name}")
            add_changed(page, comparison, (names[0], name), (first, other), budget)
    page.section("Configuration", "configuration")
    for name, other in zip(names[1:], others, strict=True):
        page.heading(f"{names[0]} and {name}")
        add_differences(page, (names[0], name), (first, other))
    page.section("Training", "training")
    drawings = [
        (figure, label)
        for file, column, form, log in LINES
        for label in [form.format(rate=rate)]
        for figure in lines(experiments, file, column, label, log)
    ]
    for figure, label in drawings:
        page.drawing(figure, f"{label[0].upper()}{label[1:]}, over the steps of the training.")
    if not drawings:
        page.text("No experiment has a train.csv or valid.csv with numbers.")


def labels(experiments: Sequence[Experiment]) -> list[str]:
    """Return a short name for each experiment, all different: of its folder, or with a number."""
    found = [shortened(e.exp_dir.name or str(e.exp_dir)) for e in experiments]
    return [name if found.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(found, 1)]


def side_by_side(experiments: Sequence[Experiment]) -> Iterator[list[str]]:
    """Yield the WER of each set and method with its interval, by experiment; a dash if it was not decoded."""
    places = dict.fromkeys((n, m) for e in experiments for n, methods in e.scores.items() for m in methods)
    for n, m in places:
        cells = []
        for e in experiments:
            score = e.scores.get(n, {}).get(m)
            known = score is not None and score.wer is not None and score.ci95 is not None
            cells.append(f"{score.wer:.2f} ({score.ci95[0]:.2f} - {score.ci95[1]:.2f})" if known else "-")  # type: ignore[union-attr,index]
        yield [n, m + (" (oracle)" if is_oracle(m) else ""), *cells]


def row(c: Comparison, first: str, second: str) -> list[str]:
    """Return the cells of a comparison."""
    if c.first.wer is None or c.second.wer is None:
        return [c.name, c.method, "-", "-", "no reference word in common", "-"]
    return [c.name, c.method, f"{c.first.wer:.2f}", f"{c.second.wer:.2f}", ("equal", first, second)[c.better], c.verdict]


def best_by_set(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return of each set the method with the fewest errors of both experiments together; oracles only if there is no other."""
    best: dict[str, Comparison] = {}
    for c in sorted(comparisons, key=lambda c: (is_oracle(c.method), c.first.errors + c.second.errors)):
        best.setdefault(c.name, c)
    return list(best.values())


def add_changed(
    page: Page, c: Comparison, names: tuple[str, str], experiments: tuple[Experiment, Experiment], budget: AudioBudget
) -> None:
    """Add the utterances in which the second experiment has fewer errors, then those with more; the largest change first."""
    before, after = c.first.utterance_errors, c.second.utterance_errors
    places = sorted(range(len(before)), key=lambda i: (-abs(after[i] - before[i]), c.first.utterances[i].id))
    for title, sign in (("better", -1), ("worse", 1)):
        changed = [i for i in places if sign * (after[i] - before[i]) > 0]
        shown = changed[:MOST_CHANGED]
        more = f"; the {len(shown)} with the largest change are shown" if len(changed) > len(shown) else ""
        parts = [article(c, i, names, experiments, budget) for i in shown]
        summary = f"<summary>{len(changed)} of {len(before)} utterances got {title}{more}</summary>"
        page.html(f'<details class="method"{" open" if parts else ""}>{summary}{"".join(parts)}</details>')


def article(
    c: Comparison, place: int, names: tuple[str, str], experiments: tuple[Experiment, Experiment], budget: AudioBudget
) -> str:
    """Return an utterance's id, speaker, errors before and after, both hypotheses aligned, and its audio."""
    utterance = c.first.utterances[place].id
    pairs = dict(zip(names, (c.first.alignments[place], c.second.alignments[place]), strict=True))
    counts = {label: count(found) for label, found in pairs.items()}
    known = (e.speech.get(c.name, {}).get(utterance) for e in experiments)
    speech = next((found for found in known if found is not None), None)
    facts = [f"errors: {counts[names[0]].errors}, then {counts[names[1]].errors}"]
    facts += [f"speaker <bdi>{escape(speech.speaker)}</bdi>"] if speech and speech.speaker else []
    facts += [f"{speech.duration:.2f} s"] if speech else []
    head = f"<article><h3><bdi>{escape(utterance)}</bdi></h3><p>{' · '.join(facts)}</p>"
    audio = budget.element(speech) if speech else ""
    return f"{head}{alignment(Wrong(c.name, utterance, pairs, counts))}{audio}</article>"


def add_differences(page: Page, names: tuple[str, str], experiments: tuple[Experiment, Experiment]) -> None:
    """Add the keys of two configurations whose values differ, and what else differs in how they were trained."""
    if lacking := [name for name, e in zip(names, experiments, strict=True) if not e.config]:
        page.text(f"No config.yaml is in {' and '.join(lacking)}: not trained in this folder.")
        return
    rows = differences(*({**e.config, "trained": e.config.get(RUN) or {}} for e in experiments))
    if rows:
        page.table(("key", *names), rows)
    else:
        page.text("All keys have the same values.")


def lines(experiments: Sequence[Experiment], file: str, column: str, label: str, log: bool) -> Iterator[Figure]:
    """Yield a drawing of one column of all experiments over the steps, if one has it."""
    figure = new_figure(HEIGHT, WIDTH)
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel=label, yscale="log" if log else "linear")
    drawn = False
    for i, (name, experiment) in enumerate(zip(labels(experiments), experiments, strict=True)):
        if (curves := read_curves(experiment.exp_dir / file)) is not None:
            marker, colour = "" if file == "train.csv" else "o", COLOURS[i % len(COLOURS)]
            values = curves.column(column)
            drawn |= draw(axes, curves.steps, values, label=name, color=colour, alpha=0.85, marker=marker, markersize=4)
    finish(axes)
    if drawn:
        yield figure
