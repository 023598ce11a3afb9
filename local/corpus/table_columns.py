"""Which column of a table holds what: by the names in its header, else by position and by which cells are files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from local.common.errors import UserError
from local.corpus.audio_paths import AudioFinder

COLUMNS = {  # names in headers of common tools and published corpora, lower case
    "path": (
        *("path", "file", "wav", "audio", "filename", "file_name", "audio_path", "audio_filepath", "wav_filename"),
        *("audio_file", "wav_path", "file_path", "filepath"),
    ),
    "text": ("text", "transcript", "transcription", "sentence", "txt"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "id": ("id", "utt_id", "utterance", "utterance_id", "key"),
    "start": ("start", "offset", "start_time"),
    "end": ("end", "end_time"),
    "duration": ("duration",),
}
ENDING = re.compile(r"\.\w{1,5}$")  # of a path
BY_POSITION = {"path": 0, "text": 1, "speaker": 2}


class Layout(NamedTuple):
    """Columns by what they hold, and the most cells of a row. guessed: by the cells, not by known names or the usual order."""

    columns: dict[str, int]
    width: int
    header: bool
    guessed: bool = False

    def describe(self) -> str:
        """Return `1 path, 2 text`."""
        return ", ".join(f"{i + 1} {column}" for column, i in sorted(self.columns.items(), key=lambda c: c[1]))


def known_columns(names: Sequence[str]) -> dict[str, int]:
    """Return the places of the columns whose names are known."""
    lower = [name.strip().lower() for name in names]
    return {
        column: next(i for i, name in enumerate(lower) if name in known)
        for column, known in COLUMNS.items()
        if any(name in known for name in lower)
    }


def find_layout(table: Path, rows: Sequence[Sequence[str]], finder: AudioFinder, delimiter: str) -> Layout:
    """Return the layout of a table by its first rows.

    A first line without known names is a header if its path is not a file and not like one, but most others' are files.
    Raises `UserError` if a header does not tell the columns.
    """
    if not rows:
        return Layout(BY_POSITION, 3, header=False)
    first, rest = rows[0], rows[1:]
    known = known_columns(first)
    if "path" in known and "text" in known:
        return Layout(known, len(first), header=True)
    path = known.get("path", column_of_files(rows, finder))
    header = is_header(first, rest, path, finder, named="path" in known)
    if not header:
        known = {}
        path = column_of_files(rows, finder)
    if len(first) == 2 and (header or path == 1):  # one column is the path, the other the text
        return Layout({"path": path, "text": 1 - path}, 2, header, guessed=True)
    if "text" in known:  # the path is not named, but known by its files
        return Layout({**known, "path": path}, len(first), header=True, guessed=True)
    if (header or path > 0) and (path > 0 or len(first) > 3):
        what = f"the columns ({', '.join(first)})" if header else "the columns (there is no header)"
        raise UserError(f"{table}:1: {what} are not known; name them in the first line: path, text, speaker")
    if not header and delimiter != "|":
        if speaker_before_text(rows):
            return Layout({"path": 0, "speaker": 1, "text": 2}, 3, header=False, guessed=True)
        return Layout(BY_POSITION, 3, header=False)
    widths = Counter(len(row) for row in rows if len(row) > 1) or {2: 0}
    width = len(first) if header else max(widths, key=widths.__getitem__)  # the first line may lack cells
    usual = [row for row in rows[int(header) :] if len(row) <= width]
    return Layout({"path": 0, **text_columns(usual, named_speaker=header)}, max(width, 2), header, guessed=True)


def column_of_files(rows: Sequence[Sequence[str]], finder: AudioFinder) -> int:
    """Return the column whose cells are files most often, the first one if none is."""
    width = max(map(len, rows))
    counts = [sum(finder.find(row[i].strip()) is not None for row in rows if len(row) > i) for i in range(min(width, 10))]
    return counts.index(max(counts))


def is_header(first: Sequence[str], rest: Sequence[Sequence[str]], path: int, finder: AudioFinder, named: bool) -> bool:
    """Return whether `first` has no file in the column of the paths, where most of the `rest` have one, or a known name."""
    cell = first[path].strip() if len(first) > path else ""
    if not cell or "/" in cell or ENDING.search(cell) or any(c.isdigit() for c in cell) or finder.find(cell):
        return False
    if named:
        return True
    files = sum(len(row) > path and finder.find(row[path].strip()) is not None for row in rest)
    return files > len(rest) / 2


def speaker_before_text(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether column 2 of 3 has single words that repeat, and column 3 more values, some of them longer than a name."""
    if any(len(row) != 3 for row in rows):
        return False
    speakers, texts = ({row[i].strip() for row in rows} for i in (1, 2))
    one_word = all(len(speaker.split()) == 1 for speaker in speakers)
    return one_word and any(len(text.split()) > 3 for text in texts) and len(speakers) < min(len(texts), len(rows))


def text_columns(rows: Sequence[Sequence[str]], named_speaker: bool) -> dict[str, int]:
    """Return the places of text, and of speaker or raw text, in rows whose first cell is the path.

    Of two columns, the one with spaces is the text and the other the speaker; if both have spaces, they are the raw and the
    normalised text (LJSpeech), or text and speaker if there is a header.
    """
    if max(map(len, rows), default=0) < 3:
        return {"text": 1}
    words = [sum(len(row) > i and len(row[i].split()) > 1 for row in rows) for i in (1, 2)]
    if words[0] == 0 and words[1] > 0:
        return {"text": 2, "speaker": 1}
    if words[1] == 0 or named_speaker:
        return {"text": 1, "speaker": 2}
    return {"text": 2, "raw": 1}
