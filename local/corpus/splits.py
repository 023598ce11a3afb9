"""Splits parts that a corpus lacks off its training part."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from local.common.errors import UserError, first_of
from local.corpus.copies import original_name, originals
from local.corpus.pairs import Pair

MIN_SPEAKERS = 5  # with fewer, a missing part is split off by utterance: train cannot spare a speaker
ENOUGH = 20  # utterances that a part split off should have at least
MOST = 0.25  # of train that all parts split off may take together


def split_off(
    pairs: Sequence[Pair], part: str, share: float, corpus_dir: Path, first: str = "train", most: int | None = None
) -> tuple[list[Pair], list[Pair]]:
    """Return about `share` of the utterances, for `part`, and the rest. Raises `UserError` if there are too few.

    Takes at least `ENOUGH` utterances unless these are more than `most`, a quarter by default, which a line says. Takes whole
    speakers, or utterances if speakers are fewer than `MIN_SPEAKERS`; perturbed copies stay with their original. The choice
    depends on the names alone.
    """

    def key(name: str) -> bytes:
        return hashlib.sha256(name.encode()).digest()

    speakers = {original_name(s.speaker) if s.speaker else None for _, s in pairs}
    by_speaker = None not in speakers and len(speakers) >= MIN_SPEAKERS
    owners = owners_of(pairs, by_speaker)
    counts = Counter(owners)
    if len(counts) < 2:
        raise UserError(
            f"part '{part}' is not in {corpus_dir}, and {first} has too few utterances to split it off ({len(pairs)}); "
            f"give {part} itself, or leave it out of data.dev_parts and data.test_parts"
        )
    most = int(MOST * len(pairs)) if most is None else most
    wanted, size = max(1, round(share * len(pairs)), min(ENOUGH, most)), 0
    taken: set[str] = set()
    for name in sorted(counts, key=key):
        if size < wanted and size + counts[name] <= 2 * wanted:  # not a speaker of half the corpus
            taken.add(name)
            size += counts[name]
    if len(taken) in (0, len(counts)):
        taken = {min(counts, key=lambda name: (counts[name], key(name)))}
    inside = [pair for pair, owner in zip(pairs, owners, strict=True) if owner in taken]
    outside = [pair for pair, owner in zip(pairs, owners, strict=True) if owner not in taken]
    who = "utterances"
    if by_speaker:
        who = f"utterances, all of the speakers {first_of(sorted(taken))},"
    print(f"{part} is not in {corpus_dir}: {len(inside)} of {first}'s {len(pairs)} {who} are taken for it")
    if len(inside) < ENOUGH:
        why = f"{ENOUGH} for each missing part would be more than a quarter of {first}"
        if most >= ENOUGH:
            why = f"the next speaker of {first} has too many"
        print(f"{part}: only {len(inside)} utterances, as {why}; its error rates are rough")
    return inside, outside


def owners_of(pairs: Sequence[Pair], by_speaker: bool) -> list[str]:
    """Return for each pair who must not be split: its speaker, or its original and the copies of that."""
    groups = originals(pairs)
    if not by_speaker:
        return groups
    speakers: dict[str, str] = {}
    for group, (_, segment) in zip(groups, pairs, strict=True):
        speakers.setdefault(group, original_name(segment.speaker or ""))
    return [speakers[group] for group in groups]
