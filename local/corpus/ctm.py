"""Times of words in .ctm files beside the transcripts of LibriSpeech's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.common.errors import UserError
from local.common.text_files import read_lines
from local.corpus.pairs import Pair

from lhotse.supervision import AlignmentItem
from lhotse.utils import fastcopy


def with_alignments(pairs: Sequence[Pair], folder: Path) -> list[Pair]:
    """Return the pairs with the times of their words from `*/*/*.ctm` in `folder`; a file is for the audio beside it.

    Raises `UserError` for a malformed line, and for an utterance that is in two files of one folder.
    """
    words: dict[tuple[str, str], list[AlignmentItem]] = {}
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob("*/*/*.ctm")):
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip() or line.startswith(";;"):  # a comment
                continue
            try:
                utterance, _, start, duration, word = line.split()[:5]
                item = AlignmentItem(word, float(start), float(duration))
            except ValueError:
                raise UserError(f"{path}:{number}: not 'utterance channel start duration word'") from None
            key = (str(path.parent.absolute()), utterance)
            if files.setdefault(key, path) != path:
                raise UserError(f"{path}:{number}: {utterance} is in {files[key].name} as well; keep one of them")
            words.setdefault(key, []).append(item)
    found = []
    for recording, segment in pairs:
        key = (str(Path(recording.sources[0].source).parent), segment.id)
        found.append((recording, fastcopy(segment, alignment={"word": words[key]}) if key in words else segment))
    return found
