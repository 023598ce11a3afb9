"""Check that audio files are complete, by decoding them: the header alone does not show truncation."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from local.common.progress import progress
from local.common.text_files import is_file

import numpy as np
import soundfile

A = TypeVar("A")
B = TypeVar("B")
BLOCK = 1 << 18  # frames decoded at a time
LOWEST_RATE = 1000  # Hz; a lower rate cannot carry speech
LOUDEST = 1e4  # times full scale, which floating-point files may exceed
PIPE_SIZES = (0, 0xFFFFFFFF)  # sizes in the header of a WAV that was written to a pipe


class AudioInfo(NamedTuple):
    """Samples per channel, rate in Hz, channels."""

    num_samples: int
    sampling_rate: int
    num_channels: int


class BadAudio(Exception):
    """A file cannot be used; the message is the reason: missing, truncated, unreadable."""


def check_audio(path: str | Path) -> AudioInfo:
    """Decode the whole file. Raises `BadAudio` if it is missing, unreadable, empty or shorter than its header says."""
    path = Path(path)
    if not is_file(path):
        raise BadAudio("missing audio file")
    try:
        with soundfile.SoundFile(str(path)) as f:
            rate, channels, stated = f.samplerate, f.channels, f.frames
            if rate < LOWEST_RATE:
                raise BadAudio(f"audio file of {rate} Hz")
            exact = f.subtype not in ("FLOAT", "DOUBLE")  # if not, samples may be NaN
            buffer = np.empty((BLOCK, channels), dtype=np.int16 if exact else np.float32)
            decoded = 0
            while (n := len(f.read(out=buffer))) > 0:
                decoded += n
                if not exact and not np.abs(buffer[:n]).max() <= LOUDEST:
                    raise BadAudio("audio file with NaN or far too loud samples")
    except soundfile.LibsndfileError as e:
        raise BadAudio(f"unreadable or truncated audio file ({e.error_string.strip().rstrip('.')})") from None
    if missing := wav_bytes_missing(path):
        raise BadAudio(f"truncated audio file ({missing} bytes of its data chunk are missing)")
    if decoded < stated:
        raise BadAudio(f"truncated audio file ({decoded} of {stated} samples)")
    if decoded == 0:
        raise BadAudio("audio file without samples")
    return AudioInfo(decoded, rate, channels)


def wav_bytes_missing(path: Path) -> int:
    """Return how many bytes a RIFF/WAVE file's data lacks, else 0. libsndfile reads such a file without an error."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        head = f.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        while len(chunk := f.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                return 0 if length in PIPE_SIZES else max(0, f.tell() + length - size)
            f.seek(length + length % 2, 1)
    return 0


def check_all(check: Callable[[A], B], items: Collection[A], num_jobs: int, what: str) -> Iterator[tuple[A, B | BadAudio]]:
    """Yield each item with its result or the `BadAudio` that `check` raised in a thread. what: the progress bar's name."""

    def caught(item: A) -> tuple[A, B | BadAudio]:
        try:
            return item, check(item)
        except BadAudio as e:
            return item, e

    with ThreadPoolExecutor(num_jobs) as pool:
        yield from progress(in_order(pool, caught, items, 8 * num_jobs), len(items), what, "files")


def in_order(pool: Executor, function: Callable[[A], B], items: Iterable[A], ahead: int) -> Iterator[B]:
    """Map over the workers of `pool`, in order, with up to `ahead` items submitted at a time."""
    iterator = iter(items)
    waiting = [pool.submit(function, item) for item in islice(iterator, ahead)]
    while waiting:
        done = waiting.pop(0)
        waiting += [pool.submit(function, item) for item in islice(iterator, 1)]
        yield done.result()
