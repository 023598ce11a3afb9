"""Errors that a user can fix; exceptions and names as one line of text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from local.common.visible import visible


class UserError(Exception):
    """An error that the user can fix; the message names the file, line, key or utterance and how to fix it."""

    exit_status = 1  # of a program that stops with this error


class TrainingDiverged(UserError):
    """A training stopped because more than train.max_bad_steps steps had a non-finite loss or gradient."""

    exit_status = 3


def reason(e: BaseException) -> str:
    """Return the first line of an exception's message, or its class if the message is empty."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def described(e: BaseException) -> str:
    """Return the class and the first line of an exception's message, for exceptions of libraries."""
    return f"{type(e).__name__}: {reason(e)[:200]}"


def first_of(names: Sequence[str], most: int = 5) -> str:
    """Return `a, b, c, ...`: the names as visible text, if they are more than `most` only the first ones."""
    return ", ".join(map(visible, names[:most])) + (", ..." if len(names) > most else "")


def one_line(message: str, longest: int = 600) -> str:
    """Return `message` as one line of visible text, without its middle if it exceeds `longest`."""
    plain = visible(re.sub(r"[ \t\r\n\f\v]+", " ", message).strip())
    return plain if len(plain) <= longest else f"{plain[: longest * 2 // 3]} ... {plain[-longest // 4 :]}"


def is_out_of_memory(e: BaseException) -> bool:
    """Return whether an exception says that the memory of the GPU or of the machine is used up."""
    words = ("out of memory", "cannot allocate memory", "can't allocate memory", "not enough memory", "can't start new thread")
    said = str(e).lower()
    return isinstance(e, MemoryError) or any(w in said for w in (*words, "failed to map segment", "std::bad_alloc"))
