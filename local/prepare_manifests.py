"""Stage 1 of prepare.sh: lhotse manifests of every part, each audio file decoded once.

Reads audio and transcripts. Writes data/<corpus>/manifests/{recordings,supervisions}_<part>.jsonl.gz, dropped.tsv beside
them, and data/<corpus>/corpus.yaml. Utterances that cannot be used are named, counted and left out.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

from local.common.atomic import atomic_write
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.config import load_config
from local.corpus.audio_files import BadAudio, check_all, check_audio
from local.corpus.corpus_yaml import Corpus, load_corpus, save_corpus
from local.corpus.ctm import with_alignments
from local.corpus.custom import read_given, split_missing
from local.corpus.dropped import Dropped, report_dropped, write_dropped
from local.corpus.librispeech import find_tree, read_part
from local.corpus.pairs import Pair
from local.corpus.shard_store import ShardStore, shard_store

from lhotse import Recording, RecordingSet, SupervisionSet
from lhotse.utils import fastcopy

PARTS_HINT = "; name the parts with data.train_parts=[...] data.dev_parts=[...] data.test_parts=[...]"
TOLERANCE = 0.025  # seconds by which a segment may reach beyond its recording
NAMES_SHOWN = 5  # speakers named on the screen


def check_recording(recording: Recording, store: ShardStore) -> Recording:
    """Decode the recording; return it with rate, length, channels. Raises `BadAudio` if it is missing, damaged or truncated."""
    for source in recording.sources:
        if source.type != "file":
            try:
                store.with_audio(recording).load_audio()
            except Exception as e:
                raise BadAudio(f"unreadable recording {recording.id}: {str(e).strip().splitlines()[0]}") from None
            return recording
        try:
            info = check_audio(source.source)
        except BadAudio as e:
            raise BadAudio(f"{e}: {source.source}") from None
        if recording.transforms:
            continue  # it states rate and length after the transforms
        if recording.num_samples and info.num_samples < recording.num_samples - 1:
            stated = f"{info.num_samples} of {recording.num_samples} samples"
            raise BadAudio(f"truncated audio file ({stated}): {source.source}")
        if not recording.num_samples:  # no stated length, so the channels are not known yet either
            source.channels = list(range(info.num_channels))
            recording.channel_ids = list(source.channels)
        recording = fastcopy(
            recording,
            sampling_rate=info.sampling_rate,
            num_samples=info.num_samples,
            duration=info.num_samples / info.sampling_rate,
        )
    return recording


def drop_duplicates_and_empty(pairs: Iterable[Pair], part: str, dropped: list[Dropped]) -> list[Pair]:
    """Return the pairs without those that repeat an id or have an empty transcript; these go to `dropped`."""
    kept: dict[str, Pair] = {}
    for recording, segment in pairs:
        source = recording.sources[0].source if recording.sources and recording.sources[0].type == "file" else ""
        if segment.id in kept:
            dropped.append(Dropped(segment.id, part, "duplicate id, the first is kept", str(source)))
        elif not (segment.text or "").strip():
            dropped.append(Dropped(segment.id, part, "empty transcript", str(source)))
        else:
            kept[segment.id] = (recording, segment)
    return list(kept.values())


def check_pairs(pairs: Sequence[Pair], part: str, num_jobs: int, dropped: list[Dropped], store: ShardStore) -> list[Pair]:
    """Decode every recording once; return the usable pairs with durations and clean texts. The others go to `dropped`."""
    recordings = {recording.id: recording for recording, _ in pairs}
    results = check_all(partial(check_recording, store=store), recordings.values(), num_jobs, f"audio of {part}")
    checked = {recording.id: result for recording, result in results}
    kept: list[Pair] = []
    for recording, segment in pairs:
        result = checked[recording.id]
        if isinstance(result, BadAudio):
            kind, _, detail = str(result).partition(": ")
            kind = kind.partition(" (")[0]
            dropped.append(Dropped(segment.id, part, kind, detail if kind == "missing audio file" else str(result)))
            continue
        duration = segment.duration or result.duration - segment.start
        if not (0 < duration and 0 <= segment.start and segment.start + duration <= result.duration + TOLERANCE):  # or NaN
            span = f"{segment.start:.2f} to {segment.start + duration:.2f} s of {result.duration:.2f} s"
            dropped.append(Dropped(segment.id, part, "segment outside its recording", span))
            continue
        duration = min(duration, result.duration - segment.start)
        kept.append((result, fastcopy(segment, duration=duration, text=" ".join((segment.text or "").split()))))
    return kept


def write_manifests(pairs: Sequence[Pair], part: str, folder: Path) -> None:
    """Write the recordings (each once) and the supervisions of a part."""
    recordings = {recording.id: recording for recording, _ in pairs}
    with atomic_write(folder / f"recordings_{part}.jsonl.gz") as tmp:
        RecordingSet.from_recordings(recordings.values()).to_file(tmp)
    with atomic_write(folder / f"supervisions_{part}.jsonl.gz") as tmp:
        SupervisionSet.from_segments(segment for _, segment in pairs).to_file(tmp)


def warn_shared_speakers(corpus: Corpus, speakers: dict[str, set[str]]) -> None:
    """Warn of speakers that two of the sets (train, dev, test) share, unless both have the same parts."""
    sets = {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}
    for a, b in combinations(sets, 2):
        mine = set().union(*(speakers[p] for p in sets[a]))
        theirs = set().union(*(speakers[p] for p in sets[b]))
        shared = sorted(mine & theirs)
        if shared and sorted(sets[a]) != sorted(sets[b]):
            names = ", ".join(shared[:NAMES_SHOWN]) + (", ..." if len(shared) > NAMES_SHOWN else "")
            print(f"warning: {len(shared)} speakers are both in {a} and in {b}: {names}", file=sys.stderr)


def read_parts(corpus: Corpus, corpus_dir: Path, dropped: list[Dropped], store: ShardStore) -> dict[str, list[Pair]]:
    """Return the utterances of every part; lines that cannot be read go to `dropped`."""
    if corpus.source == "custom":
        return read_given(corpus_dir, corpus, dropped, store, clean)
    tree = find_tree(corpus_dir)
    return {part: with_alignments(read_part(tree, part, dropped, PARTS_HINT), tree / part) for part in corpus.parts()}


def clean(text: str) -> str:
    """Return a transcript in the form that is trained and scored."""
    return unicodedata.normalize("NFC", " ".join(text.split())).upper()


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Write the manifests of every part."""
    parser = make_parser(__doc__, data_dir=True)
    parser.add_argument("--corpus-yaml", type=Path, required=True, help="egs/<corpus>/corpus.yaml")
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder of the audio")
    parser.add_argument("--nj", type=int, default=1, help="threads that decode audio (%(default)s)")
    args = parser.parse_args(argv)
    cfg = load_config(args.conf, args.overrides)
    corpus = load_corpus(args.corpus_yaml, cfg.data)
    corpus.corpus_dir = str(args.corpus_dir)
    dropped: list[Dropped] = []
    store = shard_store(args.data_dir, cfg.data)
    found = read_parts(corpus, args.corpus_dir, dropped, store)  # before any long work, as a part may be missing
    folder = args.data_dir / "manifests"
    speakers: dict[str, set[str]] = {}
    usable: dict[str, list[Pair]] = {}
    for part, pairs in found.items():
        usable[part] = check_pairs(drop_duplicates_and_empty(pairs, part, dropped), part, args.nj, dropped, store)
        if not usable[part]:
            raise UserError(f"part '{part}' of {args.corpus_dir}: none of its {len(pairs)} utterances can be used")
    for part, kept in split_missing(usable, corpus, args.corpus_dir).items():
        write_manifests(kept, part, folder)
        speakers[part] = {segment.speaker for _, segment in kept if segment.speaker}
        hours = sum(segment.duration for _, segment in kept) / 3600
        print(f"{part}: {len(kept)} utterances, {hours:.2f} h, {len(speakers[part])} speakers")
    write_dropped(folder / "dropped.tsv", dropped)
    report_dropped(dropped, folder / "dropped.tsv")
    warn_shared_speakers(corpus, {part: names if part in found else set() for part, names in speakers.items()})
    save_corpus(corpus, args.data_dir / "corpus.yaml")


if __name__ == "__main__":
    main()
