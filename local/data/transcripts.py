"""Transcripts of prepared parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.corpus.manifest_lines import read_manifest

from lhotse import SupervisionSegment


def read_texts(data_dir: Path, parts: Sequence[str]) -> list[str]:
    """Transcripts of the parts, in their order."""
    texts = []
    for part in parts:
        path = data_dir / "manifests" / f"supervisions_{part}.jsonl.gz"
        texts += [segment.text or "" for segment in read_manifest(path, SupervisionSegment, "stage 1 of prepare.sh")]
    return texts
