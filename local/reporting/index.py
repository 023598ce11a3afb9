"""The table of all experiments below a folder: WER by set, hours, parameters, time, date, and how each was configured."""

from __future__ import annotations

import json
import math
import os
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from local.artifacts.decoded_sets import find_sets
from local.common.errors import UserError, reason
from local.common.progress import clock
from local.common.text_files import read_lines, read_yaml
from local.common.visible import markdown, shortened
from local.config.load import load_config, to_dict
from local.reporting.origin import JOURNAL, MISSING, RUN, differences, read_journal
from local.scoring.table import markdown_table, marked_rate, minute, unit_in

MARKS = ("wer.json", "train.csv")  # a folder with one of them is an experiment
INSIDE = {"checkpoints", "data", "decode", "decode_earlier", "errors", "export", "lm", "log", "tensorboard"}  # of an experiment
BASELINE = "greedy_search"
MOST_KEYS = 6  # that are shown of a configuration
RESULT = ("set", "best WER %", "95 % interval", "by", "greedy %")  # columns with a line for each set
FACTS = ("hours", "parameters", "trained for", "date")
HEAD = ("experiment", *RESULT, *FACTS, "differences to base.yaml")
LEFT = (0, 1, 4, 9, 10)


@dataclass
class Entry:
    """An experiment: its folder, the best and the greedy result by set, and `facts`, cells of the table by their heads.

    settings: what differs from base.yaml, as key=value. problem: why something is missing; "" if nothing is damaged.
    """

    folder: Path
    sets: list[list[str]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    problem: str = ""


def index(root: Path) -> str:
    """Return the table of the experiments below `root` as Markdown, for a file in `root`."""
    base = to_dict(load_config())
    entries = [read_entry(folder, base) for folder in experiments(root)]
    seen = Counter(setting for entry in entries for setting in entry.settings)
    rows = []
    for entry in entries:
        entry.settings.sort(key=lambda setting: seen[setting])  # what few experiments have comes first
        rows += [cells(entry, root, result) for result in entry.sets or [[MISSING] * len(RESULT)]]
    title = f"# Experiments\n\n{len(entries)} found: folders with a wer.json or train.csv. Hours: of training speech.\n\n"
    return title + (markdown_table(HEAD, rows, LEFT) if rows else "")


def experiments(root: Path) -> Iterator[Path]:
    """Yield the folders of experiments at and below `root`, by name; links are followed, each folder comes once."""
    seen: set[str] = set()
    for name, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if (place := os.path.realpath(name)) in seen:
            folders.clear()
            continue
        seen.add(place)
        if not set(MARKS).isdisjoint(files):
            folders[:] = [f for f in folders if f not in INSIDE]
            yield Path(name)


def read_entry(folder: Path, base: Mapping[str, Any]) -> Entry:
    """Read what is known of an experiment; what cannot be read is missing, with the reason in `problem`."""
    entry = Entry(folder)
    for read in (read_results, read_config, read_time, read_date):
        try:
            read(entry, base)
        except (UserError, OSError) as e:
            entry.problem = entry.problem or reason(e)
    return entry


def read_results(entry: Entry, _: Mapping[str, Any]) -> None:
    """Read wer.json: of each set the method with the lowest WER, oracles left out, and greedy search."""
    path = entry.folder / "wer.json"
    if not path.is_file():
        return
    try:
        results = json.loads("\n".join(read_lines(path)))
        for name, methods in results.items():
            known = {m: r for m, r in methods.items() if isinstance(r["wer"], float | int) and math.isfinite(r["wer"])}
            best = min((m for m, r in known.items() if not r["oracle"]), key=lambda m: known[m]["wer"], default=None)
            if best is None:
                entry.sets.append([str(name), *[MISSING] * (len(RESULT) - 1)])
                continue
            interval = "{:.2f} - {:.2f}".format(*known[best]["ci95"])
            greedy = rate_in(known[BASELINE]) if BASELINE in known else MISSING
            entry.sets.append([str(name), rate_in(known[best]), interval, str(best), greedy])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        entry.sets.clear()
        raise UserError(f"{path}: damaged; stage score of run.sh makes it again (--force)") from None


def rate_in(row: Mapping[str, Any]) -> str:
    """Return the error rate of an entry of wer.json."""
    return marked_rate(row["wer"], unit_in(row))


def read_config(entry: Entry, base: Mapping[str, Any]) -> None:
    """Read config.yaml: what differs from `base`, and what the training recorded."""
    path = entry.folder / "config.yaml"
    if not path.is_file():
        return
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: damaged: not keys with values")
    entry.settings = [f"{key}={here}" for key, here, there in differences(config, base) if MISSING not in (here, there)]
    run = config.get(RUN)
    run = run if isinstance(run, dict) else {}
    for head, key, form in (("hours", "train_hours", ",.1f"), ("parameters", "parameters", ",.0f")):
        if isinstance(value := run.get(key), float | int) and abs(value) < 1e15:
            entry.facts[head] = format(value, form)


def read_time(entry: Entry, _: Mapping[str, Any]) -> None:
    """Read from the journal how long stage train took, all its calls together."""
    calls, _damaged = read_journal(entry.folder / JOURNAL)
    if seconds := sum(call.seconds for call in calls if call.stage == "train"):
        entry.facts["trained for"] = clock(seconds)


def read_date(entry: Entry, _: Mapping[str, Any]) -> None:
    """Read when the experiment was decoded, else when its file was written (UTC)."""
    file = next((path for mark in MARKS if (path := entry.folder / mark).is_file()), entry.folder)
    written = datetime.fromtimestamp(file.stat().st_mtime, timezone.utc)
    entry.facts["date"] = written.strftime("%Y-%m-%d %H:%M")
    if found := [s.made_by for s in find_sets(entry.folder)[0] if s.made_by]:
        entry.facts["date"] = minute(max(found, key=lambda made: made["date"]))


def cells(entry: Entry, root: Path, result: Sequence[str]) -> list[str]:
    """Return a row of the table as Markdown. result: the set, its best WER, interval and method, and that of greedy search."""
    path = entry.folder.relative_to(root)
    label = markdown(shortened(str(path)))
    report = entry.folder / "report.html"
    if report.is_file():
        label = f"[{label}]({urllib.parse.quote(os.fsencode(path / report.name))})"
    more = len(entry.settings) - MOST_KEYS
    settings = ", ".join(entry.settings[:MOST_KEYS]) + (f" and {more} more" if more > 0 else "")
    facts = [entry.facts.get(head, MISSING) for head in FACTS]
    return [label, *(markdown(text) for text in (*result, *facts, entry.problem or settings or MISSING))]
