r"""Rules that change texts: the file of key lang.rules, one rule per line, `FROM<TAB>TO`.

The configuration holds the rules themselves, not the file's name, so that checkpoints carry them. FROM is plain text, or a
regular expression of Python between slashes; TO may be empty, which deletes, and may hold `\1` if FROM is an expression.
Lines that begin with `#`, and lines of white space, are skipped; but spaces and one tab delete these spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from local.common.errors import UserError
from local.common.text_files import read_lines
from local.config.limits import shown

Rule = Callable[[str], str]


def inline_rules(value: str | None, where: str) -> str | None:
    """Return the rules, one per line, that `value` holds or names by a file; None if there are none.

    Raises `UserError` naming `where` for a missing file, and file and line for a bad rule.
    """
    if value is None or "\t" in value:
        return value
    path = Path(value)
    try:
        lines = read_lines(path)
    except (UserError, ValueError) as e:
        raise UserError(f"{where}: key 'lang.rules': {e}") from None
    kept = [(number, line) for number, line in enumerate(lines, 1) if is_rule(line)]
    for number, line in kept:
        _parse(line, f"{path}:{number}")
    return "\n".join(line for _, line in kept) or None


def is_rule(line: str) -> bool:
    """Return whether a line of the file is a rule."""
    return bool(line.strip() or re.fullmatch(" +\t", line)) and not line.startswith("#")


def check_rules(value: str | None, where: str) -> None:
    """Raise `UserError` unless the rules of a stored configuration are rules: the name of a file would be read."""
    if value is not None and "\t" not in value:
        raise UserError(f"{where}: key 'lang.rules': {shown(value)} is not a rule 'FROM<TAB>TO'; a file is not read for it")


def parse_rules(rules: str | None) -> list[Rule]:
    """Return the rules of `inline_rules` as functions, in their order. Raises `UserError` with the number of a bad one."""
    lines = rules.split("\n") if rules else []
    return [_parse(line, f"key 'lang.rules', rule {number}") for number, line in enumerate(lines, 1)]


def _parse(line: str, where: str) -> Rule:
    source, *rest = line.split("\t")
    if not source or len(rest) != 1:
        raise UserError(f"{where}: {line[:80]!r} is not 'FROM<TAB>TO' with one tab; leave TO empty to delete FROM")
    if "${" in line:
        raise UserError(f"{where}: '${{' has a meaning in configurations; write it as the expression /[$][{{]/")
    target = rest[0]
    if len(source) > 2 and source[0] == source[-1] == "/":
        try:
            pattern = re.compile(source[1:-1])
            pattern.sub(target, "")
        except (re.error, IndexError, OverflowError, RecursionError) as e:
            raise UserError(f"{where}: {source[:80]!r} to {target[:80]!r} is not a regular expression: {e}") from None
        if pattern.fullmatch(""):
            raise UserError(f"{where}: {source[:80]!r} matches between all characters; it must match at least one")
        return lambda text: pattern.sub(target, text)
    plain = unicodedata.normalize("NFKC", source)  # as the texts are when rules are applied
    return lambda text: text.replace(plain, target)
