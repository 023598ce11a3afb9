"""A user's own corpus, in one of five forms.

    DIR/<part>.tsv or .csv                        path, text and perhaps speaker
    DIR/<part>/ with wav.scp                      a Kaldi data directory
    DIR/[*_]recordings_<part>.jsonl[.gz] and supervisions, or DIR/[*_]cuts_<part>.jsonl[.gz]     lhotse manifests
    DIR/<part>/ with */*/*.trans.txt              LibriSpeech's layout
    DIR/<part>/ with cuts.*.jsonl.gz, or DIR/<part>.shar      lhotse Shar, on a disk or in an object store

Audio is not read: the lengths are 0 until it is decoded. Keys of corpus.yaml's `options`: `normalise: upper|lower|none`, and
`split`, the share of train that becomes a missing part.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from local.common.errors import UserError
from local.corpus.corpus_yaml import Corpus
from local.corpus.dropped import Dropped
from local.corpus.kaldi_dir import read_kaldi
from local.corpus.lhotse_manifests import read_cuts, read_manifests
from local.corpus.librispeech import read_part
from local.corpus.pairs import Pair
from local.corpus.shar import read_shar
from local.corpus.shard_store import LIST, ShardStore
from local.corpus.tables import DELIMITERS, read_table

from lhotse import SupervisionSegment
from lhotse.utils import fastcopy

NORMALISE: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower, "none": str}
FORMS = (
    "{part}.tsv, {part}.csv, {part}/ with wav.scp or with <speaker>/<chapter>/*.trans.txt, "
    "recordings_{part}.jsonl.gz with supervisions_{part}.jsonl.gz, cuts_{part}.jsonl.gz, "
    "{part}/ with shards (cuts.000000.jsonl.gz, recording.000000.tar), or their list {part}.shar"
)
MIN_SPEAKERS = 5  # with fewer, a missing part is split off by utterance: train cannot spare a speaker
NAMES_SHOWN = 5  # speakers named on the screen
SHARDS = "cuts.*.jsonl*"  # in a folder of shards


def custom_parts(
    corpus_dir: Path, corpus: Corpus, dropped: list[Dropped], store: ShardStore | None = None
) -> dict[str, list[Pair]]:
    """Return the utterances of every part, without screening; see `read_given` and `split_missing`."""
    clean = NORMALISE[check_options(corpus)[0]]
    return split_missing(read_given(corpus_dir, corpus, dropped, store, clean), corpus, corpus_dir)


def read_given(
    corpus_dir: Path, corpus: Corpus, dropped: list[Dropped], store: ShardStore | None, clean: Callable[[str], str]
) -> dict[str, list[Pair]]:
    """Return the utterances of the parts of `corpus` that are in `corpus_dir`; malformed lines go to `dropped`.

    clean: makes the transcripts' normal form. Raises `UserError` if train is missing or an option is wrong.
    """
    check_options(corpus)
    sources = {part: find_source(corpus_dir, part) for part in corpus.parts()}
    first = corpus.parts()[0]
    if sources[first] is None:  # corpus_dir itself may be the only data directory
        sources[first] = find_source(corpus_dir.absolute().parent, corpus_dir.absolute().name, folders_only=True)
    pairs: dict[str, list[Pair]] = {}
    for part, source in sources.items():
        if source is not None:
            found = read_source(source, part, dropped, "none", store)
            pairs[part] = [(recording, fastcopy(segment, text=clean(segment.text or ""))) for recording, segment in found]
        elif part in corpus.train:
            raise UserError(f"part '{part}' is not in {corpus_dir}; expected {FORMS.format(part=part)}")
    return pairs


def split_missing(kept: dict[str, list[Pair]], corpus: Corpus, corpus_dir: Path) -> dict[str, list[Pair]]:
    """Return the utterances of every part; missing dev and test parts are split off the first training part."""
    _, share = check_options(corpus)
    pairs, first = dict(kept), corpus.train[0]
    for part in corpus.parts():
        if part not in pairs:
            pairs[part], pairs[first] = split_off(pairs[first], part, share, corpus_dir, first)
    return {part: pairs[part] for part in corpus.parts()}


def check_options(corpus: Corpus) -> tuple[str, float]:
    """Return `normalise` and `split` of the corpus's options. Raises `UserError` naming a wrong key."""
    options = {"normalise": "upper", "split": 0.05, **corpus.options}
    if unknown := set(options) - {"normalise", "split"}:
        raise UserError(f"corpus '{corpus.name}': unknown options {', '.join(sorted(unknown))}; known are normalise, split")
    normalise, share = options["normalise"], options["split"]
    if normalise not in NORMALISE:
        known = ", ".join(NORMALISE)
        raise UserError(f"corpus '{corpus.name}': options.normalise must be one of {known}, not {normalise}")
    if isinstance(share, bool) or not isinstance(share, float) or not 0 < share <= 0.25:
        raise UserError(f"corpus '{corpus.name}': options.split must be above 0 and at most 0.25, not {share}")
    return normalise, share


def find_source(corpus_dir: Path, part: str, folders_only: bool = False) -> Path | None:
    """Return the file or folder of `part`, or None. Raises `UserError` if there are several."""
    found: list[Path] = []
    folder = corpus_dir / part
    if (folder / "wav.scp").is_file() or next(folder.glob("*/*/*.trans.txt"), None) or next(folder.glob(SHARDS), None):
        found.append(folder)
    if corpus_dir.is_dir() and not folders_only:
        manifest = re.compile(rf"(.+[_-])?(cuts|recordings)[_-]{re.escape(part)}\.jsonl(\.gz)?")
        names = {part + ending for ending in (*DELIMITERS, LIST)}
        found += sorted(p for p in corpus_dir.iterdir() if p.name in names or manifest.fullmatch(p.name))
    if len(found) > 1:
        names_found = ", ".join(p.name for p in found)
        raise UserError(f"part '{part}' is in {corpus_dir} {len(found)} times: {names_found}; keep one of them")
    return found[0] if found else None


def read_source(source: Path, part: str, dropped: list[Dropped], normalise: str, store: ShardStore | None = None) -> list[Pair]:
    """Return the utterances of a file or folder that `find_source` found, texts normalised."""
    if source.suffix == LIST or (source.is_dir() and next(source.glob(SHARDS), None)):
        pairs = read_shar(source, part, dropped, store or ShardStore(source.parent / "shards", math.inf))
    elif source.is_dir():
        kaldi = (source / "wav.scp").is_file()
        pairs = read_kaldi(source, part, dropped) if kaldi else read_part(source.parent, source.name)
    elif source.suffix.lower() in DELIMITERS:
        pairs = read_table(source, part, dropped)
    elif re.search(r"(^|[_-])cuts[_-]", source.name):
        pairs = read_cuts(source, part, dropped)
    else:
        pairs = read_manifests(source, part, dropped)

    def clean(text: str | None) -> str:
        return NORMALISE[normalise](unicodedata.normalize("NFC", " ".join((text or "").split())))

    return [(recording, fastcopy(segment, text=clean(segment.text))) for recording, segment in pairs]


def split_off(
    pairs: Sequence[Pair], part: str, share: float, corpus_dir: Path, first: str = "train"
) -> tuple[list[Pair], list[Pair]]:
    """Return about `share` of the utterances, for `part`, and the rest. Raises `UserError` if there are too few.

    Takes whole speakers, or utterances if speakers are fewer than `MIN_SPEAKERS`. The choice depends on the names alone.
    """

    def key(name: str) -> bytes:
        return hashlib.sha256(name.encode()).digest()

    def owner(segment: SupervisionSegment) -> str:
        return segment.speaker if by_speaker and segment.speaker else segment.id

    speakers = {s.speaker for _, s in pairs}
    by_speaker = None not in speakers and len(speakers) >= MIN_SPEAKERS
    counts = Counter(owner(segment) for _, segment in pairs)
    if len(counts) < 2:
        raise UserError(f"part '{part}' is not in {corpus_dir}, and {first} has too few utterances to split it off")
    wanted, size = max(1, round(share * len(pairs))), 0
    taken: set[str] = set()
    for name in sorted(counts, key=key):
        if size < wanted and size + counts[name] <= 2 * wanted:  # not a speaker of half the corpus
            taken.add(name)
            size += counts[name]
    taken = taken or {min(counts, key=lambda name: (counts[name], key(name)))}
    inside = [pair for pair in pairs if owner(pair[1]) in taken]
    outside = [pair for pair in pairs if owner(pair[1]) not in taken]
    who = "utterances"
    if by_speaker:
        names = sorted(taken)
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        who = f"utterances, all of the speakers {shown},"
    print(f"{part} is not in {corpus_dir}: {len(inside)} of {first}'s {len(pairs)} {who} are taken for it")
    return inside, outside
