"""Digital silence: samples that are exactly zero, as of a muted microphone or of a client that pads its audio.

A model that was trained on recordings alone has never met its features, which are far below those of any room.
"""

from __future__ import annotations

import math
import random

import torch

SILENCE = math.log(torch.finfo(torch.float32).eps)  # the log-mel energy of zeros, in lhotse as in Kaldi
FRAMES = (10, 200)  # fewest and most frames of silence that are put in
PLACES = ("before", "after", "within")


def with_silence(features: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Return features (T, F) with a random number of silent frames before, after or within them.

    Within: after the quietest frame, so that no word is cut.
    """
    silence = features.new_full((rng.randint(*FRAMES), features.shape[1]), SILENCE)
    place = rng.choice(PLACES)
    at = {"before": 0, "after": len(features)}.get(place)
    if at is None:
        at = int(features.mean(1).argmin()) + 1 if len(features) else 0
    return torch.cat([features[:at], silence, features[at:]])
