"""The training cuts of a corpus, in another order in every epoch; their lengths are known without making them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from local.common.errors import UserError
from local.common.text_files import read_bytes
from local.corpus.manifest_lines import parse_item
from local.data.durations import NUM_TOKENS, SPEED, SPEEDS, at_speed, fits_in

import numpy as np
from lhotse.cut import Cut

SHARD = re.compile(rb'"source": ?"([^"#]+)#[0-9]+\+[0-9]+"')  # in a cut's line


class ShuffledCuts:
    """The training cuts of some manifests, in an order drawn anew for every epoch, with speed-perturbed copies.

    Only the manifests' lines (0.6 kB each) and the cuts' lengths are held, so that the whole set is shuffled, batches are
    made from the lengths, and cuts only where they are needed: a resumed run gets over what it has seen in seconds.
    `precomputed`: the manifests already hold the copies (`custom.speed`); otherwise they are made here.
    """

    def __init__(
        self, manifests: Sequence[Path], seed: int, speed_perturb: bool, precomputed: bool, shuffle_shards: int = 1
    ) -> None:
        """shuffle_shards: of a corpus in shards, how many of these are taken at a time, in an order of their own."""
        found = {manifest: read_lines(manifest) for manifest in manifests}
        self.lines = [line for lines in found.values() for line in lines]
        self.sizes = {manifest: len(lines) for manifest, lines in found.items()}
        self.seed, self.speed_perturb, self.precomputed = seed, speed_perturb, precomputed
        self.shards, self.shuffle_shards = shards_of_lines(self.lines), shuffle_shards
        self.seconds, self.usable, self.tokens = self._measured()

    def __len__(self) -> int:
        """Cuts per epoch (the few copies too short for their tokens counted)."""
        return len(self.lines) * (1 if self.precomputed or not self.speed_perturb else 1 + len(SPEEDS))

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of the cuts that are used, in the order of the epoch; `seconds` and `cut` take them."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self))
        if self.shards is not None:
            group = rng.permutation(self.shards.max() + 1)[self.shards] // self.shuffle_shards
            order = order[np.argsort(group[order % len(self.lines)], kind="stable")]
        return order[self.usable[order]]

    def cut(self, number: int) -> Cut:
        """The cut itself. `UserError` naming its line where that is damaged."""
        copy, line = divmod(number, len(self.lines))
        cut = parse_item(self.lines[line], Cut, self._place(line))  # type: ignore[type-abstract]
        return at_speed(cut, SPEEDS[copy - 1]) if copy else cut

    def id_of(self, number: int) -> str:
        """Return the id of the cut without making it."""
        copy, line = divmod(number, len(self.lines))
        name = json.loads(self.lines[line])["id"]
        return f"{name}_sp{SPEEDS[copy - 1]}" if copy else str(name)

    def tokens_of(self, number: int) -> int:
        """Tokens of its transcript."""
        return int(self.tokens[number % len(self.lines)])

    def _measured(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Seconds of every cut, copies after the lines; whether it is used, as a copy may be too short for its tokens; and
        the tokens of every line."""
        seconds, usable = np.empty(len(self)), np.ones(len(self), dtype=bool)
        tokens = np.zeros(len(self.lines), dtype=np.int64)
        for i, line in enumerate(self.lines):
            try:
                cut = json.loads(line)
                duration, custom = cut["duration"], cut.get("custom") or {}
                seconds[i], tokens[i] = duration, custom.get(NUM_TOKENS, 0)
                if self.precomputed:
                    usable[i] = self.speed_perturb or SPEED not in custom
                elif len(self) > len(self.lines):
                    rate = cut["recording"]["sampling_rate"]
                    for copy, speed in enumerate(SPEEDS, 1):
                        # lhotse's rounding: to samples before and after
                        samples = math.floor(math.floor(duration * rate + 0.5) / speed + 0.5)
                        seconds[copy * len(self.lines) + i] = samples / rate
                        usable[copy * len(self.lines) + i] = fits_in(duration / speed, int(tokens[i]))
            except (ValueError, TypeError, LookupError, AttributeError):
                parse_item(line, Cut, self._place(i))  # type: ignore[type-abstract]  # says what is wrong
                why = "damaged: no cut of a recording; let prepare.sh make it again (--force)"
                raise UserError(f"{self._place(i)}: {why}") from None
        return seconds, usable, tokens

    def _place(self, line: int) -> str:
        """`manifest:number` of one of `lines`."""
        for manifest, size in self.sizes.items():
            if line < size:
                return f"{manifest}:{line + 1}"
            line -= size
        raise IndexError(line)


def shards_of_lines(lines: Sequence[bytes]) -> np.ndarray | None:
    """Return the number of the shard that holds the audio of each line of a manifest; None if it has no shards.

    Audio outside of shards is spread over the same numbers. See `local.corpus.shard_store`.
    """
    found = [match[1] if (match := SHARD.search(line)) else None for line in lines]
    number = {shard: i for i, shard in enumerate(sorted({shard for shard in found if shard is not None}))}
    if not number:
        return None
    return np.array([i % len(number) if shard is None else number[shard] for i, shard in enumerate(found)])


def read_lines(manifest: Path) -> list[bytes]:
    """Lines of a .jsonl.gz; raises `UserError` when the manifest is missing, broken or empty."""
    stage = "4 (features.type=precomputed)" if manifest.parent.name == "features" else "3"
    lines = read_bytes(manifest, f"stage {stage} of prepare.sh").splitlines()
    if not lines:
        raise UserError(f"{manifest}: no utterance in it; let stage {stage} of prepare.sh make it again (--force)")
    return lines
