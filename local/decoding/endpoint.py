"""Endpoint rules: an utterance in a stream of audio ends after a long enough run of blanks."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from local.common.errors import UserError

ROUNDING = 1e-6  # seconds: frames that add up to exactly a limit must fire its rule


@dataclass(frozen=True)
class EndpointRules:
    """Three rules, of which one is enough, as in Kaldi's online decoding (online2/online-endpoint.h, D. Povey and others).

    Seconds of silence before the first token, of silence after a token, and of an utterance, speech or not.
    """

    nothing_said: float = 2.4
    silence: float = 1.2
    longest: float = 20.0

    def __post_init__(self) -> None:
        """Raise `UserError` for a time that is not positive and finite."""
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise UserError(f"endpoint rule {name} is {value}: must be a positive number of seconds")

    def fired(self, num_frames: int, last_token: int | None, frame_seconds: float) -> str | None:
        """Return the name of the rule that ends an utterance of `num_frames` frames now; None if it continues.

        last_token: the frame of the last token; None before the first token.
        """
        heard = frame_seconds * num_frames
        if last_token is None:
            rule, quiet, limit = "nothing_said", heard, self.nothing_said
        else:
            rule, quiet, limit = "silence", frame_seconds * (num_frames - 1 - last_token), self.silence
        if quiet > limit - ROUNDING:
            return rule
        return "longest" if heard > self.longest - ROUNDING else None


def add_endpoint_rules(parser: argparse.ArgumentParser) -> None:
    """Add --endpoint-rules; `rules_of` reads it."""
    limits = "silence before the first word, silence after a word, longest utterance"
    defaults = " ".join(str(value) for value in vars(EndpointRules()).values())
    parser.add_argument("--endpoint-rules", type=float, nargs=3, metavar="SECONDS", help=f"{limits}: {defaults}")


def rules_of(args: argparse.Namespace) -> EndpointRules:
    """Return the rules that were given, else the defaults. Raises `UserError` for a time that is not positive and finite."""
    return EndpointRules(*(args.endpoint_rules or ()))
