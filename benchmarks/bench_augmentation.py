"""Time of one thread for the features of training batches, by augmentation, on a prepared corpus.

    benchmarks/bench_augmentation.py --data-dir data/mini_librispeech [--conf FILE] [--utterances 100] [key.sub=value ...]

The first utterances of an epoch are read, decoded, augmented and made into masked features, with no loader process. The cases
take turns, --rounds times after one that does not count; the table has medians. Times are seconds of the processor. "x real
time" is seconds of audio per second. Writes augmentation.{json,md} to --out.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.worker import ROOT, hardware, write_results
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.locks import reads
from local.config import load_config
from local.data.audio_augmentation import CHANNELS, coded
from local.data.datamodule import AsrDataModule
from local.data.tokenizer import Tokenizer, lang_dir

import torch

PLAIN = [  # what all cases have in common, whatever --conf says
    "augment.spec_augment=true",
    "augment.spec_augment_after=0",
    "augment.musan=null",
    *(f"augment.{name}_prob=0" for name in ("gain", "reverb", "codec", "silence")),
]
CASES = {
    "features, SpecAugment": [],
    "gain of every utterance": ["augment.gain_prob=1"],
    "a room for every utterance": ["augment.reverb_prob=1"],
    "a codec for every utterance": ["augment.codec_prob=1"],
}


def measure(conf: Path | None, data_dir: Path, overrides: list[str], utterances: int) -> dict[str, float]:
    """Return utterances, seconds of audio and seconds of the processor of an epoch's first batches, after one more."""
    cfg = load_config(conf, ["features.type=on_the_fly", *PLAIN, *overrides, "data.num_workers=0", "train.max_duration=60"])
    tokenizer = Tokenizer.from_file(lang_dir(data_dir, cfg.lang) / "bpe.model")
    batches = iter(AsrDataModule(cfg, data_dir, tokenizer).train_dataloader(1))
    next(batches)  # makes tables
    count, audio, start = 0, 0.0, time.process_time()
    for batch in batches:
        count += len(batch)
        audio += 0.01 * int(batch.input_lens.sum())
        if count >= utterances:
            break
    return {"utterances": count, "audio": audio, "seconds": time.process_time() - start}


def measure_in_turn(conf: Path | None, data_dir: Path, overrides: list[str], utterances: int, rounds: int) -> dict[str, Any]:
    """Return what `measure` does for each case: the round with the median time, of `rounds` in which the cases take turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for _ in range(1 + rounds):
        for name, keys in CASES.items():
            found[name].append(measure(conf, data_dir, [*overrides, *keys], utterances))
    return {name: sorted(all_[1:], key=lambda row: row["seconds"])[(rounds - 1) // 2] for name, all_ in found.items()}


def measure_channels(seconds: float = 10.0, rate: int = 16000) -> dict[str, float]:
    """Return by codec and rate how many seconds of noise in syllables a second of the processor sends through it."""
    rng = torch.Generator().manual_seed(1)
    loudness = torch.rand(1, int(seconds * 4), generator=rng).repeat_interleave(rate // 4, 1)
    x = 0.1 * torch.randn(1, int(seconds * rate), generator=rng) * loudness
    found = {}
    for channel in CHANNELS:
        for band in channel.rates:
            start, level = time.process_time(), sum(channel.levels) / 2
            for _ in range(3):
                coded(x.numpy(), rate, channel.codec, band, level)
            found[f"{channel.codec} {band} Hz"] = 3 * seconds / (time.process_time() - start)
    return found


@program
def main() -> None:
    """Measure every case and write the table."""
    parser = make_parser(__doc__, data_dir=True)
    parser.add_argument("--utterances", type=int, default=100, help="of each case")
    parser.add_argument("--rounds", type=int, default=5, help="of which the table has the median")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_intermixed_args()
    if args.rounds < 1:
        raise UserError("--rounds must be at least 1")
    reads(args.data_dir)
    torch.set_num_threads(1)
    rows = measure_in_turn(args.conf, args.data_dir, args.overrides, args.utterances, args.rounds)
    channels = measure_channels()
    lines = [
        "# Cost of augmentation",
        "",
        f"One thread, {hardware()}, {args.utterances} utterances of {args.data_dir.name}, median of {args.rounds} rounds.",
        "",
        "| case | utterances / s | x real time |",
        "|---|--:|--:|",
    ]
    lines += [f"| {n} | {r['utterances'] / r['seconds']:.1f} | {r['audio'] / r['seconds']:.0f} |" for n, r in rows.items()]
    lines += ["", "| codec | x real time |", "|---|--:|", *(f"| {name} | {speed:.0f} |" for name, speed in channels.items())]
    write_results(args.out, "augmentation", {"cases": rows, "channels": channels}, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
