"""Synthesise the corpus `tiny`: phrases of a small grammar in many eSpeak NG voices, in LibriSpeech's layout.

    .venv/bin/python -m local.synthesise_tiny --out DIR [--seed 0] [--nj 2] [--spec egs/tiny/speech.yaml] [--limit N]

Writes DIR/<part>/<speaker>/<chapter>/<speaker>-<chapter>-<n>.flac, the `.trans.txt` and a `.ctm` with the times of the
words beside them (NIST's format: utterance, channel, start and duration in seconds, word), and DIR/SPEAKERS.TXT.
The same seed and spec give the same bytes with any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.locks import replaces
from local.corpus.grammar import SPEC
from local.corpus.synthesis import synthesise


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Synthesise the corpus and print what each part holds."""
    parser = make_parser(__doc__, conf=False)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of voices, phrases and noise (%(default)s)")
    parser.add_argument("--nj", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--spec", type=Path, default=SPEC, help="grammar, voices and amounts (egs/tiny/speech.yaml)")
    parser.add_argument("--limit", type=int, help="most utterances of each voice")
    args = parser.parse_args(argv)
    replaces(args.out)
    for name in ("nj", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.seed < 0:
        raise UserError(f"--seed must be at least 0, not {args.seed}")
    made = synthesise(args.out, seed=args.seed, num_jobs=args.nj, spec_path=args.spec, limit=args.limit)
    for part, stats in made.items():
        print(f"{part}: {stats}")


if __name__ == "__main__":
    main()
