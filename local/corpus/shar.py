"""A corpus in lhotse's Shar format: the utterances of its shards; the audio stays in the shards."""

from __future__ import annotations

import tarfile
from pathlib import Path

from local.common.errors import UserError
from local.corpus.dropped import Dropped
from local.corpus.lhotse_manifests import nonempty, read_cuts
from local.corpus.pairs import Pair
from local.corpus.shard_store import ShardStore, is_remote, recordings_in, shards_of

from lhotse import Recording


def read_shar(source: Path, part: str, dropped: list[Dropped], store: ShardStore) -> list[Pair]:
    """Return every supervision that can be read from the shards in a folder or a list (see `shards_of`).

    Cuts without audio in the shard, and missing or damaged shards go to `dropped`.
    """
    pairs: list[Pair] = []
    for cuts, tar in shards_of(source):
        recordings: dict[str, Recording] = {}
        try:
            location = tar if is_remote(tar) else str(Path(tar).resolve())
            for recording in recordings_in(store.local(tar), location):
                recordings[recording.id] = recording
        except (OSError, ValueError, LookupError, TypeError, tarfile.TarError) as e:
            dropped.append(damaged(tar, part, e))
        try:
            pairs += read_cuts(store.local(cuts), part, dropped, recordings)
        except (OSError, ValueError, UserError) as e:
            dropped.append(damaged(cuts, part, e))
    return nonempty(pairs, source)


def damaged(file: str, part: str, e: Exception) -> Dropped:
    """Return the entry of dropped.tsv for a file of a shard that cannot be read to its end."""
    return Dropped(file, part, "shard damaged or missing", " ".join(f"{type(e).__name__}: {e}".split())[:200])
