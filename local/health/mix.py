"""The doctor's check of data.mix: the folders that are trained on together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from local.config.schema import Config
from local.corpus.corpus_yaml import load_corpus
from local.data.prepared_corpus import check_first, of_key, other_folders, read_corpora
from local.health.finding import Check, Finding, Run, error
from local.health.sizes import hours_of


def other_hours(cfg: Config, data_dir: Path) -> float:
    """Return the hours of training speech in the folders of data.mix after the first.

    Raises `UserError` naming key and folder if one is not prepared.
    """
    with of_key("data.mix"):
        trained = {folder: load_corpus(folder / "corpus.yaml").train for folder in other_folders(cfg.data, data_dir)}
    return sum(hours_of(cfg, folder, parts) for folder, parts in trained.items())


def check_mix(run: Run) -> Iterator[Finding]:
    """Yield a folder of data.mix that is not prepared, lacks a part, or has other features; a mix of another first folder."""
    cfg = run.config
    if cfg.data.mix is None:
        return
    check_first(cfg.data, run.data_dir)
    for corpus in read_corpora(cfg, run.data_dir)[1:]:
        for part in corpus.corpus.train + corpus.corpus.dev:
            if not (manifest := corpus.manifest(part)).is_file():
                yield error(f"key 'data.mix': {manifest} is missing", "prepare.sh of that corpus makes it")


CHECKS: tuple[Check, ...] = (check_mix,)
