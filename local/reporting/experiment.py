"""Read what a report shows of an experiment: its decoded sets with their scores, and the speech of the prepared data."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.artifacts.decoded_sets import DecodedSet, find_sets
from local.common.errors import UserError
from local.common.text_files import read_lines, read_yaml
from local.config.schema import lang_folder
from local.scoring.align import Score, Unit, score
from local.scoring.hypotheses import best_entry, is_oracle, read_sets
from local.scoring.speech import Speech, read_speech
from local.scoring.table import unit_in

COUNTS = ("sub", "del", "ins", "words")  # keys of wer.json
RATES = ("cer", "rtf", "peak_memory_mib", "symbol_delay")  # None if they are unknown
SCORE_STAGE = "local/wer.py (stage score of run.sh)"
Row = dict[str, Any]  # a line of a decoded set: id, ref, hyp, and tokens, times, confidences, words, score if they are known


@dataclass(frozen=True)
class Experiment:
    """An experiment's results; `rows` and `scores` have the same sets, methods and utterances.

    sets: the decoded sets of the average that decoded last. results: the content of wer.json. scores: by set and method.
    rows: by set, method and id; those of an oracle method are its best entries. speech: by set and id; empty without data.
    config: EXP/config.yaml as plain values; empty if there is none.
    """

    exp_dir: Path
    data_dir: Path | None
    sets: list[DecodedSet]
    results: dict[str, dict[str, dict[str, Any]]]
    scores: dict[str, dict[str, Score]]
    rows: dict[str, dict[str, dict[str, Row]]]
    speech: dict[str, dict[str, Speech]]
    config: dict[str, Any]

    @property
    def lang_dir(self) -> Path | None:
        """The folder of the tokens of this experiment; None if the data or the configuration do not tell."""
        section = self.config.get("lang")
        section = section if isinstance(section, dict) else {}
        size = section.get("vocab_size")
        if self.data_dir is None or not isinstance(size, int):
            return None
        return self.data_dir / lang_folder(section.get("bpe_model"), section.get("type"), size)

    @property
    def rate(self) -> str:
        """The name of its error rates: WER or CER; "error rate" if it has both or none."""
        found = {score.rate for methods in self.scores.values() for score in methods.values()}
        return found.pop() if len(found) == 1 else "error rate"

    def best_method(self, name: str) -> str:
        """Return the method of set `name` with the lowest WER that is not an oracle; of equal ones, the first."""
        methods = [m for m in self.scores[name] if not is_oracle(m)] or list(self.scores[name])
        return min(methods, key=lambda m: math.inf if (wer := self.scores[name][m].wer) is None else wer)


def read_experiment(exp_dir: Path, data_dir: Path | None) -> Experiment:
    """Return the experiment in `exp_dir`, with the speech of `data_dir` if that is given.

    Raises `UserError` naming the file if something is missing or damaged, or if wer.json is not of these decoded sets.
    """
    sets, _ = find_sets(exp_dir)
    units = recorded_units(exp_dir)
    utterances = read_sets(exp_dir, sets, units)
    scores = {
        name: {method: score(found, units.get(name, "word")) for method, found in methods.items()}
        for name, methods in utterances.items()
    }
    paths = {(s.name, s.method): s.path for s in sets}
    rows = {
        name: {m: read_rows(paths[name, m], scored.unit) for m, scored in methods.items()} for name, methods in scores.items()
    }
    places = {s.name: s.prepared(data_dir) for s in sets} if data_dir is not None else {}
    speech = {name: read_speech(*place) for name, place in places.items()}
    config = read_yaml(path) if (path := exp_dir / "config.yaml").is_file() else {}
    config = config if isinstance(config, dict) else {}
    return Experiment(exp_dir, data_dir, sets, read_results(exp_dir, scores), scores, rows, speech, config)


def recorded_units(exp_dir: Path) -> dict[str, Unit]:
    """Return what stage score counted, by set; of a wer.json that `read_results` will refuse, nothing."""
    with contextlib.suppress(UserError, ValueError, AttributeError, RecursionError):
        results = json.loads("\n".join(read_lines(exp_dir / "wer.json")))
        return {name: unit_in(row) for name, methods in results.items() for row in methods.values()}
    return {}


def read_results(exp_dir: Path, scores: dict[str, dict[str, Score]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the content of wer.json. Raises `UserError` unless its sets, methods and counts are those of `scores`.

    The intervals are those of `scores`.
    """
    path = exp_dir / "wer.json"
    try:
        results = json.loads("\n".join(read_lines(path, SCORE_STAGE)))
        counted = {n: {m: [r[key] for key in COUNTS] for m, r in methods.items()} for n, methods in results.items()}
        for r in (r for methods in results.values() for r in methods.values()):
            check_numbers(r)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{path}: damaged; {SCORE_STAGE} makes it again") from None
    if counted != {n: {m: [s.sub, s.dels, s.ins, s.words] for m, s in methods.items()} for n, methods in scores.items()}:
        raise UserError(f"{path}: does not belong to the sets in {exp_dir}/decode; {SCORE_STAGE} makes it again")
    for name, methods in results.items():  # an older wer.json has intervals of another kind than the rest of the page
        for method, r in methods.items():
            r["ci95"] = scores[name][method].ci95
    return results


def check_numbers(result: dict[str, Any]) -> None:
    """Raise one of the built-in errors unless what a method has in wer.json are numbers, where they are known."""
    numbers = [value for key in RATES if (value := result.get(key)) is not None]
    if (interval := result.get("ci95")) is not None:
        low, high = interval
        numbers += [low, high]
    for value in (result["wer"], *numbers):
        if value is not None and not math.isfinite(value):
            raise ValueError("not finite")


def read_rows(path: Path, unit: Unit) -> dict[str, Row]:
    """Return the lines of a decoded set by id, which `read_hypotheses` has checked."""
    found = [json.loads(line) for line in read_lines(path) if line.strip()]
    if is_oracle(path.parent.name):
        found = [{**row, **best_entry(row, str(path), unit)} if "nbest" in row else row for row in found]
    return {row["id"]: row for row in found}
