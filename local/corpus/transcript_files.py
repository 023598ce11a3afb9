"""Audio files, each with its transcript beside it: `a.wav` and `a.txt`, anywhere in a folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from local.common.errors import UserError
from local.common.text_files import read_lines
from local.corpus.audio_paths import AUDIO_ENDINGS
from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair, whole_file
from local.corpus.tables import Row, file_names

ENDINGS = (".txt", ".lab")


def has_transcripts(folder: Path, excluded: Sequence[Path] = ()) -> bool:
    """Return whether a file of audio in the folder has a transcript beside it."""
    return any(audio and texts for _, _, audio, texts in walk(folder, excluded))


def walk(folder: Path, excluded: Sequence[Path]) -> Iterator[tuple[Path, str, list[str], list[str]]]:
    """Yield (folder, stem, names of audio, names of texts) for each stem in the folder and those below it, links followed."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and Path(place, f) not in excluded and not is_loop(place, f)
        )
        audio, texts = defaultdict(list), defaultdict(list)
        for name in sorted(name for name in names if not name.startswith(".")):
            stem, ending = os.path.splitext(name)
            if ending.lower() in AUDIO_ENDINGS:
                audio[stem].append(name)
            elif ending.lower() in ENDINGS:
                texts[stem].append(name)
        for stem in sorted({*audio, *texts}):
            yield Path(place), stem, audio.get(stem, []), texts.get(stem, [])


def is_loop(place: str, name: str) -> bool:
    """Return whether `name` in the folder `place` is a link to that folder or to one above it."""
    path = os.path.join(place, name)
    return os.path.islink(path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path))


def read_transcript_files(folder: Path, part: str, dropped: list[Dropped], excluded: Sequence[Path] = ()) -> list[Pair]:
    """Return the utterances; audio is not read. A transcript of several lines is one text.

    Audio without a transcript and the reverse, and transcripts that are not UTF-8 go to `dropped`. Raises `UserError` if no
    utterance is left.
    """
    rows = []
    for place, stem, audio, texts in walk(folder, excluded):
        if not audio or not texts:
            kind = "audio without transcript" if audio else "transcript without audio"
            dropped += [Dropped(stem, part, kind, str(place / name)) for name in audio or texts]
            continue
        audio.sort(key=lambda name: AUDIO_ENDINGS.index(PurePath(name).suffix.lower()))
        used = min(texts, key=lambda name: ENDINGS.index(PurePath(name).suffix.lower()))
        dropped += [Dropped(stem, part, "second audio file of a transcript", str(place / name)) for name in audio[1:]]
        try:
            text = " ".join(" ".join(read_lines(place / used)).split())
        except UserError as e:
            dropped.append(Dropped(stem, part, "transcript cannot be read", str(e)))
            continue
        rows.append(Row(0, str((place / audio[0]).relative_to(folder)), text, "", ""))
    if not rows:
        raise UserError(f"{folder}: no audio file has a transcript (.txt) beside it that can be read")
    names = file_names(rows)
    return [whole_file(names[row.path], folder / row.path, row.text, None) for row in rows]
