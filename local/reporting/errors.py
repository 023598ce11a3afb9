"""The report's section on errors: kinds, groups of utterances, and confusions that filter the list of utterances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from local.common.errors import UserError
from local.common.html_page import Page, escape, table_html
from local.common.text_files import iterate_lines
from local.common.visible import shortened
from local.reporting.audio import RATE, UNREADABLE, samples_of, speech_to_noise
from local.reporting.breakdowns import (
    Counts,
    Group,
    by_number,
    by_speaker,
    by_vocabulary,
    count,
    known_words,
    lengths,
    rates,
)
from local.reporting.experiment import Experiment
from local.reporting.overview import method_html
from local.scoring.align import COUNTED, EPS, Score
from local.scoring.hypotheses import is_oracle
from local.scoring.speech import Speech

MOST_ROWS = 40  # of a table of groups or confusions
GROUP_HEAD = ("group", "WER %", "95 % interval", "", "words", "sub", "del", "ins", "utterances")
KIND_HEAD = ("method", "errors", "sub", "del", "ins", "del at the beginning", "del at the end", "nothing recognised")
Levels = dict[str, dict[str, float]]  # by set and id: speech above noise in dB


class Confusions:
    """Number the confusions that the tables show. The list of utterances names them by these numbers."""

    def __init__(self) -> None:
        """Start with none."""
        self.numbers: dict[tuple[str, str, str, str], int] = {}  # set, method, reference word, hypothesis word

    def number(self, name: str, method: str, pair: tuple[str, str]) -> int:
        """Return the number of a confusion, a new one if it has none yet."""
        return self.numbers.setdefault((name, method, *pair), len(self.numbers))

    def of(self, name: str, method: str, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Return the numbers of an alignment's confusions, as far as tables show them."""
        found = (self.numbers.get((name, method, r, h)) for r, h in pairs if r != h)
        return [n for n in dict.fromkeys(found) if n is not None]


def measured(experiment: Experiment) -> Levels:
    """Return how far speech is above noise in dB, by set and id, of all utterances whose audio can be read."""

    def one(speech: Speech) -> tuple[str, float | None]:
        try:
            return speech.id, speech_to_noise(samples_of(speech, RATE), RATE)
        except UNREADABLE:
            return speech.id, None

    levels: Levels = {}
    with ThreadPoolExecutor() as pool:  # libsndfile decodes while others compute
        for name, methods in experiment.scores.items():
            ids = {u.id for score in methods.values() for u in score.utterances}
            speech = [s for i, s in experiment.speech.get(name, {}).items() if i in ids]
            levels[name] = {i: x for i, x in pool.map(one, speech) if x is not None}
    return levels


def add_errors(page: Page, experiment: Experiment, levels: Levels, confusions: Confusions) -> None:
    """Add the section. levels: from `measured`. confusions: the numbers of those in the tables are noted there."""
    page.section("Errors", "errors")
    known = training_words(experiment)
    for name, methods in experiment.scores.items():
        page.heading(f"Set {name}")
        counts = {method: [count(pairs) for pairs in score.alignments] for method, score in methods.items()}
        page.html(table_html(KIND_HEAD, [kind_row(method, found) for method, found in counts.items()]))
        page.note(
            "The last three columns are parts of the deletions: words before the first recognised word, words after the last "
            "one, and the words of utterances in which nothing was recognised."
        )
        best = experiment.best_method(name)
        for method, score in methods.items():
            tables = "".join(breakdown_tables(experiment, name, score, counts[method], levels.get(name, {}), known))
            confused = confusion_table(name, method, score, confusions)
            oracle = " (oracle)" if is_oracle(method) else ""
            title = f"{method_html(method)}{oracle}: {score.rate} by group, and confusions"
            opened = " open" if method == best else ""
            page.html(f'<details class="method"{opened}><summary>{title}</summary>{tables}{confused}</details>')


def training_words(experiment: Experiment) -> set[str]:
    """Return the words of the training transcripts; none if they are not there."""
    if experiment.lang_dir is None or not (path := experiment.lang_dir / "transcript.txt").is_file():
        return set()
    try:
        return known_words(iterate_lines(path))
    except UserError:
        return set()


def kind_row(method: str, counts: Sequence[Counts]) -> list[str]:
    """Return the kinds of errors of one method as cells."""
    keys = ("errors", "sub", "dels", "ins", "begin", "end", "empty")
    return [method_html(method), *(str(sum(getattr(c, key) for c in counts)) for key in keys)]


def breakdown_tables(
    experiment: Experiment, name: str, score: Score, counts: Sequence[Counts], levels: dict[str, float], known: set[str]
) -> Iterator[str]:
    """Yield the tables of one set and method; those whose data are missing are left out."""
    speech, ids = experiment.speech.get(name, {}), [u.id for u in score.utterances]
    quotients = [levels.get(i) for i in ids]
    counted = COUNTED[score.unit]
    yield group_table("Speaker", score, by_speaker(ids, counts, speech))
    yield group_table(f"Length in {counted}", score, by_number(lengths(score), counts))
    yield group_table(f"Speaking rate in {counted} per second", score, by_number(rates(score, speech), counts, digits=1))
    note = "95th less 10th percentile of the levels of 25 ms frames: an estimate, too low for utterances without pauses."
    yield group_table("Speech above noise in dB", score, by_number(quotients, counts), note)
    if known:
        note = f"Insertions are not counted here, because they belong to no {score.one} of the reference."
        known = known if score.unit == "word" else set("".join(known))
        yield group_table(f"{counted.capitalize()} of the reference", score, by_vocabulary(score.alignments, known), note)


def group_table(title: str, score: Score, groups: Sequence[Group], note: str = "") -> str:
    """Return a table of groups with their error rate as a drawing, too; "" without groups."""
    if not groups:
        return ""
    shown = groups[:MOST_ROWS]
    most = max([min(g.ci95[1], 3 * (g.wer or 0) + 5) for g in shown if g.ci95] or [1.0])
    rows = [group_row(g, most) for g in shown]
    if more := len(groups) - len(shown):
        note += f" {more} more groups have lower rates."
    small = f'<p class="note">{escape(note.strip())}</p>' if note else ""
    head = [{"WER %": f"{score.rate} %", "words": COUNTED[score.unit]}.get(name, name) for name in GROUP_HEAD]
    return f'<div class="group"><h4>{escape(title)}</h4>{table_html(head, rows)}{small}</div>'


def group_row(g: Group, most: float) -> list[str]:
    """Return a group as cells. most: percent at the right end of its drawing."""
    wer = "-" if g.wer is None else f"{g.wer:.2f}"
    between = "{:.2f}\u00a0-\u00a0{:.2f}".format(*g.ci95) if g.ci95 else "-"
    counts = [str(n) for n in (g.words, g.sub, g.dels, g.ins, g.utterances)]
    return [f"<bdi>{escape(shortened(g.label))}</bdi>", wer, between, bar(g, most), *counts]


def bar(g: Group, most: float) -> str:
    """Return a small drawing: the interval as a line, the WER as a dot. The numbers stand beside it."""
    if g.wer is None or g.ci95 is None:
        return ""
    low, high, at = (min(100.0, 100 * x / most) for x in (*g.ci95, g.wer))
    line = f'<path d="M{low + 4:.0f} 6H{high + 4:.0f}"/><circle cx="{at + 4:.0f}" cy="6" r="3.5"/>'
    return f'<svg class="bar" width="108" height="12" aria-hidden="true">{line}</svg>'


def confusion_table(name: str, method: str, score: Score, confusions: Confusions) -> str:
    """Return the most frequent errors, each with a button that shows the utterances in which it is."""
    found: Counter[tuple[str, str]] = Counter(score.substitutions)
    found.update({(word, EPS): n for word, n in score.deletions.items()})
    found.update({(EPS, word): n for word, n in score.insertions.items()})
    if not found:
        return '<p class="note">No error.</p>'
    rows = []
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    for pair, n in ordered[:MOST_ROWS]:
        number = confusions.number(name, method, pair)
        said, heard = (f"<bdi>{escape(word)}</bdi>" if word else "<i>nothing</i>" for word in pair)
        button = f'<button type="button" data-confusion="{number}" aria-label="Show utterances" hidden>show</button>'
        rows.append([said, heard, str(n), button])
    more = len(ordered) - len(rows)
    rest = f'<p class="note">{more} more confusions are in errors/{escape(name)}.{escape(method)}.txt.</p>' if more else ""
    table = table_html(("said", "recognised", "times", ""), rows, left=(0, 1))
    return f'<div class="group"><h4>Confusions</h4>{table}{rest}</div>'
