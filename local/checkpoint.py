"""Checkpoints: written whole or not at all, read without executing anything from the file."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from local.atomic import atomic_write
from local.config import config_from_dict, config_hash, load_config, to_dict
from local.errors import UserError
from local.schema import Config
from local.tokens import Tokenizer
from model.build import build_model
from model.transducer import Transducer

NAME = re.compile(r"(epoch|step)-(\d+)\.pt")


def save_file(content: dict[str, Any], path: Path) -> None:
    """Write a dict of tensors and plain values; a kill or a full disk leaves what was there before."""
    with atomic_write(path) as tmp:
        torch.save(_without_floats(content), tmp)


def load_file(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read such a dict. `UserError` naming the file when it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as e:
        first = (str(e).strip().split("\n") or [""])[0][:200]
        raise UserError(f"{path}: damaged, or not a checkpoint: {type(e).__name__}: {first}") from None
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{path}: not a checkpoint of this program")
    return _with_floats(content)


FLOAT = "python float"  # key of the dict that stands for one; its value is the number's hexadecimal text


def _without_floats(value: Any) -> Any:
    """Python floats as dicts of text: torch 1.13 writes them, but its safe loader cannot read them."""
    if isinstance(value, float):
        return {FLOAT: value.hex()}
    if isinstance(value, dict):
        return {k: _without_floats(v) for k, v in value.items()}
    return type(value)(_without_floats(v) for v in value) if isinstance(value, list | tuple) else value


def _with_floats(value: Any) -> Any:
    """The inverse of `_without_floats`."""
    if isinstance(value, dict):
        return float.fromhex(value[FLOAT]) if FLOAT in value else {k: _with_floats(v) for k, v in value.items()}
    return type(value)(_with_floats(v) for v in value) if isinstance(value, list | tuple) else value


def checkpoints(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """The checkpoints of one kind (epoch | step) with their numbers, newest first."""
    found = []
    for path in folder.glob(f"{kind}-*.pt"):
        match = NAME.fullmatch(path.name)
        if match:
            found.append((int(match.group(2)), path))
    return sorted(found, reverse=True)


def newest_readable(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The newest epoch and the newest step checkpoint that can be read; damaged ones are named and passed over."""
    for kind in ("epoch", "step"):
        for _, path in checkpoints(folder, kind):
            try:
                yield path, load_file(path)
                break
            except UserError as e:
                print(f"warning: {e}; passed over", file=sys.stderr)


def provenance(cfg: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """What every checkpoint and config.yaml record: config, tokens and their hash, git commit, library versions."""
    return {
        "config": to_dict(cfg),
        "tokens": tokenizer.tokens,
        "tokens_hash": config_hash("\n".join(tokenizer.tokens)),
        "vocab_size": tokenizer.vocab_size,
        "bpe_model": torch.frombuffer(bytearray(tokenizer.model), dtype=torch.uint8),
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), **_versions()},
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("lhotse", "sentencepiece", "numba", "k2"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"


def load_averaged(
    path: Path, overrides: list[str] | None = None, conf: str | None = None
) -> tuple[Transducer, Config, Tokenizer]:
    """A model in evaluation mode, its config (with `overrides` of decoding keys) and its tokens, from one file.

    Works for the file that local/average.py writes and for any training checkpoint (its last weights).
    conf: a YAML whose section `decode` stands in for the file's, so that it can be edited after training.
    """
    content = load_file(path)
    for key in ("config", "bpe_model", "vocab_size"):
        if key not in content:
            raise UserError(f"{path}: holds no '{key}'; local/average.py writes files that decoding can read")
    cfg = config_from_dict(content["config"], overrides or [], where=str(path))
    if conf is not None:
        cfg.decode = load_config(conf, overrides or []).decode
    tokenizer = Tokenizer.from_bytes(bytes(content["bpe_model"].tolist()))
    model = build_model(cfg, content["vocab_size"])
    load_weights(model, content["model"], path)
    return model.eval(), cfg, tokenizer


def load_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], where: Path) -> None:
    """Fill `model` by name. `UserError` naming the first tensor that is missing, unknown or of another shape."""
    own = model.state_dict()
    for key in own.keys() - state.keys():
        raise UserError(f"{where}: has no weights for '{key}'; the model it holds is another one")
    for key, value in state.items():
        if key not in own:
            raise UserError(f"{where}: has weights '{key}' that the configured model lacks")
        if own[key].shape != value.shape:
            raise UserError(f"{where}: '{key}' is {tuple(value.shape)}, the configured model's {tuple(own[key].shape)}")
    model.load_state_dict(state)
