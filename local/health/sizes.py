"""What a training needs of memory and disk: estimates, for the doctor's checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import checkpoints
from local.common.text_files import is_file
from local.config.presets import feature_gigabytes
from local.config.schema import AUTO, Config
from local.data.summary import Summary
from local.data.tokenizer import Tokenizer, lang_dir
from local.health.finding import Run
from model.build import weights_by_key

GB = 1e9
WEIGHT_BYTES = 24  # per parameter while training: weight and gradient of 4 bytes, two states of Eve, the average in float64
CHECKPOINT_BYTES = 20  # the same without the gradient
FRONT_BYTES = 2.2e6  # of activations of the front end per second of audio
LAYER_BYTES = 400  # of activations per second, layer and width: 25 frames, 4 bytes, 4 tensors; see `pass_bytes`
BASE_SECONDS = 300.0  # of a pass, if train.max_duration is auto or infinite
# GB of archives and unpacked audio, and hours, of the parts that stage 0 downloads (https://www.openslr.org/12 and /31).
PARTS = {
    "train-clean-100": (13.0, 100.6),
    "train-clean-360": (47.0, 363.6),
    "train-other-500": (61.0, 496.9),
    "train-clean-5": (0.7, 5.4),
    **dict.fromkeys(("dev-clean", "dev-other", "test-clean", "test-other"), (0.7, 5.3)),
    "dev-clean-2": (0.3, 2.0),
}


def hours_of(cfg: Config, data_dir: Path, train_parts: Sequence[str]) -> float:
    """Return the hours of the training speech: from summary.json if it is prepared, else of `PARTS`; 0 if nobody knows."""
    content, tokens = Summary(data_dir).content, cfg.lang.tokens
    stages = [[recorded(content, *stage, part, "hours") for part in train_parts] for stage in (("tokens", tokens), ("cuts",))]
    return next((sum(stage) for stage in stages if sum(stage) > 0), sum(PARTS.get(part, (0.0, 0.0))[1] for part in train_parts))


def recorded(content: Any, *keys: str) -> float:
    """Return a number of summary.json; 0 if it has none there."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return float(content) if isinstance(content, int | float) else 0.0


def vocabulary(run: Run) -> int:
    """Return the number of tokens: of the data if they are prepared, else lang.vocab_size (a guess if lang.type=char)."""
    path = lang_dir(run.data_dir, run.config.lang) / "bpe.model"
    return Tokenizer.from_file(path).vocab_size if is_file(path) else run.config.lang.vocab_size


def parameters(cfg: Config, tokens: int) -> int:
    """Return the number of the model's parameters, without the few that are not in matrices."""
    return sum(weights_by_key(cfg, tokens).values())


def pass_seconds(cfg: Config) -> float:
    """Return the seconds of audio of a forward pass of one process."""
    return BASE_SECONDS if cfg.train.max_duration in (AUTO, math.inf) else float(cfg.train.max_duration)


def pass_bytes(cfg: Config, seconds: float) -> float:
    """Return the bytes that the activations of a pass over `seconds` of audio take in float32.

    Fitted to the published model on a GPU: 10.0 GiB for 480 s, 38.7 GiB for 1992 s (RESULTS.md).
    """
    enc = cfg.model.encoder
    widths = enc.d_model + enc.rnn_hidden_size + enc.dim_feedforward
    share = 1.0 if cfg.train.precision == "float32" else 0.56
    return share * seconds * (FRONT_BYTES + LAYER_BYTES * enc.num_layers * widths)


def training_bytes(run: Run, processes: int) -> tuple[float, float]:
    """Return the bytes of a training's weights, and those of one pass of all its processes on this machine."""
    cfg = run.config
    weights = processes * WEIGHT_BYTES * parameters(cfg, vocabulary(run))
    return float(weights), processes * pass_bytes(cfg, pass_seconds(cfg))


def batch_bytes(cfg: Config) -> float:
    """Return the bytes of the features of the largest batch that a data process hands over."""
    decoded = cfg.decode.max_duration if math.isfinite(cfg.decode.max_duration) else BASE_SECONDS
    return max(pass_seconds(cfg), decoded) * 100 * cfg.features.num_mel_bins * 4


def audio_gigabytes(run: Run) -> float:
    """Return the GB that stage 0 will still download and unpack into download/."""
    if run.corpus_dir is not None or (run.data_dir / "manifests").is_dir():
        return 0.0
    there = {path.name for path in (run.root / "download").glob("*/*") if path.is_dir()}
    return sum(PARTS[part][0] for part in run.parts if part in PARTS and part not in there)


def feature_storage(run: Run) -> float:
    """Return the GB of stored features that preparation will still write."""
    stored = run.config.features.type == "precomputed" and not (run.data_dir / "features").is_dir()
    return feature_gigabytes(run.hours, run.config) if stored else 0.0


def experiment_gigabytes(run: Run) -> float:
    """Return the GB that training will still write: the checkpoints that are kept at the same time, and averages."""
    cfg, folder = run.config, run.exp_dir / "checkpoints"
    one = CHECKPOINT_BYTES * parameters(cfg, vocabulary(run)) / GB
    keep, train = max(cfg.train.keep_last, cfg.average.num + 1), cfg.train
    epochs = min(keep, train.num_epochs) if train.keep_last else train.num_epochs
    steps = 0 if not train.save_every else cfg.average.num + 1 if cfg.average.unit == "step" else 2
    there = sum(len(checkpoints(folder, kind)) for kind in ("epoch", "step"))
    return one * max(epochs + steps - there, 1)
