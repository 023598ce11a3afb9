"""The samples of a file in pieces, so that files of hours need little memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from local.common.errors import UserError, reason
from local.config.schema import Channel
from local.corpus.audio_files import AudioInfo, check_audio
from local.corpus.audio_reading import BadAudio, open_audio, read_block
from local.corpus.resampling import resampler
from local.data.channels import TAKEN

import numpy as np
import torch

CONTEXT = 0.25  # seconds of samples on both sides of a resampled piece; filters are shorter


@dataclass(frozen=True)
class Audio:
    """A file that decodes to its end; `rows` are the channels that were chosen, `mix` whether to take their mean.

    note: what to say about its channels, "" for a file with one.
    """

    path: Path
    info: AudioInfo
    rows: tuple[int, ...]
    mix: bool = False
    note: str = ""

    @property
    def seconds(self) -> float:
        """The length of the file, in seconds."""
        return self.info.num_samples / self.info.sampling_rate

    def pieces(self, sampling_rate: int) -> Iterator[torch.Tensor]:
        """Yield samples (C, S), float32, at `sampling_rate` (Hz); C is the number of rows, 1 for a mean.

        Raises `UserError` naming the file if it cannot be read.
        """
        resample = Resampler(self.info.sampling_rate, sampling_rate, 1 if self.mix else len(self.rows))
        try:
            with open_audio(self.path) as f:
                while len(block := read_block(f)):
                    chosen = torch.from_numpy(np.ascontiguousarray(block.T[list(self.rows)]))
                    yield resample.accept(chosen.mean(0, keepdim=True) if self.mix else chosen)
            yield resample.finish()
        except BadAudio as e:
            raise UserError(f"{self.path}: {e}") from None
        except (OSError, RuntimeError) as e:
            raise UserError(f"{self.path}: unreadable: {reason(e)[:200]}") from None


def open_checked(path: Path, channel: Channel) -> Audio:
    """Decode a file once to check it; of several channels choose as data.channel says. Raises `UserError` naming a bad file."""
    try:
        info = check_audio(path)
    except BadAudio as e:
        raise UserError(f"{path}: {e}") from None
    count = info.num_channels
    if count == 1:
        return Audio(path, info, (0,))
    loudest = max(range(count), key=lambda c: info.levels[c])
    rows = {"first": (0,), "loudest": (loudest,)}.get(channel, tuple(range(count)))
    note = f"{path}: has {count} channels: data.channel={channel} {TAKEN[channel]}"
    return Audio(path, info, rows, channel == "mix", note)


class Resampler:
    """Samples in pieces of any size to another rate; the same as resampling the whole, up to rounding."""

    def __init__(self, source: int, target: int, channels: int) -> None:
        """Resample from `source` to `target` Hz."""
        common = math.gcd(source, target)
        self._old, self._new, self._same = source // common, target // common, source == target
        self._resample = resampler(source, target)
        # Pieces and their context begin at multiples of `old`, where a sample of both rates falls on the same time.
        self._context = -(-math.ceil(CONTEXT * source) // self._old) * self._old
        self._waiting, self._before = torch.empty(channels, 0), 0  # of which `before` are the context of the next piece

    def accept(self, samples: torch.Tensor) -> torch.Tensor:
        """Take samples (C, S); return those (C, S') that are complete."""
        if self._same:
            return samples
        self._waiting = torch.cat([self._waiting, samples], 1)
        size = (self._waiting.shape[1] - self._before - self._context) // self._old * self._old
        return self._take(size) if size > 0 else samples[:, :0]

    def finish(self) -> torch.Tensor:
        """Return the last samples (C, S')."""
        return self._take(self._waiting.shape[1] - self._before)

    def _take(self, size: int) -> torch.Tensor:
        if size == 0 or self._same:
            return self._waiting[:, :0]
        first, end = self._before // self._old * self._new, self._before + size
        found = self._resample(self._waiting[:, : end + self._context])
        found = found[:, first : first + -(-size * self._new // self._old)]
        dropped = max(0, end - self._context)
        self._waiting, self._before = self._waiting[:, dropped:].clone(), end - dropped
        return found
