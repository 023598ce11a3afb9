"""Stage 1 of prepare.sh: lhotse manifests of every part, each audio file decoded.

Reads audio and transcripts. Writes data/<corpus>/manifests/{recordings,supervisions}_<part>.jsonl.gz, dropped.tsv beside
them, and data/<corpus>/corpus.yaml, summary.json and README.md, which say what the data are. Utterances that cannot be used
are named, counted and left out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.errors import UserError, first_of, one_line
from local.common.locks import writes
from local.config import load_config
from local.corpus.corpus_yaml import Corpus, load_corpus, save_corpus
from local.corpus.ctm import with_alignments
from local.corpus.custom import may_be_missing, read_given, split_missing, split_share
from local.corpus.dropped import Dropped, report_dropped, write_dropped
from local.corpus.librispeech import find_tree, read_part
from local.corpus.manifest_lines import write_manifest
from local.corpus.pairs import Pair, with_texts
from local.corpus.screening import check_pairs
from local.corpus.shard_store import FORBIDDEN, ShardStore, shard_store
from local.data.durations import has_frame
from local.data.summary import Summary
from local.data.text import TextNormaliser, unusual_characters

RULES_HINT = "Shall the model write these characters? lang.rules=egs/custom/punctuation.tsv takes punctuation and marks out."
PARTS_HINT = "; name the parts with data.train_parts=[...] data.dev_parts=[...] data.test_parts=[...]"


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


def write_manifests(pairs: Sequence[Pair], part: str, folder: Path) -> None:
    """Write the recordings (each once) and the supervisions of a part."""
    recordings = {recording.id: recording for recording, _ in pairs}
    write_manifest(folder / f"recordings_{part}.jsonl.gz", recordings.values())
    write_manifest(folder / f"supervisions_{part}.jsonl.gz", (segment for _, segment in pairs))


def warn_shared_speakers(corpus: Corpus, speakers: dict[str, set[str]]) -> None:
    """Warn of speakers that two of the user's sets (train, dev, test) share, unless both have the same parts.

    speakers: those of each part that the user gave; parts that are split off train may have to share speakers with it.
    """
    sets = {name: [p for p in getattr(corpus, name) if p in speakers] for name in ("train", "dev", "test")}
    for a, b in combinations(sets, 2):
        mine = set().union(*(speakers[p] for p in sets[a]))
        theirs = set().union(*(speakers[p] for p in sets[b]))
        shared = sorted(mine & theirs)
        if shared and sorted(sets[a]) != sorted(sets[b]):
            print(f"warning: {len(shared)} speakers are both in {a} and in {b}: {first_of(shared)}", file=sys.stderr)


def warn_forbidden(forbidden: Sequence[Dropped], corpus_yaml: Path, listing: Path) -> None:
    """Warn of what is left out because it needs commands or the network, and say which key allows it where."""
    if forbidden:
        example = f"{forbidden[0].id}, {forbidden[0].detail[:200]}" if forbidden[0].detail else forbidden[0].id
        line = (
            f"warning: {len(forbidden)} left out, as they need a command or the network ({example}); listed in {listing}. "
            f"If you trust the corpus, set options.commands: true in a corpus.yaml of your own: copy {corpus_yaml.parent} to "
            "egs/NAME, edit it there, and use --corpus NAME"
        )
        print(one_line(line, 1000), file=sys.stderr)


def read_parts(
    corpus: Corpus, corpus_dir: Path, dropped: list[Dropped], store: ShardStore, clean: Callable[[str], str]
) -> dict[str, list[Pair]]:
    """Return the utterances of every part that is there, texts made `clean`; lines that cannot be read go to `dropped`."""
    if corpus.source == "custom":
        return read_given(corpus_dir, corpus, dropped, store, clean)
    if "split" in corpus.options:
        split_share(corpus)  # a wrong one is known before any long work
    tree = find_tree(corpus_dir)
    parts = [part for part in corpus.parts() if (tree / part).is_dir() or not may_be_missing(corpus, part)]
    found = {part: with_alignments(read_part(tree, part, dropped, PARTS_HINT), tree / part) for part in parts}
    return {part: with_texts(pairs, clean) for part, pairs in found.items()}


def screened(
    corpus: Corpus, corpus_dir: Path, dropped: list[Dropped], store: ShardStore, clean: Callable[[str], str], num_jobs: int
) -> tuple[dict[str, list[Pair]], set[str]]:
    """Return the usable utterances of every part, missing parts split off, and the names of the parts that are there.

    The other utterances go to `dropped`. Raises `UserError` naming all parts without usable utterances.
    """
    found = read_parts(corpus, corpus_dir, dropped, store, clean)  # before any long work, as a part may be missing
    kept: dict[str, list[Pair]] = {}
    empty = []
    for part, pairs in found.items():
        kept[part] = check_pairs(drop_duplicates_and_empty(pairs, part, dropped), part, num_jobs, dropped, store)
        if not kept[part]:
            kinds = Counter(d.kind for d in dropped if d.part == part).most_common(3)
            why = ", ".join(f"{kind} ({count})" for kind, count in kinds)
            empty.append(f"part '{part}' of {corpus_dir}: none of its {len(pairs)} utterances can be used: {why}")
    if empty:  # only now: what is wrong with the other parts is listed, too
        raise UserError("; ".join(empty))
    return split_missing(kept, corpus, corpus_dir, has_frame), set(found)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Write the manifests of every part."""
    parser = make_parser(__doc__, data_dir=True)
    parser.add_argument("--corpus-yaml", type=Path, required=True, help="egs/<corpus>/corpus.yaml")
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder of the audio")
    parser.add_argument("--nj", type=int, default=1, help="processes that decode audio (%(default)s)")
    args = parser.parse_args(argv)
    writes(args.data_dir, new=True, wait=True, alone=True)
    cfg = load_config(args.conf, args.overrides)
    corpus = load_corpus(args.corpus_yaml, cfg.data)
    corpus.corpus_dir = str(args.corpus_dir)
    dropped: list[Dropped] = []
    folder = args.data_dir / "manifests"
    try:
        store = shard_store(args.data_dir, cfg.data, corpus)
        kept, given = screened(corpus, args.corpus_dir, dropped, store, TextNormaliser(cfg.lang), args.nj)
    finally:  # an error alone would not say what is wrong with each utterance
        if dropped:
            write_dropped(folder / "dropped.tsv", dropped)
            report_dropped([d for d in dropped if d.kind != FORBIDDEN], folder / "dropped.tsv")
            warn_forbidden([d for d in dropped if d.kind == FORBIDDEN], args.corpus_yaml, folder / "dropped.tsv")
    write_dropped(folder / "dropped.tsv", dropped)
    for part, pairs in kept.items():
        write_manifests(pairs, part, folder)
        speakers = {segment.speaker for _, segment in pairs if segment.speaker}
        hours = sum(segment.duration for _, segment in pairs) / 3600
        print(f"{part}: {len(pairs)} utterances, {hours:.2f} h, {len(speakers)} speakers")
    warn_shared_speakers(corpus, {part: {s.speaker for _, s in kept[part] if s.speaker} for part in given})
    save_corpus(corpus, args.data_dir / "corpus.yaml")
    unusual = {part: unusual_characters([segment.text or "" for _, segment in pairs]) for part, pairs in kept.items()}
    print(Summary.start(args.data_dir, corpus, kept, given, dropped, unusual).write())
    if any(unusual.values()) and not cfg.lang.rules:
        print(RULES_HINT)


if __name__ == "__main__":
    main()
