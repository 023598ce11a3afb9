"""The report's section on the data: hours, durations, tokens, what was dropped and why, the text of the language model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.common.html_page import Page, new_figure
from local.common.text_files import iterate_lines, read_yaml
from local.common.visible import shortened
from local.corpus.dropped import Dropped, read_dropped
from local.data.token_counts import counts_file, read_token_counts
from local.data.tokenizer import Tokenizer
from local.reporting.curves import COLOURS, LARGEST, LOW, WIDTH, finish
from local.reporting.experiment import Experiment
from local.reporting.glossary import counted
from local.reporting.prepared import KINDS, MOST, Scanned, parts_of, scan, text_of

import numpy as np

MADE_BY = "stage 1 (manifests) of prepare.sh"
COLUMNS = ("utterances", "hours", "median", "longest", "speakers", "silent", "per second")  # keys of summary.json
HEAD = ("part", "utterances", "hours", "median s", "longest s", "speakers", "nearly silent", "tokens per s", "dropped")
MOST_TEXTS = 50_000  # transcripts that are cut into tokens
SELDOM = 10  # occurrences; a token that is trained less often is hardly learnt
LONGEST_TEXT = 200  # characters of a transcript
LONGEST, NAMED, EXAMPLES = 5, 40, 3  # utterances with most tokens; tokens; dropped utterances per reason


def add_data(page: Page, experiment: Experiment) -> None:
    """Add what is known of the prepared data. Raises `UserError` naming anything damaged."""
    page.section("Data", "data")
    if experiment.data_dir is None:
        page.text("The report was made without the prepared data (option --data-dir).")
        return
    if text := mix_text(experiment):
        page.text(text)
    parts = parts_of(experiment)
    lang = experiment.lang_dir
    counts = token_counts(lang, parts["train"]) if lang is not None else {}
    most = sorted(counts, key=lambda name: (-counts[name], name))[:LONGEST]
    found = {kind: scan(experiment.data_dir, parts[kind], most if kind == "train" else ()) for kind in KINDS}
    if (experiment.data_dir / "summary.json").is_file():
        page.table(HEAD, part_rows(experiment.data_dir, lang))
    add_durations(page, found)
    if lang is not None and (lang / "bpe.model").is_file():
        tokenizer = Tokenizer.from_file(lang / "bpe.model")
        if (lang / "transcript.txt").is_file():
            page.text(" ".join(use_lines(tokenizer, token_use(tokenizer, spread_lines(lang / "transcript.txt")))))
    if most:
        page.text("The training utterances with the most tokens:")
        rows = longest_rows({name: counts[name] for name in most}, found["train"].cuts)
        page.table(("transcript", "tokens", "seconds", "tokens per s", "utterance"), rows, (0, 4))
    add_dropped(page, experiment.data_dir, lang)
    if text := lm_text(experiment):
        page.text(text)


def mix_text(experiment: Experiment) -> str:
    """Return the folders and shares of data.mix as a sentence; "" without a mix."""
    section = experiment.config.get("data")
    mix = section.get("mix") if isinstance(section, dict) else None
    if not isinstance(mix, dict) or not mix:
        return ""
    shares = ", ".join(f"{folder}: {share or 'by size'}" for folder, share in mix.items())
    return f"The training drew from several corpora, in these shares: {shares}. This section is about the first."


def part_rows(data_dir: Path, lang: Path | None) -> list[list[str]]:
    """Return a row for each part, from summary.json, whose later stages replace the numbers of earlier ones."""
    path = data_dir / "summary.json"
    content = read_yaml(path, MADE_BY, json.loads)
    size = lang.name.rpartition("_")[2] if lang is not None else ""
    rows = []
    try:
        stages = [content.get("parts", {}), content.get("cuts", {}), content.get("tokens", {}).get(size, {})]
        for part in dict.fromkeys(name for stage in stages for name in stage):
            found: dict[str, Any] = {key: value for stage in stages for key, value in stage.get(part, {}).items()}
            dropped = sum(sum(stage.get(part, {}).get("dropped", {}).values()) for stage in stages)
            rows.append([str(part), *(number(found.get(key)) for key in COLUMNS), str(dropped)])
    except (AttributeError, TypeError):
        raise UserError(f"{path}: damaged; let {MADE_BY} make it again (--force)") from None
    return rows


def number(value: Any) -> str:
    """Return a number of the summary with at most two decimals; a dash if it is missing."""
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else shortened(str(value))


def add_durations(page: Page, found: Mapping[str, Scanned]) -> None:
    """Add a histogram of the durations of the utterances for training, dev and test."""
    figure = new_figure(LOW, WIDTH)
    axes = figure.subplots()
    seconds = {kind: np.array([s for s in scanned.seconds if 0 <= s < LARGEST]) for kind, scanned in found.items()}
    if not any(map(len, seconds.values())):
        page.text("There is no list of the parts (corpus.yaml), or the parts have no utterance.")
        return
    edges = np.histogram_bin_edges(np.concatenate(list(seconds.values())), bins=30)
    for (kind, values), colour in zip(seconds.items(), COLOURS, strict=False):
        if len(values):
            axes.stairs(100 * np.histogram(values, edges)[0] / len(values), edges, color=colour, label=kind, linewidth=1.5)
    axes.set(xlabel="seconds", ylabel="% of the utterances")
    finish(axes)
    more = (
        "" if all(scanned.whole for scanned in found.values()) else f" Only the first {MOST} utterances of a part are counted."
    )
    page.drawing(
        figure,
        "Durations of the utterances. Healthy: dev and test lie where the training utterances lie. A model has hardly "
        f"learnt utterances that are much longer than those of its training.{more}",
    )


@dataclass(frozen=True)
class TokenUse:
    """How the training transcripts use the tokens: occurrences by token, words in all, and how many transcripts were read."""

    counts: Counter[str]
    words: int
    texts: int


def token_use(tokenizer: Tokenizer, texts: Sequence[str]) -> TokenUse:
    """Count the tokens of transcripts; tokens that never occur have the count 0, without the special ones."""
    counts: Counter[str] = Counter(dict.fromkeys(tokenizer.tokens[3:], 0))
    for ids in tokenizer.encode(texts):
        counts.update(tokenizer.tokens[i] for i in ids)
    return TokenUse(counts, sum(len(text.split()) for text in texts), len(texts))


def spread_lines(path: Path, most: int = MOST_TEXTS) -> list[str]:
    """Return the lines of a text that are not empty; if there are more than `most`, every second, third, ... of them."""
    every = max(1, -(-sum(1 for _ in iterate_lines(path)) // most))
    return [line for number, line in enumerate(iterate_lines(path)) if number % every == 0 and line.strip()]


def token_counts(lang: Path, parts: Sequence[str]) -> dict[str, int]:
    """Return the number of tokens of each utterance of these parts. Raises `UserError` naming a damaged line."""
    counts: dict[str, int] = {}
    for path in (counts_file(lang, part) for part in parts):
        counts |= read_token_counts(path) if path.is_file() else {}
    return counts


def longest_rows(counts: Mapping[str, int], cuts: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """Return transcript, tokens, seconds, tokens per second and id; dashes for utterances that are not in `cuts`."""
    rows = []
    for name, count in counts.items():
        seconds = float(cuts[name]["duration"]) if name in cuts else 0.0
        text = shortened(text_of(cuts[name]), LONGEST_TEXT) if name in cuts else "-"
        known = (f"{seconds:.2f}", f"{count / seconds:.1f}") if seconds > 0 else ("-", "-")
        rows.append([text, str(count), *known, shortened(name)])
    return rows


def use_lines(tokenizer: Tokenizer, use: TokenUse) -> Iterator[str]:
    """Yield sentences about the vocabulary."""
    total = use.counts.total()
    yield f"Vocabulary: {tokenizer.vocab_size} tokens, of which <blk>, <sos/eos> and <unk> are special."
    if use.words:
        yield f"In {counted(use.texts, 'training transcript')}: {use.words} words, {total} tokens."
        yield f"That is {total / use.words:.2f} tokens per word."
    never = [token for token, count in use.counts.items() if count == 0]
    seldom = [token for token, count in use.counts.items() if 0 < count < SELDOM]
    for names, what in ((never, "never used"), (seldom, f"used fewer than {SELDOM} times")):
        if names:
            yield f"{counted(len(names), 'token')} {what}: {' '.join(names[:NAMED])}{' ...' if len(names) > NAMED else ''}."
    if never:
        yield "The model cannot recognise a token that is never used in training."
    if unknown := use.counts["<unk>"]:
        yield f"The transcripts have {counted(unknown, 'character')} without a token (<unk>)."


def add_dropped(page: Page, data_dir: Path, lang: Path | None) -> None:
    """Add what preparation left out: by part and reason, with a few examples."""
    files = [(data_dir / "dropped.tsv", "stage 2 (cuts) of prepare.sh")]
    files += [(lang / "dropped.tsv", "stage 3 (lang) of prepare.sh")] if lang is not None else []
    dropped = [d for path, stage in files if path.is_file() for d in read_dropped(path, stage)]
    if not dropped:
        page.text("No utterance was dropped.")
        return
    page.text("What preparation left out:")
    page.table(("part", "reason", "utterances", "examples"), dropped_rows(dropped), (0, 1, 3))


def dropped_rows(dropped: Sequence[Dropped]) -> list[list[str]]:
    """Return part, reason, number and a few ids with their details, the most frequent reason first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for d in dropped:
        kind, _, detail = d.kind.partition(": ")  # the file has both in one column
        groups.setdefault((d.part, kind), []).append(f"{shortened(d.id)} ({shortened(detail)})" if detail else shortened(d.id))
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [[*key, str(len(names)), ", ".join(names[:EXAMPLES]) + ", ..." * (len(names) > EXAMPLES)] for key, names in ordered]


def lm_text(experiment: Experiment) -> str:
    """Return a sentence about the text of the language model; "" without one."""
    path = experiment.exp_dir / "lm" / "perplexity.json"
    if not path.is_file():
        return ""
    found = read_yaml(path, "stage 3 (lm) of run.sh", json.loads)
    section = experiment.config.get("lm")
    name = section.get("text") if isinstance(section, dict) else None
    try:
        train = found["train"]
        where = f"from {name}" if name else "the transcripts of the training parts"
        return (
            f"Text of the language model ({where}): {train['sentences']} sentences, {train['words']} words, {train['tokens']} "
            f"tokens, {train['unknown']} of them unknown. "
            f"Perplexity of dev: {found['dev']['perplexity']['per_word']:.2f} per word."
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged; stage lm of run.sh makes it again (--force)") from None
