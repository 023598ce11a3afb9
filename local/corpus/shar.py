"""A corpus in lhotse's Shar format: the utterances of its shards; the audio stays in the shards."""

from __future__ import annotations

import tarfile
from functools import cached_property
from pathlib import Path

from local.common.errors import UserError, described
from local.corpus.dropped import Dropped
from local.corpus.lhotse_manifests import nonempty, pairs_of_cuts
from local.corpus.pairs import Pair
from local.corpus.shard_store import FORBIDDEN, ShardStore, is_remote, recordings_in, shards_of

from lhotse import Recording


class ShardAudio:
    """The recordings of a shard's tar, in the order of the cuts."""

    def __init__(self) -> None:
        """Begin without recordings."""
        self.found: list[tuple[str, Recording | None]] = []  # None: a cut without audio
        self._taken: set[int] = set()

    def take(self, number: int, name: str) -> Recording | None:
        """Return the recording of cut `number` if it has this id, else the only one with the id, else None."""
        places = [number] if number < len(self.found) and self.found[number][0] == name else self._places.get(name, [])
        if len(places) != 1 or places[0] in self._taken:
            return None
        self._taken.add(places[0])
        return self.found[places[0]][1]

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for number, (name, _) in enumerate(self.found):
            places.setdefault(name, []).append(number)
        return places

    def left(self) -> list[str]:
        """Return the ids of the recordings that no cut has taken."""
        return [name for i, (name, recording) in enumerate(self.found) if recording and i not in self._taken]


def read_shar(source: Path, part: str, dropped: list[Dropped], store: ShardStore) -> list[Pair]:
    """Return every supervision that can be read from the shards in a folder or a list (see `shards_of`).

    Cuts without audio in the shard and the reverse, and missing or damaged shards go to `dropped`. Raises `UserError` if no
    utterance is left.
    """
    pairs: list[Pair] = []
    for cuts, tar in shards_of(source):
        if is_remote(cuts) and not store.commands:
            dropped.append(Dropped(cuts, part, FORBIDDEN))
            continue
        audio = ShardAudio()
        try:
            location = tar if is_remote(tar) else str(Path(tar).resolve())
            audio.found.extend(recordings_in(store.local(tar), location))
        except (OSError, ValueError, LookupError, TypeError, UserError, tarfile.TarError) as e:
            dropped.append(damaged(tar, part, e))
        try:
            pairs.extend(pairs_of_cuts(store.local(cuts), part, dropped, audio.take))
        except (OSError, ValueError, UserError) as e:
            dropped.append(damaged(cuts, part, e))
        dropped += [Dropped(name, part, "audio in a shard without a cut", tar) for name in audio.left()]
    if not pairs and {d.kind for d in dropped if d.part == part} == {FORBIDDEN}:
        raise UserError(f"{source}: it {FORBIDDEN}")
    return nonempty(pairs, source)


def damaged(file: str, part: str, e: Exception) -> Dropped:
    """Return the entry of dropped.tsv for a file of a shard that cannot be read to its end."""
    return Dropped(file, part, "shard damaged or missing", described(e))
