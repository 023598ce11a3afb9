"""Token counts of a part's cuts: LANG/num_tokens/<part>.tsv, lines `id<TAB>number`. The cuts do not depend on the tokens.

Of a corpus that trains with the tokens of another one (data.mix), they are counted when its cuts are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from local.common.atomic import write_text
from local.common.errors import UserError
from local.common.text_files import read_lines
from local.common.visible import quoted, unquoted, visible
from local.data.durations import num_frames, tokens_fit
from local.data.tokenizer import Tokenizer
from model.encoder.subsampling import subsampled

UNUSABLE = -1  # number of tokens of a cut that cannot be trained on with these tokens
MOST = 10**6  # tokens of a cut; a larger number is damage
MOST_NAMED = 20  # characters
LOST, TOO_MANY = "characters outside the model", "more tokens than frames after subsampling"
MADE_BY = "stage 3 (lang) of prepare.sh"
CountOf = Callable[[str, dict[str, Any]], int]  # from an utterance's id and its cut to the number of its tokens


def counts_file(lang: Path, part: str) -> Path:
    """Return the file of a part's counts in the folder `lang`."""
    return lang / "num_tokens" / f"{part}.tsv"


def write_token_counts(counts: Mapping[str, int], path: Path) -> None:
    """Write the number of tokens of each cut, or `UNUSABLE`, by the cut's id."""
    write_text(path, "".join(f"{quoted(name)}\t{count}\n" for name, count in counts.items()))


def read_token_counts(path: Path) -> dict[str, int]:
    """Return what `write_token_counts` wrote. Raises `UserError` (file, line) if the file is missing or a line is damaged."""
    counts = {}
    for number, line in enumerate(read_lines(path, MADE_BY), 1):
        name, _, count = line.rpartition("\t")
        name = unquoted(name)
        try:
            counts[name] = int(count)
        except ValueError:
            counts[name] = MOST + 1
        if not UNUSABLE <= counts[name] <= MOST or not name:
            raise UserError(f"{path}:{number}: damaged: not 'id<TAB>number'; let {MADE_BY} make it again (--force)")
    return counts


def why_unusable(tokenizer: Tokenizer, text: str, tokens: list[int], seconds: float) -> tuple[str, str] | None:
    """Return why an utterance cannot be trained on with these tokens of its text: the kind and the detail; None if it can."""
    if tokenizer.decode(tokens) != text:
        lost = " ".join(tokenizer.lost_characters(text))
        return (LOST, lost) if lost else ("text that its tokens do not give back", text)
    if not tokens_fit(seconds, len(tokens)):
        return TOO_MANY, f"{len(tokens)} tokens, {subsampled(num_frames(seconds))} frames"
    return None


class TokenCounter:
    """Counts the tokens of cuts of another corpus, as local/prepare_lang.py does for training utterances."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Count by `tokenizer`."""
        self.tokenizer = tokenizer
        self.unknown = Counter[str]()  # characters that the tokens lack, and in how many texts they are
        self.dropped = 0
        self._counts: dict[tuple[Path, str], int] = {}  # ids are unique within a part only

    def of(self, manifest: Path) -> CountOf:
        """Return a function that counts the tokens of a cut of `manifest` by the id of the utterance and the cut.

        The cut may be a copy of the utterance, which is counted once.
        """

        def count_of(name: str, cut: dict[str, Any]) -> int:
            key = (manifest, name)
            if key not in self._counts:
                self._counts[key] = self._count(cut)
                self.dropped += self._counts[key] == UNUSABLE
            return self._counts[key]

        return count_of

    def _count(self, cut: dict[str, Any]) -> int:
        [supervision] = cut["supervisions"]
        text = str(supervision.get("text") or "")
        [tokens] = self.tokenizer.encode([text])
        if why_unusable(self.tokenizer, text, tokens, float(cut["duration"])) is None:
            return len(tokens)
        self.unknown.update(self.tokenizer.lost_characters(text))
        return UNUSABLE

    def report(self) -> str:
        """Return how many utterances cannot be used and the characters that are to blame; "" if all can be."""
        if not self.dropped:
            return ""
        named = visible(" ".join(character for character, _ in self.unknown.most_common(MOST_NAMED)))
        more = " ..." if len(self.unknown) > MOST_NAMED else ""
        why = f"characters that the tokens lack: {named}{more}" if named else "more tokens than frames"
        return f"{self.dropped} of {len(self._counts)} utterances are left out: {why}"
