"""Look through the cuts of prepared data: durations of a part, and some utterances by their ids."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.corpus.corpus_yaml import load_corpus
from local.reporting.experiment import Experiment
from local.scoring.hypotheses import STAGE, prepared

MOST = 300_000  # utterances of a part that are read: those of 960 hours
KINDS = ("train", "dev", "test")


@dataclass
class Scanned:
    """What was found in some parts: seconds of the utterances, wanted cuts by id; `whole`: no part had more than `MOST`."""

    seconds: list[float] = field(default_factory=list)
    cuts: dict[str, dict[str, Any]] = field(default_factory=dict)
    whole: bool = True


def scan(data_dir: Path, parts: Sequence[str], wanted: Collection[str] = ()) -> Scanned:
    """Read the cuts of each part once, one by one. Parts that are not there are left out.

    Raises `UserError` naming the file and line of a damaged cut.
    """
    result = Scanned()
    for part in parts:
        if not (data_dir / "cuts" / f"{part}.jsonl.gz").is_file():
            continue
        cuts = prepared(data_dir, part)
        for cut, where in itertools.islice(cuts, MOST):
            try:
                result.seconds.append(float(cut["duration"]))
            except (KeyError, TypeError, ValueError, OverflowError):
                raise UserError(f"{where}: damaged: a cut without duration; let {STAGE} make it again (--force)") from None
            if cut["id"] in wanted:
                result.cuts[cut["id"]] = cut
        result.whole &= next(cuts, None) is None
    return result


def parts_of(experiment: Experiment) -> dict[str, list[str]]:
    """Return the parts for training, dev and test: those of the configuration, else of corpus.yaml if it is there."""
    path = experiment.data_dir / "corpus.yaml" if experiment.data_dir is not None else None
    corpus = load_corpus(path) if path is not None and path.is_file() else None
    section = experiment.config.get("data")
    chosen: dict[str, Any] = section if isinstance(section, dict) else {}
    found: dict[str, list[str]] = {}
    for kind in KINDS:
        names = chosen.get(f"{kind}_parts")
        found[kind] = [str(name) for name in names] if isinstance(names, list) else list(getattr(corpus, kind, ()))
    return found


def text_of(cut: dict[str, Any]) -> str:
    """Return a cut's transcript; "" if it has none."""
    supervision: dict[str, Any] = next(iter(cut.get("supervisions") or ()), {})
    return str(supervision.get("text") or "")
