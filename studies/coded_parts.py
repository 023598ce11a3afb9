"""Send a prepared part through narrow bands, codecs and rooms, to measure what each of them does to the WER.

.venv/bin/python -m studies.coded_parts --data-dir data/mini_librispeech --part dev-clean-2 [--conditions gsm,room]
    [key.sub=value ...]

For each condition it adds the part <part>-<condition> to the data folder: DATA/coded/<part>-<condition>/*.flac and
DATA/cuts/<part>-<condition>.jsonl.gz. A copy has as many samples as its utterance, the same times and the same id. Its room
depends on this id alone. `local.decode --sets ... features.type=on_the_fly` then decodes these parts, and
`local.wer` makes the table.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from local.common.atomic import atomic_write
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.locks import writes
from local.common.progress import progress
from local.config import load_config
from local.corpus.audio_reading import load_audio
from local.corpus.corpus_yaml import load_corpus
from local.corpus.manifest_lines import read_manifest, write_manifest
from local.corpus.shard_store import shard_store
from local.data.audio_augmentation import coded, reverberated, with_gain

import numpy as np
import soundfile
from lhotse import Recording
from lhotse.cut import Cut

Condition = Callable[[np.ndarray, int, random.Random], np.ndarray]  # samples (1, S), their rate in Hz, random numbers


def through(codec: str, band_rate: int, level: float, samples: np.ndarray, rate: int, rng: random.Random) -> np.ndarray:
    """Return samples (1, S) after a codec; see `coded`."""
    return coded(samples, rate, codec, band_rate, level)


def room(samples: np.ndarray, rate: int, rng: random.Random) -> np.ndarray:
    """Return samples (1, S) in a room."""
    return reverberated(samples, rate, rng)


def quiet(samples: np.ndarray, rate: int, rng: random.Random) -> np.ndarray:
    """Return samples (1, S) with a tenth of their amplitude."""
    return with_gain(samples, -20)


def call(samples: np.ndarray, rate: int, rng: random.Random) -> np.ndarray:
    """Return samples (1, S) in a room, then through a mobile telephone's codec."""
    return coded(reverberated(samples, rate, rng), rate, "gsm", 8000, 0)


CONDITIONS: dict[str, Condition] = {
    "band": partial(through, "none", 8000, 0.0),
    "mulaw": partial(through, "mulaw", 8000, 0.0),
    "gsm": partial(through, "gsm", 8000, 0.0),
    "opus": partial(through, "opus", 16000, 0.976),  # 12 kbit/s
    "opus8": partial(through, "opus", 8000, 1.0),  # 6 kbit/s
    "mp3": partial(through, "mp3", 16000, 0.9),  # 23 kbit/s
    "room": room,
    "quiet": quiet,
    "call": call,
}


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Write the copies."""
    parser = make_parser(__doc__, data_dir=True)
    parser.add_argument("--part", required=True, help="a part of the data folder, such as dev-clean-2")
    parser.add_argument("--conditions", default=",".join(CONDITIONS), help="comma-separated list (default: %(default)s)")
    args = parser.parse_intermixed_args(argv)
    names = args.conditions.split(",")
    if unknown := [name for name in names if name not in CONDITIONS]:
        raise UserError(f"--conditions: unknown condition '{unknown[0]}'; choose from {', '.join(CONDITIONS)}")
    writes(args.data_dir, wait=True)
    cfg = load_config(args.conf, args.overrides)
    store = shard_store(args.data_dir, cfg.data, load_corpus(args.data_dir / "corpus.yaml", cfg.data))
    cuts = list(read_manifest(args.data_dir / "cuts" / f"{args.part}.jsonl.gz", Cut, "prepare.sh"))  # type: ignore[type-abstract]
    found: dict[str, list[Cut]] = {name: [] for name in names}
    for number, cut in enumerate(progress(cuts, len(cuts), "copies", "utt")):
        samples = load_audio(store.with_audio_loaded(cut))
        for name, copies in found.items():
            copy = CONDITIONS[name](samples, cut.sampling_rate, random.Random(cut.id))
            path = args.data_dir.resolve() / "coded" / f"{args.part}-{name}" / f"{number:06d}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as tmp:
                soundfile.write(tmp, copy.T, cut.sampling_rate, format="FLAC")
            said = cut.supervisions[0].with_offset(-cut.supervisions[0].start)
            copies.append(Recording.from_file(path, recording_id=cut.id).to_cut().with_id(cut.id))
            said.recording_id, said.channel = cut.id, 0
            copies[-1].supervisions = [said]
    for name, copies in found.items():
        write_manifest(args.data_dir / "cuts" / f"{args.part}-{name}.jsonl.gz", copies)
    print(f"{len(cuts)} utterances, {len(names)} copies of each: {', '.join(f'{args.part}-{name}' for name in names)}")


if __name__ == "__main__":
    main()
