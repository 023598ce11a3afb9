"""The report's section on the utterances whose gradients the filter damped most: usually bad audio or a wrong transcript."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.common.errors import UserError, reason
from local.common.html_page import Page, escape
from local.common.text_files import read_lines
from local.common.visible import unquoted
from local.reporting.audio import AudioBudget
from local.reporting.experiment import Experiment
from local.reporting.glossary import counted
from local.reporting.prepared import parts_of, scan, text_of
from local.scoring.speech import speech_of

MOST = 10  # utterances shown
COPY = re.compile(r"_sp(0\.9|1\.1)$")  # end of the ids of copies at another speed; see local.data.durations


@dataclass(frozen=True)
class Outlier:
    """A row of outliers.tsv; the numbers are texts as they stand there."""

    id: str
    steps: str
    mask: str
    layer: str


def read_outliers(path: Path) -> list[Outlier]:
    """Return the rows of outliers.tsv in its order, those damped most often first. Raises `UserError` naming a damaged line."""
    try:
        rows = list(csv.DictReader(read_lines(path), delimiter="\t"))
    except csv.Error as e:
        raise UserError(f"{path}: damaged ({reason(e)}); remove it to make the report without it") from None
    keys = ("utterance", "steps_damped", "lowest_mask", "layer")
    found = []
    for number, row in enumerate(rows, 2):
        if any(not isinstance(row.get(key), str) for key in keys):
            raise UserError(f"{path}:{number}: damaged: needs {', '.join(keys)}; remove the file to make the report without it")
        found.append(Outlier(unquoted(row[keys[0]]), *(row[key] for key in keys[1:])))
    return found


def add_damped(page: Page, experiment: Experiment, budget: AudioBudget) -> None:
    """Add the utterances that the gradient filter damped most, with their audio; nothing without outliers.tsv.

    Raises `UserError` naming the file and line of anything damaged.
    """
    path = experiment.exp_dir / "outliers.tsv"
    if not path.is_file():
        return
    outliers = read_outliers(path)
    page.section("Utterances damped most", "damped")
    if not outliers:
        page.text("The gradient filter damped no utterance to less than half.")
        return
    page.text(
        f"The gradient filter damped {counted(len(outliers), 'utterance')} to less than half at least once. "
        f"Below are those that it damped most often, at most {MOST}. Listen to them: a wrong transcript, silence, noise or "
        "another language is the usual reason. In a good corpus they are only the hardest or shortest utterances, and nothing "
        "needs to be done."
    )
    cuts: dict[str, dict[str, Any]] = {}
    if experiment.data_dir is not None:
        wanted = {name for o in outliers[:MOST] for name in (o.id, COPY.sub("", o.id))}
        cuts = scan(experiment.data_dir, parts_of(experiment)["train"], wanted).cuts
    for o in outliers[:MOST]:
        page.html(described(o, cuts.get(o.id) or cuts.get(COPY.sub("", o.id)), budget))


def described(outlier: Outlier, cut: dict[str, Any] | None, budget: AudioBudget) -> str:
    """Return transcript, numbers and audio of an utterance as HTML. cut: None if the prepared data do not have it."""
    numbers = f"steps damped: {outlier.steps}; lowest mask: {outlier.mask}, in layer {outlier.layer} (the first is 0)"
    text, seconds, audio = "not in the prepared data", "", ""
    if cut is not None:
        text = text_of(cut)
        try:
            speech = speech_of(cut)
            seconds, audio = f"{speech.duration:.2f} s; ", budget.element(speech)
            if speech.id != outlier.id:
                seconds = "a copy at another speed, whose original you hear; "
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            seconds = "the cut is damaged; "
    about = f'<p class="note">{escape(outlier.id)}; {seconds}{escape(numbers)}</p>'
    return f'<div class="damped"><p><strong>{escape(text)}</strong></p>{about}{audio}</div>'
