"""Training cuts of several corpora in given shares (data.mix): an epoch is one pass through the first corpus.

The other corpora are passed through again and again, each pass in an order of its own; an epoch takes as many of their cuts as
their shares ask for, from where the epoch before stopped. So every cut of a corpus comes once before any comes again. Which
cuts an epoch has, and their order, depend on (seed, epoch) alone: a resumed training finds them without a state, which the
samplers of lhotse that mix (CutSet.mux) must replay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from local.data.training_cuts import Drawn, ShuffledCuts

import numpy as np
from lhotse.cut import Cut


class MixedCuts:
    """The training cuts of several corpora; `content` is a hash of those of all and of their shares."""

    def __init__(self, corpora: Sequence[ShuffledCuts], shares: Sequence[float]) -> None:
        """Mix corpora that have usable cuts; shares: above 0, of the cuts of an epoch."""
        self.corpora, self.shares = corpora, shares
        self.usable = sum(cuts.usable for cuts in corpora)
        self.num_lines = sum(cuts.num_lines for cuts in corpora)
        self.hours = sum(cuts.hours for cuts in corpora)
        self.speech_seconds = sum(cuts.speech_seconds for cuts in corpora)
        self.content = hashlib.sha256()
        for cuts, share in zip(corpora, shares, strict=True):
            self.content.update(f"{cuts.content.hexdigest()} {share!r}\n".encode())

    def of_epoch(self, epoch: int) -> MixedEpoch:
        """Return the cuts of an epoch."""
        taken = [np.stack([np.full(self.corpora[0].usable, epoch), self.corpora[0].order(epoch)])]
        for cuts, share in zip(self.corpora[1:], self.shares[1:], strict=True):
            per_epoch = self.corpora[0].usable * share / self.shares[0]
            taken.append(_stretch(cuts, round(max(epoch - 1, 0) * per_epoch), round(max(epoch, 1) * per_epoch)))
        return MixedEpoch(self.corpora, taken, epoch)

    def lengths(self, most: int) -> list[tuple[float, int]]:
        """Return seconds and tokens of the cuts of all corpora, or of `most` random ones of each that has more."""
        return [length for cuts in self.corpora for length in cuts.lengths(most)]


def _stretch(cuts: ShuffledCuts, first: int, last: int) -> np.ndarray:
    """Return (2, last - first): the passes, from 1, and the numbers of the cuts at places [first, last) of endless passes."""
    size, places = cuts.usable, np.arange(first, last)
    turns = places // size + 1
    numbers = np.empty(len(places), dtype=np.int64)
    for turn in np.unique(turns).tolist():
        here = turns == turn
        numbers[here] = cuts.order(turn)[places[here] % size]
    return np.stack([turns, numbers])


class MixedEpoch:
    """The cuts of one epoch in their order; a cut's number is its place in it. As `ShuffledCuts` for train_batches.

    The cuts of each corpus are spread evenly over the epoch: the n of a corpus have one random place in each n-th part of it.
    So the shares hold in every part of an epoch, too.
    """

    def __init__(self, corpora: Sequence[ShuffledCuts], taken: Sequence[np.ndarray], epoch: int) -> None:
        """Take for each corpus passes and numbers of its cuts, (2, cuts); their order within a corpus stays."""
        self.corpora, self.seed = corpora, corpora[0].seed
        rng = np.random.default_rng([self.seed, epoch, len(corpora)])
        places = [(np.arange(part.shape[1]) + rng.random(part.shape[1])) / max(1, part.shape[1]) for part in taken]
        order = np.argsort(np.concatenate(places), kind="stable")
        self.corpus = np.repeat(np.arange(len(corpora)), [part.shape[1] for part in taken])[order]
        self.turns, self.numbers = np.concatenate(taken, axis=1)[:, order]
        self.seconds = np.concatenate([cuts.seconds[part[1]] for cuts, part in zip(corpora, taken, strict=True)])[order]

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the cuts in their order."""
        return np.arange(len(self.numbers))

    def id_of(self, number: int) -> str:
        """Return the id of a cut without making it."""
        return self.corpora[self.corpus[number]].id_of(int(self.numbers[number]))

    def drawn(self, number: int, epoch: int) -> Drawn:
        """Return a cut by its number. Raises `UserError` naming its line if that is damaged."""
        index = int(self.corpus[number])
        cut: Cut = self.corpora[index].cut(int(self.numbers[number]))
        return Drawn(cut, int(self.turns[number]), index)


TrainingCuts = ShuffledCuts | MixedCuts
EpochCuts = ShuffledCuts | MixedEpoch
