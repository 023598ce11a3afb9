"""Which utterances make a step and a micro-batch: the order depends on (seed, epoch) alone, and no audio is read."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from local.common.errors import UserError
from local.data.mixed_cuts import EpochCuts

import numpy as np
import torch
from lhotse.cut import Cut

Item = TypeVar("Item")
SHUFFLE_WINDOW = 500  # steps


def pack_by_length(items: Iterable[Item], lengths: Iterable[float], limit: float, width: int = 1) -> Iterator[list[Item]]:
    """Yield parts of items that fit `width` micro-batches of `limit`, padding counted. A longer item is a part of its own."""
    part: list[Item] = []
    longest = 0.0
    for item, length in zip(items, lengths, strict=True):
        longest = max(longest, length)
        if part and math.ceil((len(part) + 1) / width) * longest > limit:
            yield part
            part, longest = [], length
        part.append(item)
    if part:
        yield part


def train_batches(cuts: EpochCuts, num_buckets: int, limit: float, epoch: int, width: int = 1) -> list[list[int]]:
    """Return the steps of an epoch: numbers of `cuts` alike in length. Raises `UserError` if there is no cut.

    A step holds up to `width` micro-batches of `limit` seconds, padding counted. Each bucket of lengths is filled in the order
    of the epoch; a full one makes a step, as in lhotse's DynamicBucketingSampler. What remains is grouped by length. Steps are
    then shuffled over `SHUFFLE_WINDOW` of them, so that those of a few shards stay together. All processes draw the whole
    epoch, as it takes a second for LibriSpeech in three speeds.
    """
    order = cuts.order(epoch)
    seconds = cuts.seconds[order]
    bucket = np.searchsorted(duration_bins(seconds, num_buckets), seconds, side="right")
    full: list[list[int]] = []  # places in the order
    rest: list[int] = []
    for b in range(bucket.max() + 1):
        places = np.flatnonzero(bucket == b)
        *parts, last = pack_by_length(places.tolist(), seconds[places].tolist(), limit, width)
        full += parts
        rest += last
    full.sort(key=lambda part: part[-1])  # in the order in which they became full
    rest.sort(key=lambda place: (seconds[place], place))
    full += pack_by_length(rest, seconds[rest].tolist(), limit, width)
    rng = random.Random(f"{cuts.seed} {epoch}")
    shuffled: list[list[int]] = []
    for first in range(0, len(full), SHUFFLE_WINDOW):
        window = full[first : first + SHUFFLE_WINDOW]
        rng.shuffle(window)
        shuffled += window
    return [order[part].tolist() for part in shuffled]


def duration_bins(seconds: np.ndarray, num_buckets: int) -> list[float]:
    """Return the borders between at most `num_buckets` buckets of about the same total time; no bucket is empty."""
    if not len(seconds):
        raise UserError("the training parts hold no utterance that fits features.type and augment.speed_perturb")
    lengths = np.sort(seconds)
    share = np.cumsum(lengths) / lengths.sum()
    positions = np.searchsorted(share, np.arange(1, num_buckets) / num_buckets)
    return sorted({float(lengths[min(p, len(lengths) - 1)]) for p in positions} - {float(lengths[0])})


class Share(NamedTuple):
    """What one process takes of one forward and backward pass: numbers of cuts, maybe none."""

    numbers: list[int]
    ends_step: bool = True


class Shares:
    """The micro-batches of process `rank` of `size` in the steps `batches`; all processes have equally many."""

    def __init__(self, batches: Sequence[list[int]], cuts: EpochCuts, limit: float, rank: int, size: int) -> None:
        """Take the steps of `train_batches`; limit: seconds of audio per micro-batch, padding counted."""
        self.batches, self.cuts, self.limit, self.rank, self.size = batches, cuts, limit, rank, size

    def __iter__(self) -> Iterator[Share]:
        """Yield the shares in order."""
        for batch in self.batches:
            parts = micro_batches(batch, self.cuts, self.limit, self.size)
            yield from split_over_processes(parts, self.rank, self.size)


def micro_batches(numbers: list[int], cuts: EpochCuts, limit: float, size: int) -> list[list[int]]:
    """Cut a step into micro-batches of up to `limit` seconds, padding counted.

    A step that `size` processes can take at once is divided evenly among them. A longer one is cut without regard to
    `size`, longest cuts first, so that any number of processes trains on the same micro-batches.
    """
    longest = max(cuts.seconds[number] for number in numbers)
    if math.ceil(len(numbers) / size) * longest <= limit:
        return [numbers[rank::size] for rank in range(size)]
    ordered = sorted(numbers, key=lambda number: (-cuts.seconds[number], cuts.id_of(number)))
    return list(pack_by_length(ordered, cuts.seconds[ordered].tolist(), limit))


def split_over_processes(parts: list[list[int]], rank: int, size: int) -> Iterator[Share]:
    """Yield the shares of process `rank`: one micro-batch per process and round; in the last round some may have none."""
    for first in range(0, len(parts), size):
        mine = parts[first + rank] if first + rank < len(parts) else []
        yield Share(mine, ends_step=first + size >= len(parts))


def utterance_seed(seed: int, epoch: int, cut: Cut) -> int:
    """Return a 63-bit seed of this utterance's augmentation; it depends on neither batch nor process."""
    text = f"{seed} {epoch} {cut.id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch, which lhotse draws from, and restore them at the end.

    Inside, torch has one thread, as in a loader's process: its convolutions round differently with more.
    """
    states, threads = (random.getstate(), np.random.get_state()), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(1)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.random.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_num_threads(threads)
