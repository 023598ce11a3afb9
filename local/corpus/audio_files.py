"""Check that audio is complete, by decoding it: the header alone does not show truncation."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from local.common.children import ChildEnded, process_pool
from local.common.errors import UserError, described
from local.common.progress import progress
from local.corpus.audio_reading import BadAudio, Source, check_size, data_chunk, first_bytes, open_audio, read_block

import numpy as np
import soundfile
import torch

A = TypeVar("A")
B = TypeVar("B")
UNSTATED = 0.1  # seconds that may follow after those of the header
LOUDEST = 1e4  # times full scale, which floating-point files may exceed
SILENT = -70.0  # dB of full scale; speech below is hardly more than the noise of 16 bits
FLOOR = -200.0  # dB of full scale, the level of zeros
# Sizes of the data, or a few bytes more, in the header of a WAV whose writer could not go back to it: SoX, ffmpeg, arecord ...
PIPE_SIZES = (0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LONGEST_HEADER = 256  # bytes by which writers reduce these sizes
STATED = re.compile(r"^\s*(?:data|Data Size|SSND|BODY|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


class AudioInfo(NamedTuple):
    """Samples per channel, rate in Hz, channels, and the level of each channel in dB of full scale."""

    num_samples: int
    sampling_rate: int
    num_channels: int
    levels: tuple[float, ...]


def check_audio(source: Source) -> AudioInfo:
    """Decode the whole of a file, or of one in memory, as training does.

    Raises `BadAudio` if it is missing, unreadable, empty or shorter than its header says, whatever a library raises.
    """
    try:
        with open_audio(source) as f:
            decoded, energy = 0, np.zeros(f.channels)
            while len(block := read_block(f)) > 0:
                decoded += len(block)
                check_size(f.samplerate, f.channels, decoded)  # the header may not state it
                if not np.abs(block).max() <= LOUDEST:
                    raise BadAudio("audio file with NaN or far too loud samples")
                energy += np.square(block, dtype=np.float64).sum(axis=0)
            if missing := what_is_missing(source, f, decoded):
                raise BadAudio("truncated audio file", missing)
            if decoded == 0:
                raise BadAudio("audio file without samples")
            return AudioInfo(decoded, f.samplerate, f.channels, tuple(level(e / decoded) for e in energy))
    except BadAudio:
        raise
    except soundfile.LibsndfileError as e:
        raise BadAudio("unreadable or truncated audio file", e.error_string.strip().rstrip(".")) from None
    except Exception as e:
        raise BadAudio("unreadable audio file", described(e)) from None


def level(power: float) -> float:
    """Return the mean square of samples in dB of full scale, at least `FLOOR`."""
    return max(FLOOR, round(10 * math.log10(power), 2)) if power > 0 else FLOOR


def what_is_missing(source: Source, f: soundfile.SoundFile, decoded: int) -> str:
    """Return how the audio differs from the length that its header states; "" if it does not, or none is stated.

    libsndfile reads most truncated files without an error.
    """
    head = first_bytes(source)
    if f.seekable() and (decoded < f.frames or decoded - f.frames > UNSTATED * f.samplerate):  # training reads `frames`
        return f"{decoded} of {f.frames} samples"
    if head[:4] == b"RIFF":
        missing = wav_bytes_missing(source, head)
        return f"{missing} bytes of its data chunk are missing" if missing else ""
    if head.startswith(b"NIST_1A"):
        stated = re.search(rb"sample_count -i (\d+)", head)
        return f"{decoded} of {int(stated[1])} samples" if stated and decoded < int(stated[1]) else ""
    log = f.extra_info
    if head[:4] == b"OggS":
        return "the last page is incomplete" if "Junk after the last page" in log or "ended unexpectedly" in log else ""
    for size, there in re.findall(STATED, log):
        if int(there) < int(size) and not is_pipe_size(int(size)):
            return f"{there} of {size} bytes"
    return ""


def wav_bytes_missing(source: Source, head: bytes) -> int:
    """Return how many bytes the data of a WAV lacks, 0 if its size is unknown."""
    if isinstance(source, io.BytesIO):
        size, place = len(source.getbuffer()), data_chunk(source.getbuffer()[: 1 << 20].tobytes())
    else:
        size, place = Path(source).stat().st_size, data_chunk(head)
        if place is None:  # long chunks come before
            with open(source, "rb") as f:
                place = data_chunk(f.read(1 << 20))
    if place is None or place[1] == 0 or is_pipe_size(place[1]):
        return 0
    return max(0, sum(place) - size)


def is_pipe_size(size: int) -> bool:
    """Return whether a header's size means that the length is unknown."""
    return size >= 1 << 62 or any(0 <= most - size <= LONGEST_HEADER for most in PIPE_SIZES)


def check_all(check: Callable[[A], B], items: Collection[A], num_jobs: int, what: str) -> Iterator[tuple[A, B | BadAudio]]:
    """Yield each item with the result of `check` in a process, or the `BadAudio` it raised. what: the progress bar's name.

    Processes, as a library that ends one, or writes to standard error, leaves the program alone. `check` can be pickled.
    Raises `UserError` naming an item whose process ended.
    """
    waiting = iter(items)
    item: A | None = None
    try:
        with process_pool(num_jobs, what, threads=torch.set_num_threads) as pool:  # OpenMP's threads do not survive a fork
            for result in progress(in_order(pool, partial(caught, check), items, 8 * num_jobs), len(items), what, "files"):
                item = next(waiting)
                yield item, result
    except ChildEnded as e:
        raise UserError(f"{e}; it was at or after {str(next(waiting, item))[:300]}") from None


def caught(check: Callable[[A], B], item: A) -> B | BadAudio:
    """Return the result of the check, or the `BadAudio` that it raises."""
    try:
        return check(item)
    except BadAudio as e:
        return e


def in_order(pool: Executor, function: Callable[[A], B], items: Iterable[A], ahead: int) -> Iterator[B]:
    """Map over the workers of `pool`, in order, with up to `ahead` items submitted at a time."""
    iterator = iter(items)
    waiting = [pool.submit(function, item) for item in islice(iterator, ahead)]
    while waiting:
        done = waiting.pop(0)
        waiting += [pool.submit(function, item) for item in islice(iterator, 1)]
        yield done.result()
