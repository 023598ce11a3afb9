"""What an input utterance may claim: to be in exactly one part with its own audio and text, or to be listed with a reason."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.own_data.tones import TOLERANCE

KEPT, EITHER, LOST = range(3)  # verdicts, the worse the higher
PURE = 0.6  # share of the energy that an utterance's own tone has at least
SECONDS = 0.06  # by which the length of a kept utterance may differ


@dataclass
class Claim:
    """An utterance of the input. `word` is in its text and in no other; "" for audio without a transcript.

    names: any of which is the first cell of its line in dropped.tsv. files: or its reason names one of these.
    verdict: whether it must be kept, must be lost, or may be either.
    """

    part: str
    word: str
    text: str
    frequency: float
    seconds: float
    names: set[str]
    files: set[str] = field(default_factory=set)
    verdict: int = KEPT
    why: str = ""
    merged: bool = False  # the same utterance a second time: it need not be listed
    late: bool = False  # it is left out in stage 2
    command: bool = False  # its audio is what a command writes

    def __str__(self) -> str:
        return f"{self.part}: {sorted(self.names)[0]} {self.text!r} ({self.why or 'undamaged'})"


class Found(NamedTuple):
    """An utterance that preparation kept, with what is heard when training loads it."""

    part: str
    id: str
    text: str
    frequency: float
    share: float
    seconds: float


class Row(NamedTuple):
    """A line of dropped.tsv."""

    id: str
    part: str
    reason: str


def normal(text: str) -> str:
    """Return the normal form in which texts are compared: NFKC, upper case, single blanks, no invisible characters."""
    text = re.sub("[\u200b\u2028\u2029\x00-\x1f\x7f-\x9f]", " ", unicodedata.normalize("NFKC", text))
    text = re.sub("[\u00ad\u200e\u200f\ufeff]", "", text)
    return " ".join(unicodedata.normalize("NFKC", text.upper()).split())


def wrong_content(found: Found, claims: Sequence[Claim]) -> tuple[Claim | None, str]:
    """Return the claim that a kept utterance fulfils, and "", or None and what is wrong with it."""
    words = set(re.findall(r"\w+", normal(found.text)))
    mine = [c for c in claims if c.word and normal(c.word) in words]
    if not mine:
        return None, f"kept, but not in the input: {found}"
    best = min(mine, key=lambda c: (abs(c.frequency - found.frequency), c.merged))
    if normal(found.text) != normal(best.text):
        return None, f"another text, {best.text!r}: {found}"
    if abs(best.frequency - found.frequency) > TOLERANCE or found.share < PURE:
        return None, f"another audio, {best.frequency:.0f} Hz: {found} ({best.why or 'undamaged'})"
    if best.verdict == KEPT and abs(best.seconds - found.seconds) > SECONDS:
        return None, f"another length, {best.seconds:.2f} s: {found}"
    return best, f"kept, though it cannot be used ({best.why}): {found}" if best.verdict == LOST else ""


def match_kept(claims: Sequence[Claim], kept: Sequence[Found], splits: dict[str, str]) -> tuple[list[Claim], list[str]]:
    """Return the claims that kept utterances fulfil, and what is wrong. splits: a part split off, and the part it is from."""
    wrong: list[str] = []
    fulfilled: list[Claim] = []
    parts: dict[str, set[str]] = defaultdict(set)
    for found in kept:
        claim, problem = wrong_content(found, claims)
        if problem:
            wrong.append(problem)
        if claim is None:
            continue
        if claim.part not in (found.part, splits.get(found.part)):
            wrong.append(f"in the wrong part: {found}, {claim}")
        if any(claim is c for c in fulfilled):
            wrong.append(f"kept twice: {found}, {claim}")
        fulfilled.append(claim)
        parts[claim.word].add(found.part)
    wrong += [f"an utterance and its copy in different parts: {word}" for word, names in parts.items() if len(names) > 1]
    ids = Counter((found.part, found.id) for found in kept)
    wrong += [f"an id twice: {name} in {part}" for (part, name), n in ids.items() if n > 1]
    return fulfilled, wrong


def match_rows(lost: Sequence[Claim], rows: Sequence[Row], unclear: Sequence[Claim] = ()) -> list[str]:
    """Return what is wrong with dropped.tsv: a lost utterance without a line or a reason, or a line for nothing.

    A line about a file, or about a line of one, may stand for several utterances; others stand for one. unclear: claims that
    may or may not be listed.
    """
    wrong = [f"no reason: {row}" for row in rows if not row.reason.strip() or re.search("<_io| object at 0x", row.reason)]
    about = [[n for n, row in enumerate(rows) if is_about(row, claim)] for claim in lost]
    shared = {n for n, row in enumerate(rows) if re.search(r"/.*\.\w+$|:\d+$", row.id)}
    taken: dict[int, int] = {}  # row -> lost claim

    def find(claim: int, seen: set[int]) -> bool:
        """Give the claim a row, of which another claim may have to take another (bipartite matching)."""
        for n in about[claim]:
            if n in shared:
                return True
            if n not in seen:
                seen.add(n)
                if n not in taken or find(taken[n], seen):
                    taken[n] = claim
                    return True
        return False

    for n in sorted(range(len(lost)), key=lambda n: lost[n].merged):  # one that must be listed takes a line first
        if not find(n, set()) and not lost[n].merged:
            wrong.append(f"neither kept nor listed: {lost[n]}")
    explained = {n for found in about for n in found}
    for n, row in enumerate(rows):
        if n not in explained and not any(is_about(row, claim) for claim in unclear):
            wrong.append(f"a line for nothing: {row}")
    return wrong


def is_about(row: Row, claim: Claim) -> bool:
    """Return whether a line of dropped.tsv may be about an utterance: by an id, with other blanks or a number, or by a file."""
    ids = {row.id, re.sub(r"-\d+$", "", row.id)}
    spelt = {s for name in claim.names for s in (name, re.sub(r"\s", " ", name), re.sub(r"\s+", "_", name.strip()))}
    return bool(ids & spelt) or any(re.search(rf"{re.escape(file)}(?!\w)", f"{row.id} {row.reason}") for file in claim.files)


def violations(claims: Sequence[Claim], kept: Sequence[Found], rows: Sequence[Row], splits: dict[str, str]) -> list[str]:
    """Return what a successful preparation did wrong; nothing if all claims are met."""
    fulfilled, wrong = match_kept(claims, kept, splits)
    lost = [c for c in claims if not any(c is f for f in fulfilled)]
    wrong += [f"lost, though it is good: {c}" for c in lost if c.verdict == KEPT and not c.merged]
    damaged = [c for c in claims if c.verdict == EITHER]  # all of them may be kept, and the damaged file be listed
    return wrong + match_rows(lost, rows, damaged)


def violations_of_a_stop(claims: Sequence[Claim], rows: Sequence[Row]) -> list[str]:
    """Return what is wrong with dropped.tsv if preparation stopped: what cannot be used must be listed, the rest may be."""
    lost = [c for c in claims if c.verdict == LOST and not c.late]
    return match_rows(lost, rows, claims)
