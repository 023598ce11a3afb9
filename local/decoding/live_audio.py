"""Audio that arrives: raw samples on standard input, a microphone."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import BinaryIO

from local.common.errors import UserError, reason

import numpy as np
import torch

PIECE_SECONDS = 0.02  # audio arrives in pieces of this length, as from a sound card
HEADERS = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM")  # of files, which are not raw samples
FULL_SCALE = 32768.0  # of 16 bits


def from_pcm(source: BinaryIO, sampling_rate: int) -> Iterator[torch.Tensor]:
    """Yield samples (S,) in [-1, 1] of raw 16-bit little-endian PCM with one channel, as soon as they arrive.

    A sample may arrive in two pieces; half a sample at the end is left out. Raises `UserError` for a file with a header.
    """
    size, rest, begun = 2 * max(1, int(PIECE_SECONDS * sampling_rate)), b"", False
    while piece := source.read1(size):  # type: ignore[attr-defined]
        rest += piece
        if not begun and len(rest) < max(map(len, HEADERS)):
            continue
        if not begun and rest.startswith(HEADERS):
            hint = f"convert it: ffmpeg -i FILE -f s16le -ar {sampling_rate} -ac 1 - | ..., or name the file instead of '-'"
            raise UserError(f"standard input: a file with a header, not raw 16-bit samples; {hint}")
        begun, whole = True, len(rest) // 2 * 2
        yield as_samples(rest[:whole])
        rest = rest[whole:]
    if not begun and len(rest) > 1:
        yield as_samples(rest[: len(rest) // 2 * 2])


def as_samples(data: bytes) -> torch.Tensor:
    """Return the samples (S,) in [-1, 1] of 16-bit little-endian PCM."""
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / FULL_SCALE)


def from_microphone(sampling_rate: int) -> Iterator[torch.Tensor]:
    """Yield samples (S,) in [-1, 1] of the default microphone, without an end.

    Raises `UserError` if the package sounddevice, its library or a microphone is missing.
    """
    try:
        import sounddevice
    except ImportError:
        raise UserError("--microphone needs a package: .venv/bin/python -m pip install sounddevice") from None
    except OSError as e:  # the package is there, and its library is not
        hint = "install it (Debian, Ubuntu: apt install libportaudio2), or pipe from arecord with '-'"
        raise UserError(f"--microphone: {reason(e)}; {hint}") from None
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    try:
        with sounddevice.RawInputStream(
            samplerate=sampling_rate,
            blocksize=max(1, int(PIECE_SECONDS * sampling_rate)),
            channels=1,
            dtype="int16",
            callback=lambda data, *_: arrived.put(bytes(data)),
        ):
            while True:
                yield as_samples(arrived.get())
    except sounddevice.PortAudioError as e:
        raise UserError(f"--microphone: {reason(e)}; is a microphone connected that records {sampling_rate} Hz?") from None
