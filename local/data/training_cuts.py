"""The training cuts of a corpus, in another order in every epoch; their lengths are known before the cuts are made."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from local.common.errors import UserError
from local.common.text_files import read_bytes
from local.corpus.manifest_lines import parse_item
from local.data.durations import SPEED, SPEEDS, at_speed, original_id, tokens_fit
from local.data.token_counts import MADE_BY, UNUSABLE, CountOf, TokenCounter, counts_file, read_token_counts

import numpy as np
from lhotse.cut import Cut

SHARD = re.compile(rb'"source": ?"([^"#]+)#[0-9]+\+[0-9]+"')  # in a cut's line


class Drawn(NamedTuple):
    """A cut of an epoch."""

    cut: Cut
    turn: int  # the pass through its corpus, from 1; together with the id it seeds the cut's augmentation
    corpus: int = 0  # place of its corpus in data.mix


class ShuffledCuts:
    """The training cuts of some manifests, in an order drawn for each epoch, with speed-perturbed copies.

    Memory holds only the manifests' lines (0.6 kB each) and the cuts' lengths (`seconds`, by number); cuts are made on demand.
    `content` is a hash of their ids, lengths and transcripts in the order of the manifests, without the copies made here.
    Cuts that the tokens exclude (see local/prepare_lang.py) are left out, as are copies too fast for their tokens.
    """

    def __init__(
        self,
        manifests: Sequence[Path],
        lang: Path | TokenCounter,
        seed: int,
        speed_perturb: bool,
        precomputed: bool,
        shuffle_shards: int = 1,
    ) -> None:
        """Read each training part's <part>.jsonl.gz and the token counts in `lang`. Raises `UserError` if any is missing.

        lang: a folder, or what counts the tokens now. precomputed: the manifests hold the speed-perturbed copies
        (`custom.speed`). shuffle_shards: shards shuffled together.
        Raises `UserError` if `speed_perturb` asks for stored copies and there are none.
        """
        self.seed, self.speed_perturb, self.precomputed = seed, speed_perturb, precomputed
        self.shuffle_shards = shuffle_shards
        self._copies = () if precomputed or not speed_perturb else SPEEDS
        self._ends: list[tuple[Path, int]] = []  # manifests, and the number of lines up to their ends
        self._stored: set[float] = set()  # speeds of the manifests' cuts
        self.speech_seconds = 0.0  # of the manifests' cuts without stored copies
        self.content = hashlib.sha256()
        rows: list[tuple[int, bytes, int, tuple[float, ...], tuple[bool, ...]]] = []
        for manifest in manifests:
            rows += self._read(manifest, lang)
            self._ends.append((manifest, len(rows)))
        if speed_perturb and precomputed and self._stored == {1}:
            raise UserError(
                f"{', '.join(map(str, manifests))}: no copies at other speeds, but key 'augment.speed_perturb' is true; "
                "let prepare.sh --stage features make them, or set the key to false"
            )
        numbers, lines, tokens, seconds, usable = zip(*rows, strict=True) if rows else 5 * ((),)
        self.lines: tuple[bytes, ...] = lines
        self._numbers = np.array(numbers, dtype=np.int32)  # of the lines in their manifests
        self._tokens = np.array(tokens, dtype=np.int64)
        # a cut's number: its line's for originals and stored copies, then come the copies made here, speed by speed
        self.seconds = np.array(seconds, dtype=np.float64).T.reshape(-1)
        self._usable = np.array(usable, dtype=bool).T.reshape(-1)
        self.shards = shards_of_lines(self.lines)

    def __len__(self) -> int:
        """Return the number of cuts per epoch, including the few copies that are too short for their tokens."""
        return len(self.seconds)

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the cuts to use, in the order of the epoch; `seconds` and `cut` take them."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self))
        if self.shards is not None:
            group = rng.permutation(self.shards.max() + 1)[self.shards] // self.shuffle_shards
            order = order[np.argsort(group[order % len(self.lines)], kind="stable")]
        return order[self._usable[order]]

    @property
    def usable(self) -> int:
        """The number of cuts in an epoch."""
        return int(self._usable.sum())

    @property
    def num_lines(self) -> int:
        """The number of cuts without the copies made here."""
        return len(self.lines)

    @property
    def hours(self) -> float:
        """The hours of these."""
        return float(self.seconds[: len(self.lines)].sum()) / 3600

    def of_epoch(self, epoch: int) -> ShuffledCuts:
        """Return the cuts of an epoch, whose `order` and numbers are those of this object."""
        return self

    def drawn(self, number: int, epoch: int) -> Drawn:
        """Return a cut of an epoch by its number."""
        return Drawn(self.cut(number), epoch)

    def lengths(self, most: int) -> list[tuple[float, int]]:
        """Return seconds and tokens of the cuts, or of `most` random ones if there are more."""
        return [(float(self.seconds[number]), self._tokens_of(number)) for number in self.order(0)[:most].tolist()]

    def cut(self, number: int) -> Cut:
        """Return a cut by its number. Raises `UserError` naming its line if that is damaged."""
        copy, line = divmod(number, len(self.lines))
        manifest = next(manifest for manifest, end in self._ends if line < end)
        cut = parse_item(self.lines[line], Cut, f"{manifest}:{self._numbers[line]}")  # type: ignore[type-abstract]
        return at_speed(cut, SPEEDS[copy - 1]) if copy else cut

    def id_of(self, number: int) -> str:
        """Return the id of the cut without making it."""
        copy, line = divmod(number, len(self.lines))
        name = json.loads(self.lines[line])["id"]
        return f"{name}_sp{SPEEDS[copy - 1]}" if copy else str(name)

    def _tokens_of(self, number: int) -> int:
        return int(self._tokens[number % len(self.lines)])

    def _read(
        self, manifest: Path, lang: Path | TokenCounter
    ) -> Iterator[tuple[int, bytes, int, tuple[float, ...], tuple[bool, ...]]]:
        """Yield (number, line, tokens) of each cut that the tokens allow, and seconds and use of it and its copies."""
        count_of = lang.of(manifest) if isinstance(lang, TokenCounter) else _counts_in(lang, manifest)
        originals: dict[str, float] = {}  # seconds by id, as they come before their copies
        for number, line in enumerate(read_cut_lines(manifest), 1):
            try:
                cut = json.loads(line)
                duration, speed = float(cut["duration"]), (cut.get("custom") or {}).get(SPEED, 1)
                name = original_id(cut["id"], speed)
                count = count_of(name, cut)
                original = originals.setdefault(name, duration * speed)
                self._stored.add(speed)
                if count == UNUSABLE or (speed != 1 and not tokens_fit(original / speed, count)):
                    continue
                rate = cut["recording"]["sampling_rate"] if self._copies else 0
                lengths = (duration, *(perturbed(duration, rate, s) for s in self._copies))
                fits = (self.speed_perturb or speed == 1, *(tokens_fit(duration / s, count) for s in self._copies))
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
                place = f"{manifest}:{number}"
                parse_item(line, Cut, place)  # type: ignore[type-abstract]  # says what is wrong
                why = "damaged: not a cut of a recording; let prepare.sh make it again (--force)"
                raise UserError(f"{place}: {why}") from None
            text = (cut.get("supervisions") or [{}])[0].get("text")
            self.content.update(f"{cut['id']}\t{duration}\t{text}\n".encode("utf-8", "surrogatepass"))
            self.speech_seconds += duration if speed == 1 else 0.0
            yield number, line, count, lengths, fits


def _counts_in(lang: Path, manifest: Path) -> CountOf:
    """Return a function from the id of a cut to its number of tokens, which stands in the folder `lang`."""
    path = counts_file(lang, manifest.name.removesuffix(".jsonl.gz"))
    counts = read_token_counts(path)

    def count_of(name: str, cut: dict[str, Any]) -> int:
        if (count := counts.get(name)) is None:
            raise UserError(f"{path}: no cut '{name[:80]}' of {manifest}; let {MADE_BY} make it again")
        return count

    return count_of


def perturbed(seconds: float, rate: int, speed: float) -> float:
    """Return the seconds of a cut at `rate` Hz played at `speed`, with lhotse's rounding to samples before and after."""
    return math.floor(math.floor(seconds * rate + 0.5) / speed + 0.5) / rate


def shards_of_lines(lines: Sequence[bytes]) -> np.ndarray | None:
    """Return the shard number of each line's audio; None without shards. Other audio is spread over the numbers."""
    found = [match[1] if (match := SHARD.search(line)) else None for line in lines]
    number = {shard: i for i, shard in enumerate(sorted({shard for shard in found if shard is not None}))}
    if not number:
        return None
    return np.array([i % len(number) if shard is None else number[shard] for i, shard in enumerate(found)])


def read_cut_lines(manifest: Path) -> list[bytes]:
    """Return the lines of a part's .jsonl.gz. Raises `UserError` if it is missing, damaged or empty."""
    stage = "4 (features), with features.type=precomputed," if manifest.parent.name == "features" else "2 (cuts)"
    lines = read_bytes(manifest, f"stage {stage} of prepare.sh").splitlines()
    if not lines:
        raise UserError(f"{manifest}: it has no utterance; let stage {stage} of prepare.sh make it again (--force)")
    return lines
