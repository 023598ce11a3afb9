"""How long does a training that resumes at the end of an epoch need to find its place in the data?

    benchmarks/bench_resume.py [--utterances 281241] [--seconds 300]

Writes a manifest as lhotse does, with as many utterances as LibriSpeech has for training, stored features and three speeds.
Then it does what a process does before its first batch: it reads lines and lengths, draws the batches of the epoch and
makes the cuts of the last one. Features are not read. Writes resume.{json,md}.
"""

from __future__ import annotations

import datetime
import gzip
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.worker import ROOT, hardware, write_results
from local.common.cli import make_parser, program
from local.config import load_config
from local.data.batching import train_batches
from local.data.durations import SPEED, SPEEDS
from local.data.token_counts import counts_file, write_token_counts
from local.data.training_cuts import ShuffledCuts

import numpy as np
from lhotse import Features, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

Result = TypeVar("Result")
RATE = 16000


def lengths(utterances: int) -> list[float]:
    """Return the seconds of each utterance."""
    return np.clip(np.random.default_rng(0).normal(12.3, 3.8, utterances), 1.5, 17).tolist()


def lines(utterances: int) -> Iterator[str]:
    """Yield a cut per utterance and speed: 12 seconds on average, 2.7 words of 5 letters and 3 tokens per second."""
    for i, length in enumerate(lengths(utterances)):
        for speed in (1.0, *SPEEDS):
            samples = int(length * RATE / speed)
            name, seconds = f"1234-567890-{i:06d}" + (f"_sp{speed}" if speed != 1.0 else ""), samples / RATE
            sources = [AudioSource("file", [0], f"/corpora/LibriSpeech/train/1234/567890/{name}.flac")]
            text, frames = " ".join(["SPEAK"] * int(length * 2.7)), round(seconds * 100)
            archive = ("float16_archive", f"/data/librispeech/features/train/{i % 8}.f16", f"{i}:{frames}:80")
            cut = MonoCut(
                name,
                0.0,
                seconds,
                0,
                [SupervisionSegment(name, name, 0.0, seconds, text=text, speaker="1234")],
                Features("kaldi-fbank", frames, 80, 0.01, RATE, 0.0, seconds, *archive, channels=0),
                Recording(name, sources, RATE, samples, seconds, [0]),
                {SPEED: speed} if speed != 1.0 else None,
            )
            yield json.dumps(cut.to_dict()) + "\n"


def measure(manifest: Path, seconds: float) -> dict[str, Any]:
    """Return clock and CPU seconds by part, cuts and batches of the epoch, and the peak memory of the process in MiB."""
    num_buckets = load_config().data.num_buckets
    took: dict[str, dict[str, float]] = {}

    def timed(name: str, work: Callable[[], Result]) -> Result:
        clock, cpu = time.perf_counter(), time.process_time()
        result = work()
        took[name] = {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
        return result

    parts = [manifest], manifest.parent
    cuts = timed("lines and lengths", lambda: ShuffledCuts(*parts, 42, speed_perturb=True, precomputed=True))
    batches = timed("batches of the epoch", lambda: train_batches(cuts, num_buckets, seconds, epoch=1))
    timed("cuts of the last batch", lambda: [cuts.cut(number) for number in batches[-1]])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
    return {"cuts": len(cuts), "batches": len(batches), "seconds": took, "peak_mib": peak}


def table(result: dict[str, Any]) -> str:
    """Return Markdown with a row per part and one for their sum."""
    parts = result["seconds"]
    rows = [*parts.items(), ("together", {key: sum(p[key] for p in parts.values()) for key in ("clock", "cpu")})]
    return (
        "\n".join(
            [
                "# Finding the place in the data",
                "",
                f"{result['date']}, {result['hardware']}, Python {result['python']}: {result['cuts']} cuts, at the end of an "
                f"epoch of {result['batches']} batches; the process takes {result['peak_mib']:.0f} MiB at most.",
                "",
                "| part | seconds | of CPU time |",
                "|---|--:|--:|",
                *(f"| {name} | {took['clock']:.2f} | {took['cpu']:.2f} |" for name, took in rows),
            ]
        )
        + "\n"
    )


@program
def main(argv: list[str] | None = None) -> None:
    """Measure and write the table."""
    parser = make_parser(__doc__, conf=False)
    parser.add_argument("--utterances", type=int, default=281_241)
    parser.add_argument("--seconds", type=float, default=300.0, help="of audio per batch")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "train.jsonl.gz"
        with gzip.open(manifest, "wt", compresslevel=1, encoding="utf-8") as out:
            out.writelines(lines(args.utterances))
        counts = {f"1234-567890-{i:06d}": int(length * 3) for i, length in enumerate(lengths(args.utterances))}
        write_token_counts(counts, counts_file(Path(folder), "train"))
        where = {"date": datetime.date.today().isoformat(), "hardware": hardware(), "python": platform.python_version()}
        result = {**where, **measure(manifest, args.seconds)}
    text = table(result)
    print(text)
    write_results(args.out, "resume", result, text)


if __name__ == "__main__":
    main()
