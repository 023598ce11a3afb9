"""Tables of a user's own corpus: lines of path, text and perhaps speaker, with or without a header, in TSV, CSV or with `|`.

Published forms among them: Common Voice (`clips/`), LJSpeech (`metadata.csv`), NeMo's manifests, which are lines of JSON.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from local.common.errors import UserError
from local.common.text_files import first_lines, read_lines
from local.common.visible import visible
from local.corpus.audio_paths import AudioFinder
from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair, undecoded, whole_file
from local.corpus.table_columns import BY_POSITION, Layout, find_layout, known_columns

from lhotse import SupervisionSegment

DELIMITERS = {".tsv": "\t", ".csv": ",;\t|", ".txt": "\t|"}  # see `delimiter_of`
QUOTED = re.compile(r'(?:^|(?<=[,;\t]))"(?:[^"]|"")*"(?=[,;\t]|$)', re.MULTILINE)  # a cell of a .csv
JSON_LINES = (".json", ".jsonl")
SAMPLE = 50  # rows that show which columns the table has
BAD_ROW = (ValueError, TypeError, ArithmeticError, RecursionError)  # what a line of JSON may raise


class Row(NamedTuple):
    """One utterance as written; `id` is empty if the table has none. start, duration: seconds; duration 0: to the end."""

    line: int
    path: str
    text: str
    speaker: str
    id: str
    start: float = 0.0
    duration: float = 0.0


def read_table(table: Path, part: str, dropped: list[Dropped]) -> list[Pair]:
    """Return a table's utterances, without reading audio; bad lines go to `dropped`. Raises `UserError` if no line is good."""
    bad = len(dropped)
    finder = AudioFinder(table.parent, part)
    is_json = table.suffix.lower() in JSON_LINES
    rows = list(json_rows(table, part, dropped) if is_json else table_rows(table, part, dropped, finder))
    if not rows:
        why = f": {dropped[bad].id}: {dropped[bad].detail}" if len(dropped) > bad else ""
        raise UserError(f"{table}: it has no utterance{why}")
    return pairs_of_rows(rows, finder)


def table_rows(table: Path, part: str, dropped: list[Dropped], finder: AudioFinder) -> Iterator[Row]:
    """Yield the rows of the table without blank lines; malformed lines go to `dropped`."""
    lines = read_lines(table)
    delimiter = delimiter_of(table, lines)
    cells_of_lines = cells_of(table, lines, delimiter)
    head = list(islice(cells_of_lines, SAMPLE))
    layout = find_layout(table, [cells for _, cells in head], finder, delimiter)
    if layout.guessed and head:
        first = visible(", ".join(head[0][1]))
        taken = f"the first line ({first}) is not a header that is known" if layout.header else "it has no header"
        print(f"{table}: {taken}; columns: {layout.describe()}")
    for n, (number, cells) in enumerate(chain(head, cells_of_lines)):
        where = f"{table}:{number}"
        if n == 0 and layout.header:
            if layout.guessed:
                dropped.append(Dropped(where, part, "line taken for a header", ", ".join(cells)))
            continue
        row, wrong = row_of(number, cells, layout)
        if row:
            yield row
        else:
            dropped.append(Dropped(where, part, "malformed line", wrong))


def row_of(number: int, cells: Sequence[str], layout: Layout) -> tuple[Row | None, str]:
    """Return the row of a line, or None and what is wrong with it."""
    columns = layout.columns
    if not max(columns["path"], columns["text"]) < len(cells) <= layout.width:
        by_position = layout.columns == BY_POSITION and not layout.header
        expected = "path, text and perhaps speaker" if by_position else f"the {layout.width} of the first line"
        return None, f"{len(cells)} columns instead of {expected}"
    found = {k: cells[i].strip() if i < len(cells) else "" for k, i in columns.items()}
    if not found["path"]:
        return None, "the path is empty"
    text = found["text"] or found.get("raw", "")
    try:
        start, duration = times_of(found)
    except ValueError as e:
        return None, str(e)
    return Row(number, found["path"], text, found.get("speaker", ""), found.get("id", ""), start, duration), ""


def times_of(found: dict[str, Any]) -> tuple[float, float]:
    """Return start and duration in seconds, from `start` and `end` or `duration`.

    An end without a start counts from 0; a duration alone is that of the file and not used.

    Raises `ValueError` if they are not times.
    """
    if all(found.get(k) in (None, "") for k in ("start", "end")):
        return 0.0, 0.0
    start, end, duration = (float(found.get(k) or 0) for k in ("start", "end", "duration"))
    if found.get("end") not in (None, ""):
        duration = end - start
        if not duration > 0:
            raise ValueError(f"it ends at {end} s but starts at {start} s")
    if not (math.isfinite(start + duration) and start >= 0 and duration >= 0):
        raise ValueError(f"it starts at {start} s and lasts {duration} s")
    return start, duration


def delimiter_of(table: Path, lines: Sequence[str]) -> str:
    """Return the character between the cells: the one of which most lines have the same number, outside quotes.

    It is `|` if no other has more such lines: texts have commas, rarely bars.
    """
    known = DELIMITERS[table.suffix.lower()]
    sample = list(islice((line for line in lines if line.strip()), SAMPLE))
    bars = agreeing(sample, "|") if "|" in known else 0
    if table.suffix.lower() == ".csv":
        sample = QUOTED.sub("", "\n".join(sample)).split("\n")
    others = {c: (agreeing(sample, c), "".join(sample[:1]).count(c)) for c in known if c != "|"}
    best = max(others, key=others.__getitem__)
    return "|" if bars and bars >= others[best][0] else best


def agreeing(lines: Sequence[str], character: str) -> int:
    """Return how many lines have the most usual number, above 0, of a character."""
    counts = Counter(line.count(character) for line in lines)
    return max((agree for number, agree in counts.items() if number), default=0)


def cells_of(table: Path, lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each line that is not blank. Quotes are special in a .csv with commas or the like only."""
    quoted = table.suffix.lower() == ".csv" and delimiter != "|"
    quotes: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
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


def json_rows(table: Path, part: str, dropped: list[Dropped]) -> Iterator[Row]:
    """Yield the rows of a table of JSON objects, one per line, with the names of columns as keys (NeMo: `audio_filepath`).

    NeMo's `offset` and `duration` are a segment; a `duration` alone is that of the file, which the file itself says better.
    """
    for number, line in enumerate(read_lines(table), 1):
        if not line.strip():
            continue
        try:
            yield json_row(number, line)
        except BAD_ROW as e:
            dropped.append(Dropped(f"{table}:{number}", part, "malformed line", " ".join(str(e).split())[:200]))


def json_row(number: int, line: str) -> Row:
    """Return the row of a line. Raises `ValueError` or `TypeError` saying what is wrong with it."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise TypeError(f"a {type(values).__name__} instead of an object with audio_filepath and text")
    keys = list(values)
    found = {column: values[keys[i]] for column, i in known_columns(keys).items()}
    if isinstance(found.get("path"), dict):  # {"audio": {"path": ...}}
        found["path"] = found["path"].get("path")
    for column in ("path", "text"):
        if not isinstance(found.get(column), str):
            raise ValueError(f"no {'audio_filepath' if column == 'path' else 'text'}")
    if not found["path"].strip():
        raise ValueError("the path is empty")
    speaker, name = (str(found[k]) if found.get(k) is not None else "" for k in ("speaker", "id"))
    if b"\0" in "".join((found["path"], found["text"], speaker, name)).encode("utf-8"):  # raises ValueError for half characters
        raise ValueError("a zero byte")
    start, duration = times_of(found)
    return Row(number, found["path"].strip(), " ".join(found["text"].split()), speaker, name, start, duration)


def pairs_of_rows(rows: Sequence[Row], finder: AudioFinder) -> list[Pair]:
    """Return the utterances of the rows: whole files, or segments of recordings that several rows may share."""
    files = file_names(rows)
    recordings: dict[str, Any] = {}
    pairs = []
    for row, name in zip(rows, utterance_ids(rows, files), strict=True):
        audio = finder.path(row.path)
        if not (row.start or row.duration):
            pairs.append(whole_file(name, audio, row.text, row.speaker or None))
            continue
        recording = recordings.get(row.path)
        if recording is None:
            recording = recordings[row.path] = undecoded(files[row.path], str(audio.absolute()))
        times = {"start": row.start, "duration": row.duration}
        pairs.append((recording, SupervisionSegment(name, recording.id, text=row.text, speaker=row.speaker or None, **times)))
    return pairs


def utterance_ids(rows: Sequence[Row], files: dict[str, str]) -> list[str]:
    """Return an id per row: the table's, else that of `files` (see `file_names`), with the times of a segment in milliseconds.

    Equal paths and times get equal ids.
    """
    ids = []
    for row in rows:
        times = f"-{row.start * 1000:07.0f}-{(row.start + row.duration) * 1000:07.0f}" if row.start or row.duration else ""
        ids.append(clean_id(row.id) if row.id else files[row.path] + times)
    return ids


def file_names(rows: Sequence[Row]) -> dict[str, str]:
    """Return an id for each path: the file's name, or the whole path if names repeat; none is an id that the table gives."""
    paths = {row.path: PurePath(row.path) for row in rows if not row.id or row.start or row.duration}
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
    return names


def clean_id(name: str) -> str:
    """Return an id without spaces, since these end an id in Kaldi's files."""
    return re.sub(r"\s+", "_", name.strip()) or "_"


def is_promising(table: Path, part: str) -> bool:
    """Return whether a file of any name is a table of speech: it has a header that is known, or names files that exist.

    Flaws in a few lines do not matter: `read_table` lists or names them.
    """
    finder = AudioFinder(table.parent, part)
    rows = []
    try:
        lines = first_lines(table, 20 * SAMPLE)
        if table.suffix.lower() in JSON_LINES:
            return any(map(is_json_row, islice((line for line in lines if line.strip()), SAMPLE)))
        delimiter = delimiter_of(table, lines)
        with contextlib.suppress(UserError):  # a quote that does not end: the rows before it may be good
            for _, cells in islice(cells_of(table, lines, delimiter), SAMPLE):
                rows.append(cells)
        layout = find_layout(table, rows, finder, delimiter)
    except UserError:
        return False
    column = layout.columns["path"]
    cells = [row[column].strip() for row in rows if len(row) > max(column, 1)]
    return (layout.header and not layout.guessed) or any(finder.find(cell) for cell in cells)


def is_json_row(line: str) -> bool:
    """Return whether a line of JSON is an utterance."""
    try:
        return bool(json_row(1, line))
    except BAD_ROW:
        return False


def has_cells(table: Path) -> bool:
    """Return whether a file may be a table, as far as its ending and the characters between cells tell."""
    known = DELIMITERS.get(table.suffix.lower(), "")
    return table.suffix.lower() != ".txt" or any(c in line for line in first_lines(table, SAMPLE) for c in known)
