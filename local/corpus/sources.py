"""Finds the parts of a user's corpus in a folder, by the names of files and by what is in them.

DIR/<part>.tsv, .csv, .txt, .json, .jsonl     a table
DIR/[*_]recordings_<part>.jsonl[.gz] and supervisions, or DIR/[*_]cuts_<part>.jsonl[.gz]     lhotse manifests
DIR/<part>.shar                               a list of lhotse's shards
DIR/<part>/                                   a Kaldi data directory, shards, LibriSpeech's layout, lhotse manifests
                                              (recordings.jsonl.gz), one table of any name, or audio beside its .txt
DIR                                           the same, as the training part
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from local.common.errors import UserError, first_of
from local.common.visible import visible
from local.corpus.audio_paths import AUDIO_ENDINGS
from local.corpus.corpus_yaml import Corpus
from local.corpus.librispeech import TRANSCRIPTS
from local.corpus.shard_store import LIST, TAR
from local.corpus.tables import DELIMITERS, JSON_LINES, has_cells, is_promising
from local.corpus.transcript_files import has_transcripts, walk

SHARDS = "cuts.*.jsonl*"  # in a folder of shards
SUPERVISIONS = r"(.+[_-])?(supervisions)"
TABLES = (*DELIMITERS, *JSON_LINES)
SURE = (".tsv", ".csv")  # other endings have other uses, too
EXPECTED = (
    "{part}.tsv, {part}.csv, {part}/ with wav.scp or with <speaker>/<chapter>/*.trans.txt, recordings_{part}.jsonl.gz with "
    "supervisions_{part}.jsonl.gz, cuts_{part}.jsonl.gz, {part}/ with shards or {part}.shar, {part}.json (NeMo), {part}/ with "
    "audio beside .txt"
)
OTHER_NAMES = {"dev": ("valid", "validation", "val"), "test": ("eval", "evaluation")}
KINDS_SHOWN, NAMES_SHOWN = 6, 3


class Source(NamedTuple):
    """A file or a folder that holds a part, and its form. excluded: folders of other parts in it."""

    path: Path
    form: str
    excluded: tuple[Path, ...] = ()


def find_sources(corpus_dir: Path, corpus: Corpus, errors: list[str]) -> dict[str, Source]:
    """Return the source of each part that is there; parts that are there twice, or needed and missing, go to `errors`.

    Needed is every training part; without one, every part. `corpus_dir` itself may be the first training part or the only part.
    Raises `UserError` if it is not a folder.
    """
    if not corpus_dir.is_dir():
        raise UserError(f"{corpus_dir} is not a folder; --corpus-dir must name the folder of the audio")
    parts = corpus.parts()
    needed = corpus.train or parts
    found: dict[str, Source] = {}
    missing = []
    for part in (*parts[1:], *parts[:1]):  # a training part, if there is one, comes last: it may be all that is left
        whole = part == parts[0] and (part in corpus.train or len(parts) == 1)
        try:
            named = find_part(corpus_dir, part)
            source = named or find_otherwise(corpus_dir, parts, part) or (whole and find_whole(corpus_dir, parts, part, found))
            source = source or find_flawed(corpus_dir, part)
        except UserError as e:
            errors.append(str(e))
            continue
        if source:
            found[part] = source
            if not named:
                print(f"part '{part}' is {visible(str(source.path))}")
        elif part in needed:
            missing.append(part)
    if missing:
        which = ", ".join(f"'{part}'" for part in sorted(missing, key=needed.index))
        what = EXPECTED.format(part=needed[0] if needed[0] in missing else missing[0])
        are = f"part {which} is" if len(missing) == 1 else f"parts {which} are"
        there = describe(corpus_dir)
        errors.append(
            f"{are} not in {corpus_dir}, which has {there}; expected {what}; "
            f"data.{'train' if corpus.train else 'test'}_parts=[...] names other parts"
        )
    return {part: found[part] for part in parts if part in found}


def find_otherwise(corpus_dir: Path, parts: Sequence[str], part: str) -> Source | None:
    """Return where `part` is by another usual name that is not a part's."""
    others = (find_part(corpus_dir, name) for name in OTHER_NAMES.get(part, ()) if name not in parts)
    return next(filter(None, others), None)


def find_whole(corpus_dir: Path, parts: Sequence[str], part: str, found: dict[str, Source]) -> Source | None:
    """Return `corpus_dir` itself or its only table as the source of `part`, without what is `found` for others; else None."""
    folder = corpus_dir.absolute()
    taken = [source.path.absolute() for source in found.values()]
    others = tuple({*(folder / other for other in parts), *taken})
    return form_of_folder(folder, part) or weak_form(folder, part, taken, others)


def find_part(corpus_dir: Path, part: str) -> Source | None:
    """Return where `part` is by its name, or None.

    A table that has the part's own name is taken even if nothing in it looks like one, so that it is read or refused by name.
    Raises `UserError` if there are several.
    """
    manifest = re.compile(rf"(.+[_-])?(cuts|recordings)[_-]{re.escape(part)}\.jsonl(\.gz)?")
    tables = {f"{part}{ending}" for ending in TABLES}
    tables |= {name for ending in JSON_LINES for name in (f"{part}_manifest{ending}", f"manifest_{part}{ending}")}
    found = []
    names = [name for name in os.listdir(corpus_dir) if name in tables or name == part + LIST or manifest.fullmatch(name)]
    for path in (corpus_dir / name for name in sorted(names)):  # a folder may hold a million others
        if not path.is_file():
            continue
        if match := manifest.fullmatch(path.name):
            found.append(Source(path, match[2]))
        elif path.name == part + LIST:
            found.append(Source(path, "shards"))
        elif path.name in tables and (path.suffix in SURE or is_promising(path, part)):
            found.append(Source(path, "table"))
    folder = corpus_dir / part
    if folder.is_dir() and (strong := form_of_folder(folder, part)):
        found.insert(0, strong)
    if not found and folder.is_dir() and (weak := weak_form(folder, part)):
        found.append(weak)
    found = found or flawed_tables(corpus_dir / name for name in names if name in tables)
    return only_one(found, part, corpus_dir)


def only_one(found: Sequence[Source], part: str, corpus_dir: Path) -> Source | None:
    """Return the only source found, or None. Raises `UserError` if there are several."""
    if len(found) > 1:
        names = ", ".join(str(source.path.relative_to(corpus_dir)) for source in found)
        raise UserError(f"part '{part}' is in {corpus_dir} {len(found)} times: {names}; keep one of them")
    return found[0] if found else None


def flawed_tables(files: Iterable[Path]) -> list[Source]:
    """Return those of the files that are tables by their names, whatever is in them; not the .txt of an audio file."""
    files = [path for path in sorted(files) if path.suffix.lower() in TABLES and path.is_file()]
    transcripts = {p for p in files if p.suffix == ".txt" and any(p.with_suffix(e).is_file() for e in AUDIO_ENDINGS)}
    return [Source(path, "table") for path in files if path not in transcripts and has_cells(path)]


def find_flawed(corpus_dir: Path, part: str) -> Source | None:
    """Return the table in the part's folder that does not look like one, so that it is read or refused by name; else None.

    Raises `UserError` if there are several, or naming a file that is missing beside others.
    """
    folder = corpus_dir / part
    if source := only_one(flawed_tables(folder.iterdir()) if folder.is_dir() else [], part, corpus_dir):
        return source
    check_nothing_is_missing(corpus_dir, part)
    return None


def check_nothing_is_missing(corpus_dir: Path, part: str) -> None:
    """Raise `UserError` if the supervisions of `part` lack recordings, Kaldi's files wav.scp, its audio texts or a header."""
    folder = corpus_dir / part
    places = [(corpus_dir, rf"{SUPERVISIONS}[_-]{re.escape(part)}"), (folder, rf"{SUPERVISIONS}([_-]{re.escape(part)})?")]
    for place, pattern in places:
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if match := re.fullmatch(pattern + r"\.jsonl(\.gz)?", path.name):
                recordings = path.name[: match.start(2)] + "recordings" + path.name[match.end(2) :]
                raise UserError(f"{path.with_name(recordings)} is missing beside {path.name}")
    if kaldi := [name for name in ("text", "segments", "utt2spk") if (folder / name).is_file()]:
        raise UserError(f"{folder / 'wav.scp'} is missing beside {', '.join(kaldi)}")
    if audio := next((place / names[0] for place, _, names, _ in walk(folder, ()) if names), None):
        raise UserError(
            f"{folder} has audio ({audio.name}) without transcripts; give them, "
            "or name other parts (data.dev_parts=[...] data.test_parts=[...])"
        )
    if raw := next((path for path in islice(folder.rglob("*"), 100_000) if path.suffix.lower() == ".raw"), None):
        raise UserError(f"{folder} has audio without a header ({raw.name}); convert it to WAV or FLAC")


def form_of_folder(folder: Path, part: str) -> Source | None:
    """Return the source if names that have no other use say which form the folder has."""
    if (folder / "wav.scp").is_file():
        return Source(folder, "kaldi")
    if next(folder.glob(SHARDS), None) or any(TAR.fullmatch(path.name) for path in folder.iterdir()):
        return Source(folder, "shards")
    if next(folder.glob(TRANSCRIPTS), None):
        return Source(folder, "librispeech")
    manifest = re.compile(rf"(.+[_-])?(cuts|recordings)([_-]{re.escape(part)})?\.jsonl(\.gz)?")
    found = sorted(Source(p, m[2]) for p in folder.iterdir() if (m := manifest.fullmatch(p.name)) and p.is_file())
    if len(found) > 1:
        raise UserError(f"{folder} has {', '.join(source.path.name for source in found)}; keep one of them")
    return found[0] if found else None


def weak_form(folder: Path, part: str, taken: Collection[Path] = (), excluded: tuple[Path, ...] = ()) -> Source | None:
    """Return the folder's only table of speech, or the folder if it has audio beside .txt; None if neither.

    taken: files that hold other parts. excluded: folders that hold other parts. Raises `UserError` if there are several tables.
    """
    beside = has_transcripts(folder, excluded)
    endings = [ending for ending in TABLES if not (beside and ending == ".txt")]
    candidates = [p for p in folder.iterdir() if p.suffix.lower() in endings and p.is_file() and p not in taken]
    tables = sorted(p for p in candidates if is_promising(p, part))
    if len(tables) == 1:
        return Source(tables[0], "table")
    if beside:
        return Source(folder, "transcripts", excluded)
    if tables:
        names = first_of([p.name for p in tables], NAMES_SHOWN)
        raise UserError(
            f"{folder} has {len(tables)} tables: {names}; name the one of part '{part}' {part}{tables[0].suffix.lower()}"
        )
    return None


def describe(folder: Path) -> str:
    """Return what the folder has: `2 folders (a, b), 40 .wav (x.wav, y.wav, z.wav, ...)`."""
    kinds: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for path in sorted(islice(folder.iterdir(), 100_000)):
        kind = "folders" if path.is_dir() else "".join(path.suffixes[-2:] if path.suffix == ".gz" else [path.suffix.lower()])
        kind = kind or "files without an ending"
        counts[kind] += 1
        kinds.setdefault(kind, []).append(path.name)
    shown = [
        f"{n} {kind.removesuffix('s') if n == 1 else kind} ({first_of(kinds[kind], NAMES_SHOWN)})"
        for kind, n in counts.most_common(KINDS_SHOWN)
    ]
    if len(counts) > KINDS_SHOWN:
        shown.append(f"{len(counts) - KINDS_SHOWN} other kinds of files")
    tables = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SURE]
    useless = [p.name for p in tables[:KINDS_SHOWN] if not is_promising(p, "")]
    if useless:
        shown.append(f"where {first_of(useless, NAMES_SHOWN)} names no audio file that is there")
    return ", ".join(shown) or "nothing in it"
