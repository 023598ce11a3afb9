"""Transcripts of prepared parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.corpus.manifest_lines import read_manifest

from lhotse import SupervisionSegment


def read_texts(data_dir: Path, parts: Sequence[str]) -> list[str]:
    """Return the transcripts of the parts, in their order. Raises `UserError` if a manifest is missing or damaged."""
    texts = []
    for part in parts:
        path = data_dir / "manifests" / f"supervisions_{part}.jsonl.gz"
        made_by = "stage 1 (manifests) of prepare.sh"
        texts += [segment.text or "" for segment in read_manifest(path, SupervisionSegment, made_by)]
    return texts
