"""A user's own corpus, in one of the forms that `local.corpus.sources` finds.

Audio is not read: the lengths are 0 until it is decoded. corpus.yaml's `options` has two keys: `split`, the share of train
that becomes a missing part, and `commands` (see `local.corpus.shard_store`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from local.common.errors import UserError
from local.corpus.copies import without_speed_copies
from local.corpus.corpus_yaml import Corpus
from local.corpus.dropped import Dropped
from local.corpus.kaldi_dir import read_kaldi
from local.corpus.lhotse_manifests import read_cuts, read_manifests
from local.corpus.librispeech import read_part
from local.corpus.pairs import Pair, with_texts, with_unique_ids, with_utf8_names
from local.corpus.shar import read_shar
from local.corpus.shard_store import ShardStore
from local.corpus.sources import Source, find_sources
from local.corpus.splits import MOST, split_off
from local.corpus.tables import read_table
from local.corpus.transcript_files import read_transcript_files

SPLIT = 0.05  # share of train that becomes a missing part, unless corpus.yaml says another


def read_given(
    corpus_dir: Path, corpus: Corpus, dropped: list[Dropped], store: ShardStore, clean: Callable[[str], str]
) -> dict[str, list[Pair]]:
    """Return the utterances of the parts of `corpus` that are in `corpus_dir`, with texts that `clean` made.

    What cannot be used goes to `dropped`. Raises `UserError` if an option is wrong, or, after all parts were tried, if some
    cannot be read or a training part is missing (without training parts: any part).
    """
    split_share(corpus)
    given: dict[str, list[Pair]] = {}
    errors: list[str] = []
    for part, source in find_sources(corpus_dir, corpus, errors).items():
        try:
            given[part] = read_source(source, part, dropped, clean, store)
        except UserError as e:
            errors.append(str(e))
    if errors:
        raise UserError("; ".join(errors))
    return given


def split_missing(
    kept: dict[str, list[Pair]], corpus: Corpus, corpus_dir: Path, long_enough: Callable[[float], bool]
) -> dict[str, list[Pair]]:
    """Return all parts of `corpus`: those of `kept`, and the missing ones split off the first training part.

    kept: the utterances that can be used. long_enough: whether a later stage keeps a test utterance of so many seconds; others
    stay in the training part. Raises `UserError` if there are too few to split.
    """
    parts = dict(kept)
    missing = [part for part in corpus.parts() if part not in kept]
    if missing:
        train = corpus.train[0]
        rest = [pair for pair in parts[train] if long_enough(pair[1].duration)]
        most = int(MOST * len(rest)) // len(missing)
        for part in missing:
            parts[part], rest = split_off(rest, part, split_share(corpus), corpus_dir, train, most)
        taken = {segment.id for part in missing for _, segment in parts[part]}
        parts[train] = [pair for pair in parts[train] if pair[1].id not in taken]
    return {part: parts[part] for part in corpus.parts()}


def may_be_missing(corpus: Corpus, part: str) -> bool:
    """Return whether a part that is not there is split off the training part.

    Of a user's own corpus any part but a training part; of others, with `split`, a dev part that is not a test part.
    """
    if corpus.source == "custom":
        return part not in corpus.train
    return "split" in corpus.options and bool(corpus.train) and part in corpus.dev and part not in corpus.train + corpus.test


def split_share(corpus: Corpus) -> float:
    """Return `split` of the corpus's options. Raises `UserError` naming a wrong key."""
    if "normalise" in corpus.options:
        raise UserError(
            f"corpus '{corpus.name}': options.normalise is now the configuration key lang.normalise; remove it here"
        )
    if unknown := set(corpus.options) - {"split", "commands"}:
        names = ", ".join(sorted(map(str, unknown)))
        raise UserError(f"corpus '{corpus.name}': unknown options {names}; known are commands, split")
    share = corpus.options.get("split", SPLIT)
    if isinstance(share, bool) or not isinstance(share, float) or not 0 < share <= MOST:
        raise UserError(f"corpus '{corpus.name}': options.split must be above 0 and at most {MOST}, not {share}")
    return share


def read_source(
    source: Source, part: str, dropped: list[Dropped], clean: Callable[[str], str], store: ShardStore
) -> list[Pair]:
    """Return the utterances of a source, texts cleaned, without speed-perturbed copies; one id stands for one audio."""
    path = source.path
    if source.form == "shards":
        pairs = read_shar(path, part, dropped, store)
    elif source.form == "kaldi":
        pairs = read_kaldi(path, part, dropped)
    elif source.form == "librispeech":
        pairs = read_part(path.parent, path.name, dropped, part=part)
    elif source.form == "transcripts":
        pairs = read_transcript_files(path, part, dropped, source.excluded)
    elif source.form == "table":
        pairs = read_table(path, part, dropped)
    elif source.form == "cuts":
        pairs = read_cuts(path, part, dropped)
    else:
        pairs = read_manifests(path, part, dropped)
    cleaned = with_texts(with_utf8_names(pairs, part, dropped), clean)
    return with_unique_ids(without_speed_copies(cleaned, part, dropped), part)
