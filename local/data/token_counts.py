"""Token counts of a part's cuts: LANG/num_tokens/<part>.tsv, lines `id<TAB>number`. The cuts do not depend on the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from local.common.atomic import write_text
from local.common.errors import UserError
from local.common.text_files import read_lines
from local.common.visible import quoted, unquoted

UNUSABLE = -1  # number of tokens of a cut that cannot be trained on with these tokens
MOST = 10**6  # tokens of a cut; a larger number is damage
MADE_BY = "stage 3 (lang) of prepare.sh"


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
