"""The doctor's check of data.mix: the folders that are trained on together."""

from __future__ import annotations

from collections.abc import Iterator

from local.data.prepared_corpus import check_first, read_corpora
from local.health.finding import Check, Finding, Run, error


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
