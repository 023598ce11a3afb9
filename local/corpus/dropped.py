"""dropped.tsv: the utterances that were left out of a corpus, each with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from local.common.atomic import write_text
from local.common.errors import UserError
from local.common.text_files import read_lines
from local.common.visible import cell, unquoted, visible

MAX_SHOWN = 5  # dropped utterances named on the screen, per reason


class Dropped(NamedTuple):
    """An utterance (or file) left out of a part; `kind` is the reason without details, for counting."""

    id: str
    part: str
    kind: str
    detail: str = ""

    def columns(self) -> tuple[str, str, str]:
        """Return its row of dropped.tsv."""
        return self.id, self.part, f"{self.kind}: {self.detail}" if self.detail else self.kind

    def line(self) -> str:
        """Return the same for the screen."""
        return ", ".join(map(visible, self.columns()))


def write_dropped(path: str | Path, dropped: Sequence[Dropped]) -> None:
    """Write lines `id<TAB>part<TAB>reason` of visible text; an empty file if nothing was dropped."""
    write_text(path, "".join("\t".join(map(cell, d.columns())) + "\n" for d in dropped))


def read_dropped(path: Path, made_by: str) -> list[Dropped]:
    """Return what `write_dropped` wrote. Raises `UserError` naming a damaged line."""
    rows = [line.split("\t") for line in read_lines(path, made_by)]
    for number, row in enumerate(rows, 1):
        if len(row) != 3:
            raise UserError(f"{path}:{number}: damaged: not 'id<TAB>part<TAB>reason'; let {made_by} make it again (--force)")
    return [Dropped(*map(unquoted, row)) for row in rows]


def report_dropped(dropped: Sequence[Dropped], listing: str | Path) -> None:
    """Print the first few utterances of each kind, one per line, then the count of each kind."""
    counts: Counter[tuple[str, str]] = Counter()
    for d in dropped:
        counts[d.part, d.kind] += 1
        if counts[d.part, d.kind] <= MAX_SHOWN:
            print(f"  dropped {d.line()}")
    for (part, kind), n in counts.items():
        print(f"{part}: {n} dropped ({kind}); listed in {listing}")
