"""Prepared data of one table of audio and transcripts, for programs that need no whole corpus."""

from __future__ import annotations

import sys
from pathlib import Path

from local.common.errors import UserError
from local.config.schema import Config
from local.corpus.corpus_yaml import Corpus, save_corpus
from local.corpus.dropped import Dropped
from local.corpus.pairs import with_texts, with_unique_ids, with_utf8_names
from local.corpus.screening import check_pairs
from local.corpus.shard_store import shard_store
from local.corpus.sources import TABLES
from local.corpus.tables import read_table
from local.data.channels import make_cuts
from local.data.durations import has_frame
from local.data.text import TextNormaliser

from lhotse import CutSet

PART = "table"


def prepare_table(table: Path, data_dir: Path, cfg: Config) -> None:
    """Prepare `data_dir`: its only part, `PART`, has the utterances of a table.

    cfg: of the model; it is changed to compute features from audio. Utterances that cannot be used are named on stderr, one
    line each. Raises `UserError` if the file is not a table, or if no utterance is left.
    """
    if table.suffix.lower() not in TABLES:
        raise UserError(f"--table {table}: the name of a table must end in {', '.join(TABLES)}")
    corpus, dropped = Corpus(PART, "custom", train=[], dev=[], test=[PART]), list[Dropped]()
    save_corpus(corpus, data_dir / "corpus.yaml")
    cfg.features.type, cfg.data.test_parts = "on_the_fly", None
    given = with_unique_ids(with_utf8_names(read_table(table, PART, dropped), PART, dropped), PART)
    texts = with_texts(given, TextNormaliser(cfg.lang))
    pairs = check_pairs(texts, PART, 1, dropped, shard_store(data_dir, cfg.data, corpus))
    cuts = {}
    for cut in make_cuts(pairs, cfg.features.sampling_rate, cfg.data.channel, str(table)):
        if cut.id in cuts:
            dropped.append(Dropped(cut.id, PART, "the same audio again, the first is kept"))
        elif has_frame(cut.duration):
            cuts[cut.id] = cut
        else:
            dropped.append(Dropped(cut.id, PART, "shorter than one frame after subsampling", f"{cut.duration:.2f} s"))
    for utterance in dropped:
        print(f"{table}: left out: {utterance.line()}", file=sys.stderr)
    if not cuts:
        raise UserError(f"{table}: none of its utterances can be used; the lines above say why")
    (data_dir / "cuts").mkdir()
    CutSet.from_cuts(cuts.values()).to_file(data_dir / "cuts" / f"{PART}.jsonl.gz")
