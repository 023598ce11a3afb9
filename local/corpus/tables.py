"""Tables of a user's own corpus: TSV or CSV of `path, text[, speaker]`, with or without a header line."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

from local.common.errors import UserError
from local.common.text_files import read_lines
from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair, whole_file

DELIMITERS = {".tsv": "\t", ".csv": ",;\t"}  # of a .csv: the most frequent one in its first line
COLUMNS = {  # names in headers of common tools and published corpora, lower case
    "path": ("path", "file", "wav", "audio", "filename", "file_name", "audio_path", "audio_filepath", "wav_filename"),
    "text": ("text", "transcript", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "id": ("id", "utt_id", "utterance", "utterance_id"),
}


class Row(NamedTuple):
    """One utterance as written; `id` is empty if the table has no such column."""

    line: int
    path: str
    text: str
    speaker: str
    id: str


def read_table(table: Path, part: str, dropped: list[Dropped]) -> list[Pair]:
    """Return a table's utterances, without reading audio; bad lines go to `dropped`. Raises `UserError` if no line is good."""
    bad = len(dropped)
    rows = list(table_rows(table, part, dropped))
    if not rows:
        why = f": {dropped[bad].id}: {dropped[bad].detail}" if len(dropped) > bad else ""
        raise UserError(f"{table}: it has no utterance{why}")
    names = zip(rows, utterance_ids(rows), strict=True)
    return [whole_file(name, table.parent / row.path, row.text, row.speaker or None) for row, name in names]


def table_rows(table: Path, part: str, dropped: list[Dropped]) -> Iterator[Row]:
    """Yield the rows of the table without blank lines; malformed lines go to `dropped`."""
    columns: dict[str, int] | None = None
    for number, cells in cells_of(table):
        if columns is None:
            header = header_columns(cells)
            columns = header or {"path": 0, "text": 1, "speaker": 2}
            if header:
                width = len(cells)
                continue
            width = 3
        needed = max(columns["path"], columns["text"]) + 1
        if not needed <= len(cells) <= width:
            expected = "path, text and perhaps speaker" if width == 3 else f"the header's {width}"
            detail = f"{len(cells)} columns instead of {expected}"
        elif not cells[columns["path"]].strip():
            detail = "the path is empty"
        else:
            found = {k: cells[i].strip() if i < len(cells) else "" for k, i in columns.items()}
            yield Row(number, found["path"], found["text"], found.get("speaker", ""), found.get("id", ""))
            continue
        dropped.append(Dropped(f"{table}:{number}", part, "malformed line", detail))


def cells_of(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each line that is not blank. Quotes are special in a .csv only."""
    lines = read_lines(table)
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(DELIMITERS[table.suffix.lower()], key=first.count)
    quotes: Literal[0, 3] = csv.QUOTE_MINIMAL if table.suffix.lower() == ".csv" else csv.QUOTE_NONE
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, quoting=quotes, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise UserError(f"{table}:{start}: {e}") from e
        if any(cell.strip() for cell in cells):
            yield start, cells


def header_columns(cells: Sequence[str]) -> dict[str, int] | None:
    """Return the places of the columns if `cells` is a header, that is, names a path and a text column; else None."""
    names = [cell.strip().lower() for cell in cells]
    found = {
        column: next(i for i, name in enumerate(names) if name in known)
        for column, known in COLUMNS.items()
        if any(name in known for name in names)
    }
    return found if "path" in found and "text" in found else None


def utterance_ids(rows: Sequence[Row]) -> list[str]:
    """Return an id per row: the table's, else the file's name, or its path if names repeat. Equal paths get equal ids."""
    paths = {row.path: PurePath(row.path) for row in rows if not row.id}
    stems = Counter(path.stem for path in paths.values())
    taken = {clean_id(row.id) for row in rows if row.id}
    names: dict[str, str] = {}
    for written, path in paths.items():
        whole = "-".join(name for name in (*path.parent.parts, path.stem) if name != path.anchor)
        name = base = clean_id(path.stem if stems[path.stem] == 1 else whole)
        number = 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name)
        names[written] = name
    return [clean_id(row.id) if row.id else names[row.path] for row in rows]


def clean_id(name: str) -> str:
    """Return an id without blanks, since these end an id in Kaldi's files."""
    return re.sub(r"\s+", "_", name.strip()) or "_"
