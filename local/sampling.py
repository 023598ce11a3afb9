"""Which utterances make a batch: order and grouping depend on (seed, epoch) alone, and no audio is touched here.

A step's batch may be cut into micro-batches that fit the memory, and is dealt to the processes that train together.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, SimpleCutSampler
from lhotse.dataset.sampling.base import CutSampler

from local.errors import UserError
from local.schema import DataConfig
from local.training_cuts import Entry, ShuffledCuts

if torch.__version__.startswith("1."):  # k2's environment: its Sampler wants an argument that lhotse no longer gives
    torch.utils.data.Sampler.__init__ = object.__init__  # type: ignore[method-assign]

BINS_FROM = 10_000  # cuts from whose lengths the buckets' borders are taken
SHUFFLE_WINDOW = 500  # batches


class ShuffledBatches(torch.utils.data.Sampler):
    """The batches of a lhotse sampler, shuffled over `SHUFFLE_WINDOW` of them, from the `skip`-th on.

    lhotse draws synchronised buckets in the same order in every epoch, and ends with the small leftovers of all of
    them. Batches left out by `skip` are drawn, no more.
    """

    def __init__(self, sampler: CutSampler, seed: int, epoch: int, skip: int = 0) -> None:
        self.sampler, self.seed, self.epoch, self.skip = sampler, seed, epoch, skip

    def __iter__(self) -> Iterator[CutSet]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        batches = (batch for batch in self.sampler)  # ends for good, where lhotse's iterator starts again
        skip = self.skip
        while window := list(itertools.islice(batches, SHUFFLE_WINDOW)):
            rng.shuffle(window)
            yield from window[skip:]
            skip = max(skip - len(window), 0)


@dataclass
class Share:
    """What one process takes of one forward and backward pass. Where a pass has fewer micro-batches than there are
    processes, `batch_of` gives for every process the micro-batch that its cuts are part of, and `rows` the most cuts of
    any; otherwise each process has a micro-batch of its own, and `batch_of` is empty."""

    cuts: list[Cut]
    ends_step: bool = True
    batch_of: tuple[int, ...] = ()
    rows: int = 0


class Shares(torch.utils.data.Sampler):
    """The passes of process `rank` of `size` over batches of `cuts.entries()`, in each as many as in the other processes.

    limit: seconds of audio per micro-batch, padding counted.
    """

    def __init__(
        self, batches: Iterable[Iterable[Entry]], cuts: ShuffledCuts, limit: float, rank: int, size: int
    ) -> None:
        self.batches, self.cuts, self.limit, self.rank, self.size = batches, cuts, limit, rank, size

    def __iter__(self) -> Iterator[Share]:
        for batch in self.batches:
            cuts = [self.cuts.cut(entry) for entry in batch]
            yield from deal(micro_batches(cuts, self.limit), self.rank, self.size)


def micro_batches(cuts: list[Cut], limit: float) -> list[list[Cut]]:
    """Cuts of one step in parts of up to `limit` seconds, padding counted; as they are where they fit in one."""
    if len(cuts) * max(cut.duration for cut in cuts) <= limit:
        return [cuts]
    parts: list[list[Cut]] = [[]]
    for cut in longest_first(cuts):
        if parts[-1] and (len(parts[-1]) + 1) * parts[-1][0].duration > limit:
            parts.append([])
        parts[-1].append(cut)
    return parts


def deal(parts: list[list[Cut]], rank: int, size: int) -> Iterator[Share]:
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


def longest_first(cuts: Iterable[Cut]) -> list[Cut]:
    """In an order that depends on nothing but the cuts."""
    return sorted(cuts, key=lambda cut: (-cut.duration, cut.id))


class EveryNth(torch.utils.data.Sampler):
    """The batches `first`, `first` + `step`, ... of a sampler."""

    def __init__(self, sampler: Iterable[CutSet], first: int, step: int) -> None:
        self.sampler, self.first, self.step = sampler, first, step

    def __iter__(self) -> Iterator[CutSet]:
        return itertools.islice(iter(self.sampler), self.first, None, self.step)


def train_sampler(cuts: ShuffledCuts, data: DataConfig, max_duration: float, epoch: int) -> CutSampler:
    """Batches of up to `max_duration` seconds, padding counted, of cuts alike in length (lhotse's dynamic buckets)."""
    if data.num_buckets not in cuts.bins:
        cuts.epoch = 0  # whichever epoch comes first, the same cuts give the borders
        cuts.bins[data.num_buckets] = duration_bins(cuts.entries(), data.num_buckets)
    cuts.epoch = epoch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lhotse doubts small buffers; ours is bounded by the corpus
        sampler = DynamicBucketingSampler(
            _Entries(cuts),
            max_duration=max_duration,
            duration_bins=cuts.bins[data.num_buckets],
            shuffle=True,
            drop_last=False,
            buffer_size=data.shuffle_buffer,
            seed=cuts.seed,
            sync_buckets=True,  # without it lhotse 1.33 ends an epoch at the first empty bucket and loses the rest
            world_size=1,  # each process draws the whole epoch, of which `Shares` takes a part
            rank=0,
        )
    sampler.set_epoch(epoch)
    return sampler


class _Entries:
    """The entries of `cuts`, again each time they are asked for."""

    def __init__(self, cuts: ShuffledCuts) -> None:
        self.cuts = cuts

    def __iter__(self) -> Iterator[Entry]:
        return self.cuts.entries()


def duration_bins(cuts: Iterable[Entry], num_buckets: int) -> list[float]:
    """Borders between at most `num_buckets` buckets of about the same total time, from the first cuts' lengths."""
    lengths = np.sort([cut.duration for _, cut in zip(range(BINS_FROM), cuts, strict=False)])
    if not len(lengths):
        raise UserError("the training parts hold no utterance that fits features.type and augment.speed_perturb")
    share = np.cumsum(lengths) / lengths.sum()
    positions = np.searchsorted(share, np.arange(1, num_buckets) / num_buckets)
    return sorted({float(lengths[min(p, len(lengths) - 1)]) for p in positions} - {float(lengths[0])})


def plain_sampler(cuts: Iterable[Cut], max_duration: float) -> CutSampler:
    """Batches for validation and decoding: sorted by length, longest first, nothing dropped."""
    return SimpleCutSampler(CutSet(longest_first(cuts)), max_duration=max_duration, shuffle=False, world_size=1, rank=0)


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
