"""Checkpoints: written atomically, and read without executing anything from the file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from local.artifacts.archive import check_archive
from local.artifacts.new_model import check_numbers, new_model
from local.artifacts.plain_values import PlainValues, without_floats
from local.common.atomic import atomic_write
from local.common.errors import UserError, described
from local.common.signals import held_back
from local.common.text_files import is_file, read_bytes
from local.config import config_from_dict, load_config, named_files, to_dict
from local.config.limits import shown
from local.config.schema import Config
from local.data.feature_floor import saved_floor
from local.data.tokenizer import Tokenizer
from model.build import weights_by_key
from model.folding import fold
from model.transducer import Transducer

import torch

RESUME_KEYS = ("average", "optimizer", "schedule", "scaler", "progress", "rng", "config")  # dicts that resuming needs
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space left, a quota, or a limit on the size of one file


def save_file(content: dict[str, Any], path: Path) -> None:
    """Write a dict of tensors and plain values. If the program is killed or the disk is full, an older file stays.

    A signal to end waits for the file. An exception within torch.save leaves its writer behind, which writes once more when
    it is deleted: to a closed file, and torch aborts the program.

    Raises `UserError` naming the file, its size and the free space if the disk is full.
    """
    size = 0
    try:
        with held_back(second=True), atomic_write(path) as tmp, tmp.open("wb") as file:
            out = _Output(file)
            torch.save(without_floats(content), out)  # type: ignore[arg-type]  # it calls only write and flush
            size = out.size
            if out.error is not None:
                raise out.error
            file.flush()
    except OSError as e:
        if e.errno not in FULL_DISK:
            raise
        free = shutil.disk_usage(path.parent).free
        sizes = f"it takes {size / 1e6:.1f} MB and {free / 1e6:.1f} MB are free"
        hint = "Free some space and run the same command again; earlier files are unchanged"
        raise UserError(f"{path} is not written: {e.strerror}; {sizes}. {hint}") from None


class _Output:
    """A file for torch.save that keeps its first error for later: some versions of torch abort if a write raises."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.size += len(data)
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as e:
                self.error = e
        return len(data)

    def flush(self) -> None:
        """Do nothing: `save_file` flushes."""


def load_file(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a file of `save_file`: plain values and plain tensors; execute nothing in it.

    Raises `UserError` if it is missing or damaged, if it is not a checkpoint, or if it holds anything else.
    """
    if not is_file(path):
        raise UserError(f"checkpoint {shown(path)} does not exist")
    try:
        with path.open("rb") as file:
            check_archive(file)
            content = torch.load(file, map_location=device, weights_only=True)
        content = PlainValues(path.stat().st_size).read(content)
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    except Exception as e:
        raise UserError(f"{path}: damaged, or not a checkpoint: {described(e)}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: not a checkpoint of this project: it has no 'model'")
    for key, value in content["model"].items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: 'model' has a weight {shown(key)} that is not a named tensor")
    return content


def checkpoints(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """Return the checkpoints of one kind (epoch | step) with their numbers, newest first."""
    names = ((re.fullmatch(kind + r"-(\d+)\.pt", path.name), path) for path in folder.glob(f"{kind}-*.pt"))
    return sorted(((int(match[1]), path) for match, path in names if match), reverse=True)


def remove_old(folder: Path, epochs: int, steps: int) -> None:
    """Remove all checkpoints except the newest `epochs` of kind epoch and the newest `steps` of kind step."""
    for kind, keep in (("epoch", epochs), ("step", steps)):
        for _, path in checkpoints(folder, kind)[keep:]:
            path.unlink()


def newest_readable(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint of most steps from which training can resume, or None; damaged ones are reported and skipped."""
    found = [pair for kind in ("epoch", "step") if (pair := _newest_readable(folder, kind)) is not None]
    return max(found, key=lambda pair: pair[1]["progress"]["step"], default=None)


def _newest_readable(folder: Path, kind: str) -> tuple[Path, dict[str, Any]] | None:
    for _, path in checkpoints(folder, kind):
        try:
            content = load_file(path)
            if missing := [key for key in RESUME_KEYS if not isinstance(content.get(key), dict)]:
                raise UserError(f"{path}: training cannot resume from it: it has no '{missing[0]}'")
            if type(content["progress"].get("step")) is not int:
                raise UserError(f"{path}: training cannot resume from it: 'progress' is damaged")
            return path, content
        except UserError as e:
            print(f"warning: {e}; skipped", file=sys.stderr)
    return None


def provenance(cfg: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what checkpoints and config.yaml record: config, tokens and their hash, git commit, library versions."""
    return {
        "config": to_dict(cfg),
        "tokens": tokenizer.tokens,
        "tokens_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "bpe_model": torch.frombuffer(bytearray(tokenizer.model), dtype=torch.uint8),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("lhotse", "sentencepiece", "numba", "k2"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def weights_hash(state: dict[str, torch.Tensor]) -> str:
    """Return a hash of weights on the CPU, by name."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def git_commit() -> str:
    """Return what `git describe` says of this program's code; "unknown" outside a repository."""
    try:
        command, here = ["git", "describe", "--always", "--dirty", "--abbrev=12"], Path(__file__).resolve().parent
        result = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"


Loaded = tuple[Transducer, Config, Tokenizer]
RECOGNITION = ("data", "average", "decode", "tune", "score")  # sections that can change after training


def config_for_recognition(saved: dict[str, Any], overrides: Sequence[str], conf: str | Path | None, where: Path) -> Config:
    """Return a trained model's config with today's `RECOGNITION` and features.type: those of `conf` if given, else its own.

    `overrides` change these alone: the rest belongs to the model. A program can thus take all overrides of a command line.
    A line names each file that decoding will read because the checkpoint says so. Raises `UserError` as `config_from_dict`
    does; `where` is the checkpoint.
    """
    cfg = config_from_dict(saved, where=str(where))
    asked = load_config(conf, overrides) if conf else config_from_dict(saved, overrides, str(where)) if overrides else cfg
    if conf is None:
        report_files(cfg, where, {override.partition("=")[0] for override in overrides})
    features = replace(cfg.features, type=asked.features.type)  # computed now, features are those that would be stored
    return replace(cfg, features=features, **{section: getattr(asked, section) for section in RECOGNITION})


def report_files(cfg: Config, where: Path, given: Collection[str] = ()) -> None:
    """Print a line for each file that section decode of a checkpoint names, except the keys in `given`."""
    for key, name in named_files(to_dict(cfg)):
        if key.startswith("decode.") and key not in given:
            print(f"{where}: its configuration names a file: {key}={name}", file=sys.stderr)


def load_averaged(path: Path, overrides: Sequence[str] = (), conf: str | Path | None = None) -> Loaded:
    """Read a model in evaluation mode, its config and its tokens from averaged.pt or a checkpoint of training (last weights).

    The model only recognises: its scales are folded. overrides, conf: as in `config_for_recognition`.
    """
    return model_from(load_file(path), path, overrides, conf)


def model_from(content: dict[str, Any], path: Path, overrides: Sequence[str] = (), conf: str | Path | None = None) -> Loaded:
    """Return what `load_averaged` returns, from the file's content; `path` is for messages.

    The encoder has the checkpoint's feature floor, unless key decode.feature_floor is false or the checkpoint has none.
    """
    for key, kind in (("config", dict), ("bpe_model", torch.Tensor)):
        if not isinstance(content.get(key), kind):
            raise UserError(f"{path}: has no '{key}'; decoding needs a file of local/average.py")
    check_trained(content, path)
    cfg = config_for_recognition(content["config"], overrides, conf, path)
    tokenizer = tokenizer_of(content, path)
    with named(path):
        check_numbers(weights_by_key(cfg, tokenizer.vocab_size), content["model"])
        model = new_model(cfg, tokenizer.vocab_size)
    load_weights(model, content["model"], path)
    check_finite(content["model"], path)
    floor = saved_floor(content, cfg.features.num_mel_bins, path)
    model.encoder.feature_floor = floor if cfg.decode.feature_floor else None
    fold(model)
    return model.eval(), cfg, tokenizer


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the name of a file before the message of a `UserError`."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{path}: {e}") from None


def tokenizer_of(content: dict[str, Any], where: Path) -> Tokenizer:
    """Return the tokenizer of a checkpoint. Raises `UserError` naming the file `where` if it is damaged."""
    model = content["bpe_model"]
    if not isinstance(model, torch.Tensor) or model.dtype != torch.uint8:
        raise UserError(f"{where}: 'bpe_model' is not a BPE model")
    return Tokenizer(model.numpy().tobytes(), f"{where}: 'bpe_model'")


def tokenizer_in(path: Path) -> Tokenizer:
    """Return the tokens of a bpe.model, of averaged.pt or of a checkpoint of training. Raises `UserError` naming the file."""
    if not (is_file(path) and zipfile.is_zipfile(path)):
        return Tokenizer(read_bytes(path, "the training that it is of"), str(path))
    content = load_file(path)
    if "bpe_model" not in content:
        raise UserError(f"{path} does not hold its tokens: name its bpe.model instead")
    return tokenizer_of(content, path)


def check_trained(content: dict[str, Any], where: Path) -> None:
    """Raise `UserError` for a checkpoint of a training that has made no step; earlier versions wrote such files."""
    progress = content.get("progress")
    if isinstance(progress, dict) and progress.get("step") == 0:
        raise UserError(f"{where}: its weights are untrained (0 batches done); remove it and run stage 1 (train) again")


def progress_of(content: dict[str, Any], where: Path) -> dict[str, int] | None:
    """Return the progress of the training that a checkpoint is of, None if it has none. Raises `UserError` if it is damaged."""
    progress: Any = content.get("progress")
    counts = [progress.get(name) for name in ("epoch", "batch", "step")] if isinstance(progress, dict) else [None]
    if progress is not None and not all(type(count) is int and count >= 0 for count in counts):
        raise UserError(f"{where}: damaged: 'progress' must have the numbers epoch, batch, step")
    return progress


def check_finite(state: dict[str, Any], where: Path) -> None:
    """Raise `UserError` naming the first tensor with NaN or infinite values; those that float32 cannot hold are infinite."""
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise UserError(f"{where}: '{key}' contains NaN or infinite values")


def load_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], where: Path) -> None:
    """Fill `model` by name. Raises `UserError` naming the first tensor that is missing, unknown, or of wrong shape or dtype."""
    own = model.state_dict()
    if missing := next((key for key in own if key not in state), None):
        raise UserError(f"{where}: has no weights for '{missing}' of the configured model; it is from another model")
    for key, value in state.items():
        if key not in own:
            raise UserError(f"{where}: has weights '{key}', which the configured model does not have; it is from another model")
        if not isinstance(value, torch.Tensor) or value.is_floating_point() != own[key].is_floating_point():
            kind = "floating point" if own[key].is_floating_point() else "integer"
            raise UserError(f"{where}: '{key}' has the wrong dtype (expected {kind})")
        if own[key].shape != value.shape:
            raise UserError(f"{where}: '{key}' has shape {tuple(value.shape)}; the model needs {tuple(own[key].shape)}")
    model.load_state_dict(state)
