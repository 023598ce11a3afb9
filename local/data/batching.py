"""Which utterances make a batch: order and grouping depend on (seed, epoch) alone, and no audio is touched here.

A step's batch may be cut into micro-batches that fit the memory, and is dealt to the processes that train together.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from local.common.errors import UserError
from local.data.training_cuts import ShuffledCuts

import numpy as np
import torch
from lhotse.cut import Cut

Item = TypeVar("Item")
SHUFFLE_WINDOW = 500  # batches


def pack_by_duration(items: Iterable[Item], seconds: Iterable[float], limit: float) -> Iterator[list[Item]]:
    """Successive items in parts that take up to `limit` seconds with padding; one that takes more alone is a part."""
    part: list[Item] = []
    longest = 0.0
    for item, length in zip(items, seconds, strict=True):
        if part and (len(part) + 1) * max(longest, length) > limit:
            yield part
            part, longest = [], 0.0
        part.append(item)
        longest = max(longest, length)
    if part:
        yield part


def train_batches(cuts: ShuffledCuts, num_buckets: int, limit: float, epoch: int) -> list[list[int]]:
    """An epoch: numbers of `cuts` in batches of up to `limit` seconds, padding counted, of cuts alike in length.

    Each bucket of lengths is filled in the order of the epoch and emptied when a batch is full, as in lhotse's
    DynamicBucketingSampler; what remains in the buckets at the end makes batches of neighbours in length. Then batches are
    shuffled over `SHUFFLE_WINDOW` of them, so that those of a few shards stay together.

    Made from lengths alone, in a second for LibriSpeech in three speeds: all processes draw the whole epoch, and a resumed
    one draws what it has seen. Raises `UserError` where there is no cut.
    """
    order = cuts.order(epoch)
    seconds = cuts.seconds[order]
    bucket = np.searchsorted(duration_bins(seconds, num_buckets), seconds, side="right")
    full: list[list[int]] = []  # places in the order
    rest: list[int] = []
    for b in range(bucket.max() + 1):
        places = np.flatnonzero(bucket == b)
        *parts, last = pack_by_duration(places.tolist(), seconds[places].tolist(), limit)
        full += parts
        rest += last
    full.sort(key=lambda part: part[-1])  # as they became full
    rest.sort(key=lambda place: (seconds[place], place))
    full += pack_by_duration(rest, seconds[rest].tolist(), limit)
    rng = random.Random(f"{cuts.seed} {epoch}")
    shuffled: list[list[int]] = []
    for first in range(0, len(full), SHUFFLE_WINDOW):
        window = full[first : first + SHUFFLE_WINDOW]
        rng.shuffle(window)
        shuffled += window
    return [order[part].tolist() for part in shuffled]


def duration_bins(seconds: np.ndarray, num_buckets: int) -> list[float]:
    """Borders between at most `num_buckets` buckets of about the same total time, none of them empty."""
    if not len(seconds):
        raise UserError("the training parts hold no utterance that fits features.type and augment.speed_perturb")
    lengths = np.sort(seconds)
    share = np.cumsum(lengths) / lengths.sum()
    positions = np.searchsorted(share, np.arange(1, num_buckets) / num_buckets)
    return sorted({float(lengths[min(p, len(lengths) - 1)]) for p in positions} - {float(lengths[0])})


@dataclass
class Share:
    """What one process takes of one forward and backward pass. Where a pass has fewer micro-batches than there are
    processes, `batch_of` gives for every process the micro-batch that its cuts are part of, and `rows` the most cuts of
    any; otherwise each process has a micro-batch of its own, and `batch_of` is empty."""

    cuts: list[Cut]
    ends_step: bool = True
    batch_of: tuple[int, ...] = ()
    rows: int = 0


class Shares:
    """The passes of process `rank` of `size` over `train_batches`, in each as many as in the other processes.

    limit: seconds of audio per micro-batch, padding counted.
    """

    def __init__(self, batches: Sequence[list[int]], cuts: ShuffledCuts, limit: float, rank: int, size: int) -> None:
        self.batches, self.cuts, self.limit, self.rank, self.size = batches, cuts, limit, rank, size

    def __iter__(self) -> Iterator[Share]:
        for batch in self.batches:
            cuts = [self.cuts.cut(number) for number in batch]
            yield from split_over_processes(micro_batches(cuts, self.limit), self.rank, self.size)


def micro_batches(cuts: list[Cut], limit: float) -> list[list[Cut]]:
    """Cuts of one step in parts of up to `limit` seconds, padding counted; as they are where they fit in one."""
    if len(cuts) * max(cut.duration for cut in cuts) <= limit:
        return [cuts]
    return longest_first_parts(cuts, limit)


def split_over_processes(parts: list[list[Cut]], rank: int, size: int) -> Iterator[Share]:
    """The passes of process `rank`: a micro-batch for each process as long as there are enough; the last ones are split."""
    for first in range(0, len(parts), size):
        here = parts[first : first + size]
        ends = first + size >= len(parts)
        if len(here) == size:
            yield Share(here[rank], ends)
            continue
        batch_of = tuple(r * len(here) // size for r in range(size))
        by_process = []
        for r, mine in enumerate(batch_of):
            place = r - batch_of.index(mine)  # among the processes of this micro-batch
            by_process.append(longest_first(here[mine])[place :: batch_of.count(mine)])
        yield Share(by_process[rank], ends, batch_of, max(map(len, by_process)))


def longest_first_parts(cuts: Iterable[Cut], limit: float) -> list[list[Cut]]:
    """Cuts, longest first, in parts of up to `limit` seconds, padding counted."""
    ordered = longest_first(cuts)
    return list(pack_by_duration(ordered, (cut.duration for cut in ordered), limit))


def longest_first(cuts: Iterable[Cut]) -> list[Cut]:
    """In an order that depends on nothing but the cuts."""
    return sorted(cuts, key=lambda cut: (-cut.duration, cut.id))


def utterance_seed(seed: int, epoch: int, cut: Cut) -> int:
    """A 63-bit seed of this utterance's augmentation, the same in whichever batch and process it is made."""
    text = f"{seed} {epoch} {cut.id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class seeded:  # noqa: N801  (a context manager, used like a function)
    """Seed Python's, numpy's and torch's global generators, which lhotse draws from, and put them back at the end.

    Within, torch has one thread, as in a loader's process: with more, its convolutions round differently.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.random.default_generator.manual_seed(self.seed)

    def __exit__(self, *args: object) -> None:
        random.setstate(self.states[0])
        np.random.set_state(self.states[1])
        torch.set_rng_state(self.states[2])
        torch.set_num_threads(self.threads)
