"""dropped.tsv: the utterances that were left out of a corpus, each with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from local.common.atomic import write_text
from local.common.errors import UserError
from local.common.text_files import read_lines

MAX_SHOWN = 5  # dropped utterances named on the screen, per reason


class Dropped(NamedTuple):
    """An utterance (or file) left out of a part; `kind` is the reason without details, for counting."""

    id: str
    part: str
    kind: str
    detail: str = ""

    def line(self) -> str:
        """Return its line of dropped.tsv; bytes of a file name that are not UTF-8 are shown by their number."""
        reason = f"{self.kind}: {self.detail}" if self.detail else self.kind
        line = "\t".join(s.replace("\t", " ").replace("\n", " ") for s in (self.id, self.part, reason))
        return line.encode("utf-8", "backslashreplace").decode("utf-8")


def write_dropped(path: str | Path, dropped: Sequence[Dropped]) -> None:
    """Write lines `id<TAB>part<TAB>reason`; an empty file if nothing was dropped."""
    write_text(path, "".join(d.line() + "\n" for d in dropped))


def read_dropped(path: Path, made_by: str) -> list[Dropped]:
    """Return what `write_dropped` wrote. Raises `UserError` naming a damaged line."""
    rows = [line.split("\t") for line in read_lines(path, made_by)]
    for number, row in enumerate(rows, 1):
        if len(row) != 3:
            raise UserError(f"{path}:{number}: damaged: not 'id<TAB>part<TAB>reason'; let {made_by} make it again (--force)")
    return [Dropped(*row) for row in rows]


def report_dropped(dropped: Sequence[Dropped], listing: str | Path) -> None:
    """Print the first few utterances of each kind, one per line, then the count of each kind."""
    counts: Counter[tuple[str, str]] = Counter()
    for d in dropped:
        counts[d.part, d.kind] += 1
        if counts[d.part, d.kind] <= MAX_SHOWN:
            print("  dropped " + d.line().replace("\t", ", ").replace("\n", " "))
    for (part, kind), n in counts.items():
        print(f"{part}: {n} dropped ({kind}); listed in {listing}")
