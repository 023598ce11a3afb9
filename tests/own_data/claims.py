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
    if best.verdict == LOST:
        return best, "" if best.merged else f"kept, though it cannot be used ({best.why}): {found}"
    return best, ""


def match_kept(claims: Sequence[Claim], kept: Sequence[Found], splits: dict[str, str]) -> tuple[list[Claim], list[str]]:
    """Return the claims that kept utterances fulfil, and what is wrong. splits: a part split off, and the part it is from."""
    wrong, fulfilled = [], []
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
    same: dict[tuple[str, str], int] = Counter((c.part, c.text) for c in fulfilled if not c.why.startswith("copy"))
    expected: dict[tuple[str, str], int] = Counter((c.part, c.text) for c in claims if not c.merged and c.why != "copy")
    wrong += [f"a repeated line kept twice: {key}" for key, n in same.items() if n > max(1, expected[key])]
    return fulfilled, wrong


def match_rows(claims: Sequence[Claim], lost: Sequence[Claim], rows: Sequence[Row], unclear: Sequence[Claim] = ()) -> list[str]:
    """Return what is wrong with dropped.tsv: a lost utterance without a line or a reason, or a line for nothing.

    unclear: claims that may or may not be listed.
    """
    wrong = [f"no reason: {row}" for row in rows if not row.reason.strip() or re.search("<_io| object at 0x", row.reason)]
    by_name: dict[str, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        for name in {row.id, re.sub(r"-\d+$", "", row.id)}:
            by_name[name].append(n)
    named = {name for c in claims for name in c.names}
    used: set[int] = set()
    for claim in sorted(lost, key=lambda c: c.merged):  # one that must be listed takes a line first
        mine = [n for name in spellings(claim) for n in by_name[name]]
        about_file = [
            n for n, r in enumerate(rows) if r.id not in named and any(f in f"{r.id} {r.reason}" for f in claim.files)
        ]
        free = next((n for n in mine if n not in used), None)
        used |= set(about_file) | (set() if free is None else {free})
        if free is None and not about_file and not claim.merged:
            wrong.append(f"neither kept nor listed: {claim}")
    explained = {n for claim in (*lost, *unclear) for name in spellings(claim) for n in by_name[name]}
    wrong += [f"a line for nothing: {row}" for n, row in enumerate(rows) if n not in used | explained]
    return wrong


def spellings(claim: Claim) -> list[str]:
    """Return the claim's names as an id may be written: with other blanks."""
    return sorted(
        {spelt for name in claim.names for spelt in (name, re.sub(r"\s", " ", name), re.sub(r"\s+", "_", name.strip()))}
    )


def violations(claims: Sequence[Claim], kept: Sequence[Found], rows: Sequence[Row], splits: dict[str, str]) -> list[str]:
    """Return what a successful preparation did wrong; nothing if all claims are met."""
    fulfilled, wrong = match_kept(claims, kept, splits)
    lost = [c for c in claims if not any(c is f for f in fulfilled)]
    wrong += [f"lost, though it is good: {c}" for c in lost if c.verdict == KEPT and not c.merged]
    return wrong + match_rows(claims, lost, rows)


def violations_of_a_stop(claims: Sequence[Claim], rows: Sequence[Row]) -> list[str]:
    """Return what is wrong with dropped.tsv if preparation stopped: what cannot be used must be listed, the rest may be."""
    lost = [c for c in claims if c.verdict == LOST and not c.late]
    return match_rows(claims, lost, rows, claims)
