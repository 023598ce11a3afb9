"""Batches of studies/explosion.py: consecutive utterances of a prepared corpus, joined to long sequences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from local.common.errors import UserError
from local.config.schema import Config
from local.data.batch import Batch
from local.data.features import PADDING
from studies.short_training import Speech

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

BINS = 20  # mel channels: the means of adjacent ones, so that the front end is a small part of a step
HELD_OUT = 8  # dev sequences in a batch


@dataclass(frozen=True)
class Setting:
    """One training of the map.

    name, axis: its own, and that of the group that it belongs to. keys: changes of the configuration. seconds: the shortest
    sequence. batch: sequences in a step. recurrent: factor of the initial recurrent matrices. wrong: share of sequences with
    the transcript of another. utterances: how many there are (0: all); few mean many epochs. residual: whether a layer adds
    its input. seed: of weights and batches.
    """

    name: str
    axis: str = ""
    keys: tuple[str, ...] = ()
    seconds: float = 20.0
    batch: int = 4
    recurrent: float = 1.0
    wrong: float = 0.0
    utterances: int = 0
    residual: bool = True
    steps: int = 120
    seed: int = 1


class Joined:
    """Sequences of at least `seconds` of a prepared corpus. Batches depend on the setting alone, not on the control."""

    def __init__(self, cfg: Config, data_dir: Path) -> None:
        """Read which utterances there are; raises `UserError` as `Speech` does."""
        self.speech = Speech(cfg, data_dir)
        if cfg.features.num_mel_bins % BINS:
            raise UserError(f"key features.num_mel_bins must be a multiple of {BINS}, it is {cfg.features.num_mel_bins}")
        self.vocab_size = self.speech.tokenizer.vocab_size

    def batches(self, setting: Setting) -> Iterator[Batch]:
        """Yield training batches without end, drawn without replacement in each epoch.

        Raises:
            UserError: the setting's utterances are shorter than one batch.
        """
        cuts = sorted(self.speech.train, key=lambda cut: cut.id)[: setting.utterances or None]
        found = groups(cuts, setting.seconds)
        if len(found) < setting.batch:
            raise UserError(f"setting '{setting.name}': {len(found)} sequences of {setting.seconds:g} s are less than a batch")
        for epoch in itertools.count():
            rng = np.random.default_rng([setting.seed, epoch])
            order = rng.permutation(len(found))
            for first in range(0, len(order) - setting.batch + 1, setting.batch):
                batch = self._load([found[i] for i in order[first : first + setting.batch]])
                yield with_wrong_texts(batch, setting.wrong, rng)

    def held_out(self, seconds: float) -> list[Batch]:
        """Return the held-out utterances, joined in the same way; all in one sequence if they are shorter."""
        dev = sorted(self.speech.dev, key=lambda cut: cut.id)
        found = groups(dev, seconds) or [dev]
        return [self._load(found[first : first + HELD_OUT]) for first in range(0, len(found), HELD_OUT)]

    def _load(self, chosen: list[list[Cut]]) -> Batch:
        return joined([self.speech.dataset[CutSet.from_cuts(cuts)] for cuts in chosen])


def groups(cuts: list[Cut], seconds: float) -> list[list[Cut]]:
    """Return runs of consecutive cuts of at least `seconds` together; a shorter rest is left out."""
    found: list[list[Cut]] = [[]]
    for cut in cuts:
        found[-1].append(cut)
        if sum(c.duration for c in found[-1]) >= seconds:
            found.append([])
    return found[:-1]


def joined(parts: list[Batch]) -> Batch:
    """Return a batch of one sequence for each of `parts`: its utterances, joined in their order, with `BINS` channels."""
    inputs = [torch.cat(_rows(b.inputs, b.input_lens)) for b in parts]
    tokens = [torch.cat(_rows(b.tokens, b.token_lens)) for b in parts]
    lens, token_lens = (torch.tensor([len(x) for x in xs]) for xs in (inputs, tokens))
    narrow = [x.unflatten(1, (BINS, -1)).mean(dim=2) for x in inputs]
    return Batch(
        pad_sequence(narrow, True, PADDING), lens, pad_sequence(tokens, True, 0), token_lens, ["+".join(b.ids) for b in parts]
    )


def with_wrong_texts(batch: Batch, share: float, rng: np.random.Generator) -> Batch:
    """Return the batch in which about a share of the sequences has the transcript of the sequence before it."""
    wrong = torch.from_numpy(rng.random(len(batch)) < share)
    own = torch.arange(len(batch))
    source = torch.where(wrong, own.roll(1), own)
    return replace(batch, tokens=batch.tokens[source], token_lens=batch.token_lens[source])


def _rows(x: Tensor, lens: Tensor) -> list[Tensor]:
    return [row[:length] for row, length in zip(x, lens.tolist(), strict=True)]
