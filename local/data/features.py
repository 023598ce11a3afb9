"""Log-mel filter-bank features: lhotse's Kaldi-compatible extractor, 25 ms windows every 10 ms."""

from __future__ import annotations

import math

from local.config.schema import FeaturesConfig

from lhotse import Fbank, FbankConfig

PADDING = math.log(1e-10)  # value of padding frames: silence at the energy floor


def make_extractor(features: FeaturesConfig) -> Fbank:
    """Return the extractor: audio (1, samples) in [-1, 1] at `sampling_rate` Hz gives (T, num_mel_bins)."""
    return Fbank(FbankConfig(sampling_rate=features.sampling_rate, num_filters=features.num_mel_bins))
