"""Real sherpa-onnx on samples, in a process of its own: a metadata key that is missing ends it without an exception."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.common.atomic import scratch_folder
from local.common.errors import UserError
from local.common.processes import cores
from local.common.progress import Progress
from local.config.schema import FeaturesConfig
from local.corpus.commands import CommandFailed, run
from local.data.tokenizer import Tokenizer
from local.decoding.word_times import TOKEN_SECONDS
from local.deploy.tokens_files import client_token

import numpy as np

THREADS, LARGE = 4, 50_000_000  # threads at most, for an encoder of more bytes than that; a smaller one is faster on one
SECONDS_PER_SECOND = 60.0  # of recognition per second of audio, at most: else it hangs


@dataclass(frozen=True)
class Said:
    """What was recognised: token ids and the encoder frames at which they were emitted."""

    tokens: tuple[int, ...]
    times: tuple[int, ...]


class _Lines:
    """Takes the output of the process in pieces of any size, and shows its progress."""

    def __init__(self, progress: Progress) -> None:
        self.data, self.progress = b"", progress

    def write(self, data: bytes) -> int:
        self.data += data
        self.progress.update(data.count(b"\n"))
        return len(data)


def recogniser_options(folder: Path, features: FeaturesConfig, method: str, int8: bool, **more: Any) -> dict[str, Any]:
    """Return the arguments of sherpa-onnx's recogniser for an exported folder. more: such as max_active_paths, lm."""
    ending = ".int8.onnx" if int8 else ".onnx"
    graphs = {name: str(folder / f"{name}{ending}") for name in ("encoder", "decoder", "joiner")}
    threads = min(THREADS, cores()) if (folder / f"encoder{ending}").stat().st_size > LARGE else 1
    rate = {"sample_rate": features.sampling_rate, "feature_dim": features.num_mel_bins}
    shared = {"tokens": str(folder / "tokens.txt"), "model_type": "lstm", "num_threads": threads}
    return {**graphs, **rate, **shared, "decoding_method": method, **more}


def recognise(options: dict[str, Any], samples: Sequence[np.ndarray], tokenizer: Tokenizer, what: str) -> list[Said]:
    """Return what sherpa-onnx recognises in each array of samples, one stream at a time.

    One at a time because an int8 graph chooses its scales per batch. options: as `recogniser_options` returns them.
    what: for messages. Raises `UserError` with the last line that the client said if it fails.
    """
    ids = {client_token(token): number for number, token in enumerate(tokenizer.tokens)}
    seconds = 60.0 + SECONDS_PER_SECOND * sum(map(len, samples)) / options["sample_rate"]
    with scratch_folder(Path(options["tokens"]).with_name("job")) as scratch, Progress(len(samples), what, "utt") as bar:
        job, arrays = scratch / "job.json", scratch / "samples.npz"
        np.savez(arrays, **{str(number): array for number, array in enumerate(samples)})  # type: ignore[arg-type]
        job.write_text(json.dumps({"recogniser": options, "samples": str(arrays)}), encoding="utf-8")
        out = _Lines(bar)
        try:
            run([sys.executable, "-m", "local.deploy", str(job)], out, seconds)  # type: ignore[arg-type]
        except CommandFailed as e:
            raise UserError(f"{what}: {e}") from None
    results = [json.loads(line) for line in out.data.splitlines()]
    if len(results) != len(samples):
        raise UserError(f"{what}: gave {len(results)} results for {len(samples)} utterances")
    return [
        Said(tuple(ids[token] for token in found["tokens"]), tuple(round(time / TOKEN_SECONDS) for time in found["times"]))
        for found in results
    ]
