"""export.json: what an exported folder was made from, and how it was checked. It names an exported folder as one."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import git_commit, weights_hash
from local.common.errors import UserError
from local.config.schema import Config, DecodeConfig
from local.decoding.streaming import OVERLAP, STRIDE
from local.deploy.client import FOLDED
from local.deploy.packages import versions

import torch

RECORD = "export.json"
PROGRAM = "local/export.py"
Floor = torch.Tensor | None


def check_folder(out: Path) -> None:
    """Raise `UserError` if `out` is neither absent, nor empty, nor an exported folder, which may be replaced."""
    if out.is_symlink() or out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file or a link; name a folder")
    if out.is_dir() and any(out.iterdir()) and not is_export(out):
        raise UserError(f"--out {out}: is not empty and was not made by {PROGRAM}; name another folder")


def is_export(folder: Path) -> bool:
    """Return whether a folder was made by local/export.py."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("made_by") == PROGRAM


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def checkpoint_of(path: Path, content: dict[str, Any]) -> dict[str, str]:
    """Return what identifies a checkpoint; `content` is that of `load_file`."""
    found = {"file": path.name, "sha256": file_hash(path), "weights": weights_hash(content["model"])}
    facts = {"label": "label", "averaged": "averaged", "git_commit": "commit"}
    return found | {name: str(content[key]) for key, name in facts.items() if content.get(key)}


def floor_facts(floor: Floor, options: DecodeConfig) -> dict[str, Any]:
    """Return what export.json says of the floor under the features."""
    if floor is None:
        why = "the checkpoint has none" if options.feature_floor else "decode.feature_floor=false"
        return {"folded": False, "why": why}
    return {"folded": True, "least": round(float(floor.min()), 4), "most": round(float(floor.max()), 4)}


def make_record(cfg: Config, chunk_frames: int, floor: Floor, **facts: Any) -> dict[str, Any]:
    """Return the content of export.json, without the list of files; `facts` are further entries."""
    names = ("torch", "lhotse", "sentencepiece", "onnx", "onnxruntime", "sherpa-onnx")
    return {
        "made_by": PROGRAM,
        **facts,
        "commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions(*names)},
        "features": {
            "kind": "log-mel filter bank as Kaldi's: 25 ms windows every 10 ms, snip_edges=false, dither 0, samples in [-1, 1]",
            "sampling_rate": cfg.features.sampling_rate,
            "num_mel_bins": cfg.features.num_mel_bins,
            "low_freq": 20,
            "high_freq": -400,
        },
        "chunk": {
            "seconds": chunk_frames / 100,
            "frames_in": chunk_frames + OVERLAP,
            "frames_on": chunk_frames,
            "frames_out": chunk_frames // STRIDE,
        },
        "folded": {**{key: getattr(cfg.decode, key) for key in FOLDED}, "feature_floor": floor_facts(floor, cfg.decode)},
    }


def write_record(record: dict[str, Any], folder: Path) -> None:
    """Write export.json with the size and hash of every other file in `folder`."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    content = json.dumps({**record, "files": files}, indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(content + "\n", encoding="utf-8")
