"""Is an audio file whole? Decodes it to the end, since a header alone tells nothing about a truncated file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from local.common.text_files import is_file

import numpy as np
import soundfile

A = TypeVar("A")
B = TypeVar("B")
BLOCK = 1 << 18  # frames decoded at a time
LEAST_RATE = 1000  # Hz; below it there is no speech
LOUDEST = 1e4  # times full scale, which floating-point files may exceed
STREAMED = (0, 0xFFFFFFFF)  # sizes a WAV written to a pipe carries


class AudioInfo(NamedTuple):
    """Frames (samples per channel), rate in Hz, channels."""

    num_samples: int
    sampling_rate: int
    num_channels: int


class BadAudio(Exception):
    """The reason why a file cannot be used: `missing`, `truncated ...`, `unreadable ...`."""


def check_audio(path: str | Path) -> AudioInfo:
    """Decode the whole file. Raises `BadAudio` when it is missing, unreadable, empty or shorter than it says."""
    path = Path(path)
    if not is_file(path):
        raise BadAudio("missing audio file")
    try:
        with soundfile.SoundFile(str(path)) as f:
            rate, channels, stated = f.samplerate, f.channels, f.frames
            if rate < LEAST_RATE:
                raise BadAudio(f"audio file of {rate} Hz")
            exact = f.subtype not in ("FLOAT", "DOUBLE")  # else a sample may be no number
            buffer = np.empty((BLOCK, channels), dtype=np.int16 if exact else np.float32)
            decoded = 0
            while (n := len(f.read(out=buffer))) > 0:
                decoded += n
                if not exact and not np.abs(buffer[:n]).max() <= LOUDEST:
                    raise BadAudio("audio file with samples that are no numbers, or far too loud")
    except soundfile.LibsndfileError as e:
        raise BadAudio(f"unreadable or truncated audio file ({e.error_string.strip().rstrip('.')})") from None
    missing = wav_bytes_missing(path)
    if missing:
        raise BadAudio(f"truncated audio file ({missing} bytes of its data chunk are missing)")
    if decoded < stated:
        raise BadAudio(f"truncated audio file ({decoded} of {stated} samples)")
    if decoded == 0:
        raise BadAudio("audio file without samples")
    return AudioInfo(decoded, rate, channels)


def wav_bytes_missing(path: Path) -> int:
    """How many bytes a RIFF/WAVE file's data chunk states beyond the file's end; 0 for whole and for other files.

    libsndfile silently shortens such a file to what is there.
    """
    size = path.stat().st_size
    with open(path, "rb") as f:
        head = f.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        while len(chunk := f.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                return 0 if length in STREAMED else max(0, f.tell() + length - size)
            f.seek(length + length % 2, 1)
    return 0


def parallel(function: Callable[[A], B], items: Iterable[A], num_jobs: int) -> Iterator[B]:
    """`map` over threads (decoding releases the interpreter's lock), in order, a bounded number of items ahead."""
    with ThreadPoolExecutor(num_jobs) as pool:
        yield from in_order(pool, function, items, 8 * num_jobs)


def in_order(pool: Executor, function: Callable[[A], B], items: Iterable[A], ahead: int) -> Iterator[B]:
    """`map` over the workers of `pool`, in order, up to `ahead` items in work or waiting."""
    iterator = iter(items)
    waiting = [pool.submit(function, item) for item in islice(iterator, ahead)]
    while waiting:
        done = waiting.pop(0)
        waiting += [pool.submit(function, item) for item in islice(iterator, 1)]
        yield done.result()
