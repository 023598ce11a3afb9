"""Audio whose content can be told: each utterance is a tone of its own frequency, in any codec, rate and number of channels."""

from __future__ import annotations

import functools
import io
import struct
from typing import NamedTuple

import numpy as np
import soundfile

LOWEST, STEP = 300, 30  # Hz; utterance n has the tone LOWEST + n * STEP
DECOY = 2950  # Hz; the tone of a channel in which nobody speaks
TOLERANCE = 8.0  # Hz

CODECS = {  # name: format and subtype of libsndfile, ending of the file
    "wav": ("WAV", "PCM_16", ".wav"),
    "wav24": ("WAV", "PCM_24", ".wav"),
    "float": ("WAV", "FLOAT", ".wav"),
    "extensible": ("WAVEX", "PCM_16", ".wav"),
    "flac": ("FLAC", "PCM_16", ".flac"),
    "ogg": ("OGG", "VORBIS", ".ogg"),
    "mp3": ("MP3", "MPEG_LAYER_III", ".mp3"),
    "pipe-0": ("WAV", "PCM_16", ".wav"),  # WAV headers that a program wrote to a pipe: its size of the data is not known
    "pipe-ffffffff": ("WAV", "PCM_16", ".wav"),
    "pipe-7ffff000": ("WAV", "PCM_16", ".wav"),  # SoX
    "pipe-7fffffff": ("WAV", "PCM_16", ".wav"),
    "pipe-flac": ("FLAC", "PCM_16", ".flac"),
    "sphere": ("NIST", "PCM_16", ".sph"),
}
LOSSY = ("ogg", "mp3")
UNKNOWN_LENGTH = (*LOSSY, *(name for name in CODECS if name.startswith("pipe-")))  # a part of such a file may look whole


class Span(NamedTuple):
    """An utterance in its file: its number, its length and its channel."""

    number: int
    seconds: float
    channel: int = 0


def frequency_of(number: int) -> float:
    """Return the frequency in Hz of utterance `number`."""
    return float(LOWEST + STEP * number)


def samples_of(spans: tuple[Span, ...], rate: int, channels: int) -> np.ndarray:
    """Return samples (T, channels): the spans one after the other, each in its channel, and a decoy in the others."""
    pieces = []
    for span in spans:
        time = np.arange(round(span.seconds * rate)) / rate
        tones = [frequency_of(span.number) if channel == span.channel else DECOY for channel in range(channels)]
        pieces.append(np.stack([0.3 * np.sin(2 * np.pi * f * time) for f in tones], axis=1))
    return np.concatenate(pieces)


@functools.lru_cache(maxsize=4096)
def encoded(spans: tuple[Span, ...], rate: int, channels: int, codec: str, nan: bool = False) -> bytes:
    """Return the content of an audio file; nan: with a NaN in each span (codec `float` only)."""
    sound = samples_of(spans, rate, channels)
    if nan:
        for end in np.cumsum([round(span.seconds * rate) for span in spans]):
            sound[end - 10] = np.nan
    kind, subtype, _ = CODECS[codec]
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind, subtype=subtype)
    content = file.getvalue()
    if codec == "pipe-flac":
        return flac_of_unknown_length(content)
    return wav_from_pipe(content, int(codec.removeprefix("pipe-"), 16)) if codec.startswith("pipe-") else content


def wav_from_pipe(content: bytes, size: int) -> bytes:
    """Return a WAV whose header gives `size` bytes of data, as programs write that cannot go back to it."""
    place = content.index(b"data") + 4
    riff = struct.pack("<I", min(size + place - 4, 0xFFFFFFFF))
    return content[:4] + riff + content[8:place] + struct.pack("<I", size) + content[place + 4 :]


def flac_of_unknown_length(content: bytes) -> bytes:
    """Return a FLAC whose STREAMINFO has neither the number of samples (36 bits from byte 21) nor the MD5 sum."""
    return content[:21] + bytes([content[21] & 0xF0]) + bytes(4 + 16) + content[42:]


def heard(sound: np.ndarray, rate: int) -> tuple[float, float]:
    """Return the strongest frequency in Hz of mono samples (T,), without their ends, and its share of the energy, 0 to 1."""
    middle = sound[len(sound) // 5 : len(sound) - len(sound) // 5].astype(np.float64)
    if not len(middle) or not np.isfinite(middle).all() or not middle.any():
        return 0.0, 0.0
    size = 8 * len(middle)
    energy = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), size)) ** 2
    strongest = int(energy.argmax())
    near = round(25 * size / rate)
    share = energy[max(0, strongest - near) : strongest + near + 1].sum() / energy.sum()
    return strongest * rate / size, float(share)
