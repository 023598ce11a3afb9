"""Synthesise the corpus `tiny`: phrases of a small grammar in many eSpeak NG voices, in LibriSpeech's layout.

    python local/synthesise_tiny.py --out DIR [--seed 0] [--nproc 2] [--spec egs/tiny/speech.yaml] [--limit N]

writes DIR/<part>/<speaker>/<chapter>/<speaker>-<chapter>-<n>.flac, beside them the `.trans.txt` and a `.ctm` with the times of
the words (NIST's format: utterance, channel, start and duration in seconds, word), and DIR/SPEAKERS.TXT.
The same seed and spec give the same bytes, however many processes work. From Python:

    synthesise(out: Path, *, seed=0, nproc=1, spec_path=SPEC, limit=None) -> dict[str, PartStats]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from local.common.cli import program
from local.common.errors import UserError
from local.corpus.grammar import SPEC
from local.corpus.synthesis import synthesise


@program
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Synthesise the corpus `tiny` with eSpeak NG.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nproc", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--spec", type=Path, default=SPEC, help="grammar, voices and amounts")
    parser.add_argument("--limit", type=int, help="at most so many utterances of each voice")
    args = parser.parse_args(argv)
    for name in ("nproc", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.seed < 0:
        raise UserError(f"--seed must not be negative, not {args.seed}")
    stats = synthesise(args.out, seed=args.seed, nproc=args.nproc, spec_path=args.spec, limit=args.limit)
    for part, s in stats.items():
        print(f"{part}: {s.minutes:.1f} minutes, {s.utterances} utterances, {s.voices} voices, {len(s.words)} words")


if __name__ == "__main__":
    main()
