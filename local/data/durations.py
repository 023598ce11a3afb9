"""Lengths: frames of an utterance, frames after the encoder's subsampling, and whether its tokens fit in them."""

from __future__ import annotations

from model.encoder.subsampling import subsampled

from lhotse.cut import Cut
from lhotse.utils import compute_num_frames

FRAME_SECONDS = 0.01  # of audio per feature frame
SPEEDS = (0.9, 1.1)  # of the perturbed copies (Ko et al., "Audio augmentation for speech recognition", 2015)
NUM_TOKENS, SPEED = "num_tokens", "speed"  # keys in a cut's `custom`


def num_frames(seconds: float) -> int:
    """Feature frames of `seconds` of audio (lhotse's rule: rounded, the window is not kept inside the signal)."""
    return compute_num_frames(seconds, frame_shift=FRAME_SECONDS, sampling_rate=16000)


def fits(cut: Cut, speed: float = 1.0) -> bool:
    """Whether the cut, played at `speed`, has a frame after subsampling for each of its tokens."""
    return fits_in(cut.duration / speed, (cut.custom or {}).get(NUM_TOKENS, 0))


def fits_in(seconds: float, tokens: int) -> bool:
    """Whether so much audio has a frame after subsampling for each of so many tokens."""
    return subsampled(num_frames(seconds)) >= max(1, tokens)


def at_speed(cut: Cut, speed: float) -> Cut:
    """The cut played at `speed` (pitch changes too); its id ends in `_sp<speed>`, its custom says the speed."""
    copy = cut.perturb_speed(speed)
    copy.custom = {**(cut.custom or {}), SPEED: speed}
    return copy
