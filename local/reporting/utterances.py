"""The report's list of wrong utterances: aligned texts of all methods, audio, picture. report.js sorts and filters it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from local.common.html_page import Page, escape
from local.reporting.audio import AudioBudget
from local.reporting.breakdowns import Counts, Pairs, count
from local.reporting.errors import Confusions, Levels
from local.reporting.experiment import Experiment
from local.reporting.glossary import counted, short
from local.reporting.pictures import Painter
from local.scoring.align import EPS
from local.scoring.speech import Speech

KINDS = {"s": "substitution", "d": "deletion", "i": "insertion", "b": "deletion at the beginning", "e": "deletion at the end"}
KINDS["n"] = "nothing recognised"
SORTS = {"errors": "errors", "wer": "WER", "duration": "duration", "speaker": "speaker", "id": "id"}
LONGEST_WORD = 200  # characters of a word in the list


@dataclass(frozen=True)
class Wrong:
    """An utterance that a method got wrong: its alignment and counts under each method of its set."""

    name: str
    id: str
    pairs: Mapping[str, Pairs]
    counts: Mapping[str, Counts]

    @property
    def errors(self) -> int:
        """Errors of all methods together."""
        return sum(c.errors for c in self.counts.values())


def wrong_utterances(experiment: Experiment) -> list[Wrong]:
    """Return the utterances that any method got wrong, those with the most errors first."""
    found = []
    for name, methods in experiment.scores.items():
        for aligned in zip(*(score.alignments for score in methods.values()), strict=True):
            pairs = dict(zip(methods, aligned, strict=True))
            found.append((name, pairs, {m: count(p) for m, p in pairs.items()}))
    ids = (u.id for methods in experiment.scores.values() for u in next(iter(methods.values())).utterances)
    wrong = [Wrong(name, i, pairs, counts) for i, (name, pairs, counts) in zip(ids, found, strict=True)]
    return sorted((w for w in wrong if w.errors), key=lambda w: (-w.errors, w.name, w.id))


def add_utterances(
    page: Page, experiment: Experiment, levels: Levels, confusions: Confusions, painter: Painter, limit_bytes: int
) -> None:
    """Add the section: as many utterances as fit into half of `limit_bytes` of text; audio and pictures get the rest."""
    page.section("Wrong utterances", "utterances")
    wrong = wrong_utterances(experiment)
    methods = list(dict.fromkeys(m for found in experiment.scores.values() for m in found))
    if not wrong:
        page.text("No utterance is wrong.")
        return
    texts: list[tuple[str, str]] = []
    used = 0
    for number, w in enumerate(wrong):
        texts.append((article_start(number, w, experiment, levels, confusions, methods), alignment(w)))
        used += sum(len(text.encode()) for text in texts[-1])
        if used > limit_bytes // 2:
            break
    if more := len(wrong) - len(texts):
        page.note(f"{more} more, with fewer errors, would make the page too large; they are in the folder errors.")
    page.html(f"<section>{controls(wrong[: len(texts)], experiment, methods)}")  # the form stays in sight within the section
    budget = AudioBudget(limit_bytes - used, page.folder)
    parts = (start + text + media(w, experiment, budget, painter) for (start, text), w in zip(texts, wrong, strict=False))
    page.html('<div id="list">' + "".join(f"{part}</article>\n" for part in parts) + f"</div>{MORE}</section>")


def article_start(
    number: int, w: Wrong, experiment: Experiment, levels: Levels, confusions: Confusions, methods: Sequence[str]
) -> str:
    """Return an utterance's beginning: what the script sorts and filters by, id, speaker, duration, errors."""
    speech = experiment.speech.get(w.name, {}).get(w.id)
    counts = [w.counts.get(m) for m in methods]
    shown = [n for method, pairs in w.pairs.items() for n in confusions.of(w.name, method, pairs)]
    words = max(c.words for c in w.counts.values())
    data = {
        "set": w.name,
        "speaker": speech.speaker if speech else "",
        "duration": f"{speech.duration:g}" if speech else "0",
        "words": str(words),
        "errors": ",".join("-" if c is None else str(c.errors) for c in counts),
        "kinds": ",".join("" if c is None else kinds(c) for c in counts),
        "confusions": " ".join(map(str, shown)),
    }
    attributes = "".join(f' data-{key}="{escape(value)}"' for key, value in data.items())
    facts = [f"set <bdi>{escape(w.name)}</bdi>"] if len(experiment.scores) > 1 else []
    facts += [f"speaker <bdi>{escape(speech.speaker)}</bdi>"] if speech and speech.speaker else []
    facts += [f"{speech.duration:.2f} s"] if speech else []
    level = levels.get(w.name, {}).get(w.id)
    facts += [f"speech {level:.0f} dB above noise"] if level is not None else []
    least, most = (f(c.errors for c in w.counts.values()) for f in (min, max))
    facts += [
        counted(words, next(iter(experiment.scores[w.name].values())).one),
        f"{least} to {most} errors" if least < most else counted(most, "error"),
    ]
    return f'<article id="u{number}"{attributes}><h3><bdi>{escape(w.id)}</bdi></h3><p>{" · ".join(facts)}</p>'


def kinds(c: Counts) -> str:
    """Return the letters of the kinds of errors that an utterance has; see `KINDS`."""
    has = (("s", c.sub), ("d", c.dels), ("i", c.ins), ("b", c.begin), ("e", c.end), ("n", c.empty))
    return "".join(letter for letter, n in has if n)


def alignment(w: Wrong) -> str:
    """Return a table: the reference, and each different hypothesis with the methods that found it, one column per word."""
    shared: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for method, pairs in w.pairs.items():
        shared.setdefault(tuple(pairs), []).append(method)
    ref = next(slotted(pairs)[0] for pairs in shared)
    most = [max(len(slotted(pairs)[1][k]) for pairs in shared) for k in range(len(ref) + 1)]  # insertions before word k
    head = [cell for k in range(len(ref) + 1) for cell in ["<td>"] * most[k] + [f"<td>{word(r)}" for r in ref[k : k + 1]]]
    lines = [f'<tr><th scope="row">reference{"".join(head)}']
    for pairs, methods in shared.items():
        lines.append(f'<tr><th scope="row">{escape(who(methods, w))}{"".join(hypothesis_cells(pairs, most))}')
    direction = "rtl" if right_to_left(" ".join(ref)) else "ltr"
    return f'<div class="scroll"><table class="aligned" dir="{direction}">{"".join(lines)}</table></div>'


def who(methods: Sequence[str], w: Wrong) -> str:
    """Return the label of a hypothesis that these methods found."""
    return "all methods" if len(methods) == len(w.pairs) > 1 else ", ".join(map(short, methods))


def slotted(pairs: Pairs) -> tuple[list[str], list[list[str]]]:
    """Return an alignment's reference words, and the words inserted before each and after the last."""
    ref: list[str] = []
    inserted: list[list[str]] = [[]]
    for r, h in pairs:
        if r == EPS:
            inserted[-1].append(h)
        else:
            ref.append(r)
            inserted.append([])
    return ref, inserted


def hypothesis_cells(pairs: Pairs, most: Sequence[int]) -> Iterator[str]:
    """Yield the cells of a hypothesis. most: the number of columns for insertions before each reference word and at the end."""
    place = filled = 0
    for r, h in [*pairs, ("end", "")]:
        if r == EPS:
            filled += 1
            yield f"<td><ins>{word(h)}</ins>"
            continue
        yield from ["<td>"] * (most[place] - filled)
        place, filled = place + 1, 0
        if place > len(most) - 1:
            return
        yield f"<td>{word(h)}" if r == h else f"<td><mark>{word(h)}</mark>" if h != EPS else f"<td><del>{word(r)}</del>"


def word(text: str) -> str:
    """Return a word as HTML, without its middle if it is very long."""
    return escape(text if len(text) <= LONGEST_WORD else f"{text[: LONGEST_WORD // 2]}...{text[-LONGEST_WORD // 4 :]}")


def right_to_left(text: str) -> bool:
    """Return whether a text's first letter is of a script that is written from right to left."""
    strong = (unicodedata.bidirectional(c) for c in text)
    return next((c for c in strong if c in ("L", "R", "AL")), "L") != "L"


def media(w: Wrong, experiment: Experiment, budget: AudioBudget, painter: Painter) -> str:
    """Return an utterance's audio and picture; beyond the budget, a link to the audio."""
    speech: Speech | None = experiment.speech.get(w.name, {}).get(w.id)
    if speech is None:
        return ""
    text = budget.element(speech)
    if budget.left > 0:
        best = experiment.best_method(w.name)
        picture = painter.picture(speech, experiment.rows[w.name][best][w.id], best)
        budget.left -= len(picture.encode())
        text += picture
    return text


def controls(wrong: Sequence[Wrong], experiment: Experiment, methods: Sequence[str]) -> str:
    """Return the form that sorts and filters the list; the script shows it. It also explains the marks."""
    found = {s.speaker for w in wrong if (s := experiment.speech.get(w.name, {}).get(w.id)) and s.speaker}
    choices = [
        selection("sort", "Sort by", SORTS),
        '<label>Text <input type="search" id="f-text" placeholder="word or id"></label>',
        selection("set", "Set", {"": "all", **{n: n for n in experiment.scores}}) if len(experiment.scores) > 1 else "",
        selection("method", "Method", {"": "any", **{str(i): m for i, m in enumerate(methods)}}),
        selection("kind", "Error", {"": "any", **KINDS}),
        selection("speaker", "Speaker", {"": "all", **{s: s for s in sorted(found)}}) if found else "",
    ]
    clear = '<button type="button" id="f-clear" hidden>All confusions</button>'
    form = f'<form id="filter" hidden>{"".join(choices)}<output id="f-count" aria-live="polite"></output>{clear}</form>'
    return f'{form}<p class="note aligned">{MARKS} Methods with the same hypothesis share a line. {PICTURE_NOTE}</p>'


MORE = '<p><button type="button" id="f-more" hidden>Show more</button></p>'
MARKS = "Marks: <mark>substituted</mark> <del>deleted</del> <ins>inserted</ins>."
PICTURE_NOTE = (
    "Pictures: log-mel features, low frequencies at the bottom, time from left to right. Above: the reference words at their "
    "times in the audio, if these are known. Below: the tokens of the best method at the times at which the model emitted "
    "them, with their confidence in percent."
)


def selection(name: str, label: str, options: Mapping[str, str]) -> str:
    """Return a labelled <select>. options: value and text."""
    items = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options.items())
    return f'<label>{escape(label)} <select id="f-{name}">{items}</select></label>'
