"""Text from others that is shown or written: ids, paths, transcripts, names. It is shown as text, never obeyed.

On a terminal they could move the cursor or reverse the line, in Markdown they could be markup, in a spreadsheet a formula.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

# Controls (C0, DEL, C1), marks that change the direction of writing, separators of lines, and halves of characters
# (surrogates: bytes of a file name that are not UTF-8, or "\ud800" in JSON). Joiners that letters need are not among them.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)")  # of Markdown, in the middle of a line
FORMULA = re.compile(r"'*[=+@-].")  # the beginning of a cell, with the quotes that are already there


def visible(text: str, keep: str = "") -> str:
    r"""Return one line of text: what has no glyph is shown as `\x1b`, `\n` or `\u202e`; the characters in `keep` stay."""
    return UNSAFE.sub(lambda m: m[0] if m[0] in keep else m[0].encode("unicode_escape").decode(), text)


def shortened(text: str, longest: int = 60) -> str:
    """Return `visible(text)` for a label of a plot, without its middle if it exceeds `longest` characters."""
    plain = visible(text)
    return plain if len(plain) <= longest else f"{plain[: longest - 21]}...{plain[-18:]}"


def markdown(text: str) -> str:
    """Return the text of a cell of a Markdown table that shows `text` as it is: no markup, no new cell or row."""
    return MARKUP.sub(r"\\\g<0>", visible(text))


def cell(text: str) -> str:
    """Return the text of a cell of a file that a spreadsheet may open: visible, and no formula."""
    return quoted(visible(text))


def quoted(text: str) -> str:
    """Return `text`, behind a quote if a spreadsheet would take it for a formula; numbers are none. `unquoted` undoes it."""
    return f"'{text}" if FORMULA.match(text) and not _is_number(text) else text


def unquoted(text: str) -> str:
    """Return the text that `quoted` got."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def encodable(value: Any, text: str) -> Any:
    r"""Return `value`, read from the JSON `text`. Raises `ValueError` for half a character ("\ud800"): no file can hold it."""
    try:
        if r"\ud" in text.lower():  # also in whole characters, of two escapes
            json.dumps(value, ensure_ascii=False, skipkeys=True, default=str).encode("utf-8")
    except UnicodeEncodeError as e:
        raise ValueError(f"half a character (\\u{ord(e.object[e.start]):04x})") from None
    return value


class _Escaped:
    """A text stream on which foreign text is visible; ends of lines and tabs stay. `unescaped` gives the stream below."""

    def __init__(self, stream: TextIO | None) -> None:
        self.below = stream

    def write(self, text: str) -> int:
        if self.below is None:  # it was closed before this program began
            return len(text)
        encoding = getattr(self.below, "encoding", None) or "utf-8"  # letters that a terminal does not have are escaped, too
        self.below.write(visible(text, keep="\n\t").encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        if self.below is not None:
            self.below.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


def unescaped(stream: TextIO) -> TextIO:
    """Return the stream to which control characters of our own can be written."""
    return cast(TextIO, stream.below) if isinstance(stream, _Escaped) else stream


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Within the block all that is printed, by whatever library, is visible text."""
    out, err = (cast(TextIO, _Escaped(unescaped(stream))) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
