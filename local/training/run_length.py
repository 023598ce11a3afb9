"""How long a training is: its batches, its warm-up, the time that is left."""

from __future__ import annotations

import sys
import time
from functools import cached_property
from typing import Any

from local.common.errors import UserError
from local.config.schema import Config, TrainConfig
from local.data.datamodule import AsrDataModule

AFTER = 2.0  # warm-ups, from which on all parts and losses have their full weight
LEAST = 3  # a training has at least this many times its warm-up: the pruned loss has its full weight after twice the warm-up
ADVISED = 0.1  # of train.warm_share in messages


def batches_of(train: TrainConfig, per_epoch: int) -> int:
    """Return the batches of a training whose epochs have `per_epoch` batches."""
    whole = train.num_epochs * per_epoch
    return min(whole, train.max_steps or whole)


def warm_up_problem(train: TrainConfig, per_epoch: int) -> str:
    """Return why train.warm_step is too large for a training whose epochs have `per_epoch` batches; "" if it is not."""
    batches = batches_of(train, per_epoch)
    if train.warm_share > 0 or batches >= LEAST * train.warm_step:
        return ""
    limit = f", train.max_steps {train.max_steps}" if train.max_steps else ""
    least = f" or train.warm_step={batches // LEAST}" if batches >= LEAST else ""
    return (
        f"key 'train.warm_step' is {train.warm_step}, but only about {batches} batches will come (train.num_epochs "
        f"{train.num_epochs} x {per_epoch}{limit}), fewer than {LEAST} x {train.warm_step}: the pruned loss has "
        f"its full weight after {2 * train.warm_step} batches; set train.warm_share={ADVISED}{least}, or train longer"
    )


def warmed_up(step: int, warm_batches: int) -> float:
    """Return how many warm-ups fit into the first `step` batches; `AFTER` if there is no warm-up."""
    return step / warm_batches if warm_batches else AFTER


class RunLength:
    """The length of one training in batches, each of which is a step of the optimiser.

    warm_batches: those of the warm-up. All processes find the same numbers.
    """

    def __init__(self, cfg: Config, data: AsrDataModule, saved: dict[str, Any]) -> None:
        """Choose the warm-up; `saved` is the checkpoint that the training resumes from, empty without one.

        The share of train.warm_share is taken once, when the training starts: a resumed training keeps it, as long as the key
        stays. `data` must know its max_duration. Raises `UserError` if the training parts have no utterance.
        """
        self.train, self.data = cfg.train, data
        self.began, self.first_step = time.monotonic(), 0
        share = self.train.warm_share
        self.warm_batches = self.train.warm_step
        if share > 0:
            kept = (
                saved["progress"].get("warm_batches") if saved and saved["config"]["train"].get("warm_share") == share else None
            )
            self.warm_batches = kept or max(1, round(share * self.batches))

    @cached_property
    def per_epoch(self) -> int:
        """The batches of the first epoch, which is about as long as the others. The first call reads the training cuts."""
        return self.data.batches_per_epoch()

    @property
    def batches(self) -> int:
        """The batches of the whole training: train.num_epochs epochs, or train.max_steps if that is less."""
        return batches_of(self.train, self.per_epoch)

    def check_warm_up(self, first: bool) -> None:
        """Raise `UserError` if train.warm_step is more than a third of the training; with train.max_steps only warn.

        first: whether this is the first process, which prints.
        """
        train, batches = self.train, self.batches
        if self.warm_batches == 0 and train.init is None:
            raise UserError("key 'train.warm_step' is 0, but the training starts from scratch: name a model by train.init")
        if text := warm_up_problem(train, self.per_epoch):
            if not train.max_steps:
                raise UserError(text)
            if first:
                print(f"warning: {text}", file=sys.stderr)
        if first:
            key = f"train.warm_share {train.warm_share:g}" if train.warm_share else "train.warm_step"
            print(f"warm-up: {self.warm_batches} of about {batches} batches ({key})", flush=True)

    def begin(self, step: int) -> None:
        """Start the clock of `seconds_left`, after `step` batches."""
        self.began, self.first_step = time.monotonic(), step

    def seconds_left(self, step: int) -> float | None:
        """Return the seconds until the training ends, from the pace since `begin`, validations included; None at first."""
        done = step - self.first_step
        return (time.monotonic() - self.began) / done * max(self.batches - step, 0) if done > 0 else None
