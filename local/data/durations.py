"""Lengths: frames of an utterance, frames after the encoder's subsampling, and whether its tokens fit in them."""

from __future__ import annotations

from model.encoder.subsampling import subsampled

from lhotse.cut import Cut
from lhotse.utils import compute_num_frames

FRAME_SECONDS = 0.01  # of audio per feature frame
SPEEDS = (0.9, 1.1)  # of the perturbed copies (Ko et al., "Audio augmentation for speech recognition", 2015)
SPEED = "speed"  # key in the `custom` of a copy


def num_frames(seconds: float) -> int:
    """Return the number of feature frames of `seconds` of audio, rounded as lhotse rounds it."""
    return compute_num_frames(seconds, frame_shift=FRAME_SECONDS, sampling_rate=16000)


def tokens_fit(seconds: float, tokens: int) -> bool:
    """Return whether `seconds` of audio have at least one frame after subsampling, and one for each of `tokens`."""
    if tokens < 20 * seconds - 3:  # always fits; spares the slow exact rounding for nearly all cuts
        return True
    return subsampled(num_frames(seconds)) >= max(1, tokens)


def has_frame(seconds: float) -> bool:
    """Return whether `seconds` of audio have at least one frame after subsampling."""
    return tokens_fit(seconds, 0)


def at_speed(cut: Cut, speed: float) -> Cut:
    """Return the cut at `speed` times its speed, pitch included; its id ends in `_sp<speed>`, `custom` holds the speed."""
    copy = cut.perturb_speed(speed)
    copy.custom = {**(cut.custom or {}), SPEED: speed}
    return copy


def original_id(copy_id: str, speed: float) -> str:
    """Return the id of the cut from which `at_speed` made a copy; speed 1: the id is its own."""
    return copy_id if speed == 1 else copy_id.removesuffix(f"_sp{speed}")
