"""Augmentation of audio: rooms, gain, narrow bands and codecs.

The transforms are lhotse's. The times of words stay true: libsndfile removes each codec's delay, and lhotse shifts by the
strongest tap of an impulse response. That tap comes up to 18 ms after the direct path (in 95 of 100 rooms up to 10 ms).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from local.common.errors import UserError, reason
from local.config.schema import AugmentConfig
from local.corpus.resampling import resampler
from local.data.batching import seeded

import numpy as np
import soundfile
import torch
from lhotse.augmentation import Compress, ReverbWithImpulseResponse, Volume
from lhotse.augmentation.torchaudio import MuLawCodec


@dataclass(frozen=True)
class Channel:
    """A codec with the bands and the levels that are drawn for it.

    codec: lhotse's name, 'mulaw', or 'none' for a narrow band alone. rates: sampling rates in Hz, twice the band.
    levels: lowest and highest compression, from 0 to 1 as in lhotse.
    """

    codec: str
    rates: tuple[int, ...]
    levels: tuple[float, float] = (0.0, 0.0)


CHANNELS = (
    Channel("none", (8000, 12000)),
    Channel("mulaw", (8000,)),  # telephone
    Channel("gsm", (8000,)),  # mobile telephone, 13 kbit/s
    Channel("opus", (8000, 16000), (0.9, 1.0)),  # 31 to 6 kbit/s
    Channel("mp3", (8000, 16000), (0.5, 0.95)),  # 29 to 16 kbit/s; lame refuses 1.0
)


def check_codecs() -> None:
    """Raise `UserError` if the installed libsndfile lacks a codec of `CHANNELS`."""
    for channel in CHANNELS:
        if channel.codec not in ("none", "mulaw"):
            wanted = Compress(channel.codec, 0.5).prepare_sf_arguments()
            if not soundfile.check_format(wanted["format"], wanted["subtype"]):
                version = soundfile.__libsndfile_version__
                raise UserError(
                    f"augment.codec_prob: libsndfile {version} cannot write {channel.codec}; "
                    "install the wheel of soundfile, which brings a libsndfile that can, or set augment.codec_prob=0"
                )


def changes_audio(augment: AugmentConfig) -> bool:
    """Return whether any key asks for what this module does."""
    return max(augment.reverb_prob, augment.gain_prob, augment.codec_prob) > 0


def augmented_audio(samples: np.ndarray, rate: int, augment: AugmentConfig, seed: int) -> np.ndarray:
    """Return samples (1, S) in a room, then with gain, then through a codec, each with its probability; float32 in [-1, 1].

    Each draws from a generator of its own, so that it is the same without the others. Raises `ValueError` naming a codec
    that fails.
    """
    if (rng := random.Random(f"{seed} reverb")).random() < augment.reverb_prob:
        samples = reverberated(samples, rate, rng)
    if (rng := random.Random(f"{seed} gain")).random() < augment.gain_prob:
        samples = with_gain(samples, rng.uniform(*augment.gain_db))
    if (rng := random.Random(f"{seed} codec")).random() < augment.codec_prob:
        channel = rng.choice(CHANNELS)
        samples = coded(samples, rate, channel.codec, rng.choice(channel.rates), rng.uniform(*channel.levels))
    return samples


def reverberated(samples: np.ndarray, rate: int, rng: random.Random) -> np.ndarray:
    """Return samples (1, S) in a random room at the same power (FRA-RIR, arXiv 2208.04101; 60 dB decay within 0.1 to 0.8 s)."""
    seeds = {"room_seed": rng.getrandbits(32), "source_seed": rng.getrandbits(32)}
    with seeded(rng.getrandbits(32)):  # the generator draws from torch too
        return ReverbWithImpulseResponse(rir_generator={"sr": rate, **seeds})(samples, rate)


def with_gain(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Return samples louder by `decibels`, clipped to [-1, 1] as an analogue-to-digital converter does."""
    return np.clip(Volume(10 ** (decibels / 20))(samples, 0), -1, 1)


def coded(samples: np.ndarray, rate: int, codec: str, band_rate: int, level: float) -> np.ndarray:
    """Return samples (1, S) resampled to `band_rate` Hz, coded, decoded and resampled to `rate` Hz again; S stays.

    Raises `ValueError` naming the codec, its rate and its level if it fails.
    """
    there, back = resampler(rate, band_rate), resampler(band_rate, rate)
    narrow = there(torch.from_numpy(np.clip(samples, -1, 1)))
    try:
        if codec == "mulaw":
            narrow = MuLawCodec()(narrow.clamp(-1, 1))
        elif codec != "none":
            narrow = torch.from_numpy(Compress(codec, level)(narrow.numpy(), band_rate))
    except Exception as e:
        raise ValueError(f"codec {codec} at {band_rate} Hz, level {level:.2f}: {reason(e)}") from e
    found = back(narrow).numpy()[:, : samples.shape[1]]
    lacking = samples.shape[1] - found.shape[1]
    if lacking > math.ceil(0.001 * rate):
        raise ValueError(f"codec {codec} at {band_rate} Hz, level {level:.2f}: {lacking} samples are lost")
    return np.clip(np.pad(found, ((0, 0), (0, lacking))), -1, 1)
