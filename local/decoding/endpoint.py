"""Where an utterance in a stream of audio ends, told by how long the recogniser has found nothing but blanks."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from local.common.errors import UserError

ROUNDING = 1e-6  # seconds: frames that add up to a limit are enough


@dataclass(frozen=True)
class EndpointRules:
    """Three rules, each enough, after those of Kaldi's online decoding (D. Povey and others, online2/online-endpoint.h).

    Attributes, all in seconds:
      nothing_said: silence where no token has been found yet.
      silence: silence after a token.
      longest: length of an utterance, speech or not.
    """

    nothing_said: float = 2.4
    silence: float = 1.2
    longest: float = 20.0

    def __post_init__(self) -> None:
        """Raises `UserError` for a time that is none."""
        for f in fields(self):
            value = getattr(self, f.name)
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"endpoint rules: {f.name} is {value}: seconds above 0 are meant")

    def fired(self, num_frames: int, last_token: int | None, frame_seconds: float) -> str | None:
        """The name of the rule by which an utterance ends now, None where it goes on.

        num_frames: how many frames have been searched. last_token: the frame of the last token found, None for none.
        frame_seconds: of audio per such frame.
        """
        heard = frame_seconds * num_frames
        if last_token is None:
            rule, quiet, limit = "nothing_said", heard, self.nothing_said
        else:
            rule, quiet, limit = "silence", frame_seconds * (num_frames - 1 - last_token), self.silence
        if quiet > limit - ROUNDING:
            return rule
        return "longest" if heard > self.longest - ROUNDING else None
