"""The table of studies/real_speech.py: WER by run and method with intervals, each run compared with another."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from local.artifacts.decoded_sets import find_sets
from local.common.atomic import write_text
from local.reporting.index import read_entry
from local.scoring.align import Score, score
from local.scoring.comparison import compare
from local.scoring.hypotheses import read_hypotheses
from local.scoring.table import decimals, markdown_table

HEAD = ("run", "seeds", "method", "WER %", "by seed", "95 % interval", "compared", "CER %", "parameters", "trained for")
NOTE = (
    "\nWER: mean over the seeds. The interval and P (exact paired permutation test) pool the utterances of the seeds, for P of "
    "those that both runs have. They say how much depends on the choice of utterances, not of seeds.\n"
    "Parameters and time of training are those of the first seed.\n"
)
Scores = dict[str, dict[int, Score]]  # by method and seed


def read_scores(folders: Mapping[int, Path], part: str) -> Scores:
    """Return the scores of a run on a part; folders: its experiments by seed, some of which may not be decoded yet."""
    found: Scores = {}
    for seed, folder in folders.items():
        for decoded in find_sets(folder)[0]:
            if decoded.name == part:
                found.setdefault(decoded.method, {})[seed] = score(read_hypotheses(decoded.path))
    return found


def pooled(scores: Mapping[int, Score], seeds: Sequence[int]) -> Score:
    """Return the score of the utterances of several seeds together; the seed is added to their ids."""
    return score([replace(u, id=f"{u.id} {seed}") for seed in seeds for u in scores[seed].utterances])


def compared(own: Mapping[int, Score], name: str, other: Mapping[int, Score]) -> str:
    """Return how the WER differs from that of another run, over the seeds of both: `baseline: -20.1 %, significant (P ...)`."""
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return "-"
    found = compare("", "", pooled(other, seeds), pooled(own, seeds))
    assert found.first.wer and found.second.wer is not None
    return f"{name}: {100 * (found.second.wer / found.first.wer - 1):+.1f} %, {found.verdict}"


def rows_of(name: str, folders: Mapping[int, Path], scores: Mapping[str, Scores], against: str) -> list[list[str]]:
    """Return the table's rows of one run; scores: of all runs by name; against: the run to compare with, or this one."""
    facts = read_entry(next(iter(folders.values())), {}).facts
    rows = []
    for method, by_seed in scores[name].items():
        wers = [s.wer for s in by_seed.values() if s.wer is not None]
        both = pooled(by_seed, sorted(by_seed))
        low, high = both.ci95 or (float("nan"), float("nan"))
        other = scores.get(against, {}).get(method, {}) if against != name else {}
        cells = [decimals(statistics.mean(wers)), " ".join(decimals(wer) for wer in wers), f"{low:.2f} - {high:.2f}"]
        cells += [compared(by_seed, against, other), decimals(both.cer), *(facts.get(k, "-") for k in HEAD[-2:])]
        rows.append([name, str(len(wers)), method, *cells])
    return rows


def write_errors(path: Path, scores: Mapping[str, Scores]) -> None:
    """Write a table of tabs: utterance, its words, and its errors with each run, seed and method; empty if not decoded."""
    words: dict[str, int] = {}
    columns: dict[str, dict[str, int]] = {}
    for name, by_method in scores.items():
        for method, by_seed in by_method.items():
            for seed, found in by_seed.items():
                words.update({u.id: len(u.ref.split()) for u in found.utterances})
                ids = (u.id for u in found.utterances)
                columns[f"{name}-{seed} {method}"] = dict(zip(ids, found.utterance_errors, strict=True))
    rows = [["utterance", "words", *columns]]
    rows += [[key, str(words[key]), *(str(errors.get(key, "")) for errors in columns.values())] for key in sorted(words)]
    write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def write_report(exp_dir: Path, runs: Mapping[str, Mapping[int, Path]], against: Mapping[str, str], part: str) -> str:
    """Write EXP/table.md and EXP/errors.tsv; return the table. What is not decoded yet is left out.

    runs: the experiments by run and seed; against: the run that each is compared with.
    """
    there = {name: {s: folder for s, folder in folders.items() if folder.is_dir()} for name, folders in runs.items()}
    scores = {name: read_scores(folders, part) for name, folders in there.items()}
    rows = [row for name in runs if scores[name] for row in rows_of(name, there[name], scores, against[name])]
    text = markdown_table(HEAD, rows, (0, 2)) + NOTE
    write_text(exp_dir / "table.md", text)
    write_errors(exp_dir / "errors.tsv", scores)
    return text
