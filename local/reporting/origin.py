"""The report's section on where an experiment came from: configuration, commits, versions, commands and times, tuning."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.common.errors import UserError, reason
from local.common.html_page import Page, escape
from local.common.progress import clock
from local.common.text_files import read_lines, read_yaml
from local.common.visible import shortened
from local.config.keys import leaves
from local.config.load import load_config, to_dict
from local.reporting.experiment import Experiment
from local.reporting.glossary import counted

import yaml

JOURNAL = Path("log", "journal.tsv")
RUN = "run"  # section of config.yaml that is not a configuration: what local/train.py records
PASS = "seconds of audio per pass"  # train.max_duration may be auto; this is what was chosen
MISSING = "-"
MOST_CALLS, MOST_TRIED = 40, 3  # calls that are shown, the last ones; rows of tune.tsv per method
LONGEST = 300  # characters of a value or command
HEAD = ("date", "host", "stages", "time", "status", "command")


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the keys of two configurations whose values differ, with both values as JSON; `MISSING` where there is none."""
    first, second = (dict(leaves({k: v for k, v in c.items() if k != RUN})) for c in (ours, theirs))
    names = dict.fromkeys([*second, *first])
    values = [(str(name), *(shown(c[name]) if name in c else MISSING for c in (first, second))) for name in names]
    return [row for row in values if row[1] != row[2]]  # type: ignore[misc]


def shown(value: Any) -> str:
    """Return a value as it can be written in a configuration, shortened."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str), LONGEST)


@dataclass(frozen=True)
class Call:
    """A stage that ran, from a journal: when it ended, on which host, its seconds, its exit status, the command."""

    date: str
    host: str
    stage: str
    seconds: int
    status: str
    command: str


def read_journal(path: Path) -> tuple[list[Call], int]:
    """Return the rows of log/journal.tsv, and how many are damaged (a machine that crashed); none without a file."""
    if not path.is_file():
        return [], 0
    calls, damaged = [], 0
    for line in filter(None, read_lines(path)):
        cells = line.split("\t")
        if len(cells) == 6 and cells[3].isdecimal() and len(cells[3]) < 12:
            calls.append(Call(cells[0], cells[1], cells[2], int(cells[3]), cells[4], cells[5]))
        else:
            damaged += 1
    return calls, damaged


def add_origin(page: Page, experiment: Experiment) -> None:
    """Add configuration, commits, versions, commands, times and tuned settings. Raises `UserError` for a damaged file."""
    page.section("Origin", "origin")
    page.table(("what", "value"), list(facts(experiment)), (0, 1))
    if (note := commit_note(experiment)) is not None:
        page.text(note)
    page.heading("Configuration")
    if experiment.config:
        found = differences(experiment.config, to_dict(load_config()))
        page.text("Keys whose value differs from conf/base.yaml:" if found else "No key differs from conf/base.yaml.")
        if found:
            page.table(("key", "here", "base.yaml"), found, (0, 1, 2))
        if any(MISSING in row for row in found):
            page.note(f"{MISSING}: the key did not exist when the model was trained, or exists no longer.")
        page.html(details("The whole configuration", yaml.safe_dump(experiment.config, sort_keys=False, allow_unicode=True)))
    else:
        page.text("The experiment has no config.yaml: it was not trained in this folder.")
    add_tuning(page, experiment.exp_dir)
    add_calls(page, experiment)


def details(title: str, text: str) -> str:
    """Return the HTML of a text that is shown after a click on its title."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text, keep=chr(10))}</pre></details>"


def decoding_commits(experiment: Experiment) -> list[str]:
    """Return the commits of the decoded sets, each once."""
    return list(dict.fromkeys(str(s.made_by["commit"]) for s in experiment.sets if s.made_by.get("commit")))


def facts(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yield what made the experiment: commits, average, tokens, versions, device."""
    run = experiment.config.get(RUN)
    run = run if isinstance(run, dict) else {}
    yield "experiment", str(experiment.exp_dir)
    yield "data", str(experiment.data_dir or MISSING)
    yield "trained by commit", str(run.get("git_commit") or MISSING)
    yield "decoded by commit", ", ".join(decoding_commits(experiment)) or MISSING
    averages = dict.fromkeys(f"{s.made_by['label']} ({s.made_by['average']})" for s in experiment.sets if s.made_by)
    yield "average", ", ".join(averages) or MISSING
    yield "tokens", f"{run.get('vocab_size', MISSING)}, hash {run.get('tokens_hash', MISSING)}"
    for key, label in (("parameters", "parameters"), ("train_hours", "hours of training speech"), ("max_duration", PASS)):
        if run.get(key) is not None:
            yield label, str(run[key])
    versions = run.get("versions")
    for name, version in versions.items() if isinstance(versions, dict) else ():
        yield f"version of {name}", str(version)
    yield "decoded on", ", ".join(dict.fromkeys(str(s.stats.get("device", MISSING)) for s in experiment.sets)) or MISSING
    dates = sorted(str(s.made_by["date"]) for s in experiment.sets if s.made_by)
    yield "decoded at (UTC)", dates[-1][:16].replace("T", " ") if dates else MISSING


def commit_note(experiment: Experiment) -> str | None:
    """Return a warning if training and decoding were not by the same commit; None if they were, or if it is unknown."""
    run = experiment.config.get(RUN)
    trained = str(run.get("git_commit") or "") if isinstance(run, dict) else ""
    others = [commit for commit in decoding_commits(experiment) if commit != trained]
    if not trained or not others:
        return None
    return f"Commit {trained} trained the model, commit {', '.join(others)} decoded: the code may have changed in between."


def add_tuning(page: Page, exp_dir: Path) -> None:
    """Add the settings in tuned.yaml and, of all that tune.tsv tried, the best of each method; nothing without the files."""
    tuned, tried = exp_dir / "tuned.yaml", exp_dir / "tune.tsv"
    if tuned.is_file():
        content = read_yaml(tuned)
        if not isinstance(content, dict):
            raise UserError(f"{tuned}: damaged; stage tune of run.sh makes it again (--force)")
        page.heading("Tuned settings")
        rows = [(str(key), shown(value)) for key, value in leaves(content) if value != {}]
        page.text("Chosen on the dev sets; they replace those of the configuration." if rows else "Tuning chose no setting.")
        if rows:
            page.table(("key", "value"), rows, (0, 1))
    if tried.is_file() and (found := best_tried(tried)):
        page.text(f"The best settings that were tried (tune.tsv has all), at most {MOST_TRIED} of each method:")
        page.table(("method", "settings", "errors", "words", "WER %"), found, (0, 1))


def best_tried(path: Path) -> list[list[str]]:
    """Return the rows of tune.tsv with the lowest WER of each method, in the order of the file. Raises `UserError`."""
    fixed = ("method", "errors", "words", "wer")
    tried: dict[str, list[tuple[float, list[str]]]] = {}
    try:
        for row in csv.DictReader(read_lines(path), delimiter="\t", restkey="too many"):
            if "too many" in row:
                raise ValueError("too many cells")
            settings = ", ".join(f"{key}={value}" for key, value in row.items() if value and key not in fixed)
            cells = [row["method"], settings or "no setting", *(row[key] for key in fixed[1:])]
            tried.setdefault(row["method"], []).append((float(row["wer"]), cells))
    except (KeyError, TypeError, ValueError, csv.Error) as e:
        raise UserError(f"{path}: damaged ({reason(e)}); stage tune of run.sh makes it again (--force)") from None
    return [cells for rows in tried.values() for _, cells in sorted(rows, key=lambda row: row[0])[:MOST_TRIED]]


def add_calls(page: Page, experiment: Experiment) -> None:
    """Add the times of the stages and the commands, those of the preparation first."""
    folders = [f for f in (experiment.data_dir, experiment.exp_dir) if f is not None]
    journals = [read_journal(folder / JOURNAL) for folder in folders]
    calls, damaged = [call for found, _ in journals for call in found], sum(n for _, n in journals)
    page.heading("Commands and times")
    if not calls:
        page.text("There is no log/journal.tsv: the programs were called without prepare.sh and run.sh.")
        return
    page.table(("stage", "runs", "failed runs", "time"), stage_times(calls))
    shown_calls = grouped(calls)
    page.text(
        "Commands, the oldest first. Stages that were skipped are not in the list."
        + (f" Only the last {MOST_CALLS} of {len(shown_calls)} are shown." if len(shown_calls) > MOST_CALLS else "")
        + (f" {counted(damaged, 'damaged line')} of journal.tsv left out." if damaged else "")
    )
    page.table(HEAD, shown_calls[-MOST_CALLS:], (0, 1, 2, 5))


def stage_times(calls: Sequence[Call]) -> list[list[str]]:
    """Return how often each stage ran, how often it failed, and its time in all; the sum of all stages comes last."""
    rows = []
    stages = list(dict.fromkeys(call.stage for call in calls))
    groups = [(stage, [call for call in calls if call.stage == stage]) for stage in stages]
    for name, found in [*groups, ("all", calls)]:
        failed = sum(call.status != "0" for call in found)
        rows.append([name, str(len(found)), str(failed), clock(sum(call.seconds for call in found))])
    return rows


def grouped(calls: Sequence[Call]) -> list[list[str]]:
    """Return a row for each call of a script: stages that follow each other with the same command and host.

    A stage that failed ends a call, and a call has no stage twice.
    """
    groups: list[list[Call]] = []
    for call in calls:
        last = groups[-1] if groups else []
        same = last and (last[-1].host, last[-1].command) == (call.host, call.command) and last[-1].status == "0"
        if same and call.stage not in {c.stage for c in last}:
            last.append(call)
        else:
            groups.append([call])
    rows = []
    for found in groups:
        stages, time = ", ".join(call.stage for call in found), clock(sum(call.seconds for call in found))
        last_call = found[-1]
        rows.append([found[0].date, last_call.host, stages, time, last_call.status, shortened(last_call.command, LONGEST)])
    return rows
