"""The audio of utterances: samples, elements that play them, and the ratio of speech to noise."""

from __future__ import annotations

import base64
import io
import math
import os
import urllib.parse
from pathlib import Path

from local.common.errors import described
from local.common.html_page import escape
from local.corpus.audio_reading import BadAudio, read_audio
from local.scoring.speech import MEAN, Speech

import numpy as np
import soundfile
import soxr

RATE = 16000  # Hz, of what is embedded
QUALITY = 0.9  # libsndfile's compression level: about 4 kB per second of speech
BYTES_PER_SECOND = 6000  # more than any second of MP3 has at this quality, as text
LONGEST = 60.0  # seconds; longer utterances are linked
MOST_PLAYERS = 30  # that read their audio at once and show its length; browsers allow 75 in a page, phones 40
FRAME = 0.025  # seconds, of which the level is measured
NOISE, SPEECH = 10, 95  # percentiles of the frames' levels
LEAST_POWER = 1e-10  # of digital silence: -100 dB of full scale
UNREADABLE = (BadAudio, soundfile.SoundFileError, OSError, ValueError, IndexError)  # what `samples_of` raises


def samples_of(speech: Speech, rate: int) -> np.ndarray:
    """Return an utterance's samples (S,), float32 in [-1, 1], at `rate` Hz. Raises one of `UNREADABLE`."""
    if speech.audio is None:
        raise BadAudio("no audio file of its own")
    samples, found = read_audio(str(speech.audio), speech.start, speech.duration)
    mono = samples.mean(axis=0) if speech.channel == MEAN else samples[speech.channel]
    return mono if found == rate else soxr.resample(mono, found, rate)


def speech_to_noise(samples: np.ndarray, rate: int) -> float | None:
    """Return the level of the loud frames of `samples` (S,) above that of the quiet ones in dB; None if they are too few.

    It needs no reference: the quiet tenth of the frames is taken for noise, the loudest twentieth for speech. An utterance
    without pauses looks noisier than it is.
    """
    size = round(FRAME * rate)
    count = len(samples) // size
    if count < NOISE:
        return None
    power = np.square(samples[: count * size].reshape(count, size)).mean(axis=1, dtype=np.float64)
    noise, speech = np.percentile(np.maximum(power, LEAST_POWER), (NOISE, SPEECH))
    return 10.0 * math.log10(speech / noise)


def address(path: Path, folder: Path) -> str:
    """Return the address of a file for a page in `folder`: relative, so that both can move together."""
    relative = os.path.relpath(path.absolute(), folder.absolute())
    return "./" + urllib.parse.quote(os.fsencode(relative))  # "./": a name may begin like the scheme of another address


class AudioBudget:
    """Make elements that play utterances: the first are embedded until `limit_bytes` are used, others are linked."""

    def __init__(self, limit_bytes: int, folder: Path) -> None:
        """Embed at most `limit_bytes` of text in all. folder: of the page, for links."""
        self.left, self.folder, self.made = limit_bytes, folder, 0

    def element(self, speech: Speech) -> str:
        """Return the HTML of an <audio> element, or of a line that says why there is none."""
        if speech.audio is None:
            return '<p class="note">The audio is in no file of its own.</p>'
        if speech.duration <= LONGEST and self.left > BYTES_PER_SECOND * speech.duration:
            try:
                source = embedded(samples_of(speech, RATE))
            except UNREADABLE as e:
                return f'<p class="note">No audio: {escape(described(e))}</p>'
            self.left, self.made = self.left - len(source), self.made + 1
            load = "metadata" if self.made <= MOST_PLAYERS else "none"
            return f'<audio controls preload="{load}" aria-label="Audio of {escape(speech.id)}" src="{source}"></audio>'
        self.left = min(self.left, 0) if speech.duration <= LONGEST else self.left  # no later, smaller one
        end = speech.start + speech.duration
        link = f"{address(speech.audio, self.folder)}#t={speech.start:.3f},{end:.3f}"
        return f'<p><a href="{link}">Audio file</a>, from {speech.start:.2f} to {end:.2f} s</p>'


def embedded(samples: np.ndarray) -> str:
    """Return samples (S,) at `RATE` Hz as the address of an MP3 that is in the address itself."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=QUALITY)
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
