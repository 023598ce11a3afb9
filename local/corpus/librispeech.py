"""A tree in LibriSpeech's layout: <part>/<speaker>/<chapter>/ with <speaker>-<chapter>-<n>.flac and a .trans.txt."""

from __future__ import annotations

from pathlib import Path

from local.common.errors import UserError
from local.common.text_files import is_file, read_lines
from local.corpus.pairs import Pair, whole_file

TRANSCRIPTS = "*/*/*.trans.txt"  # in a part
AUDIO_ENDINGS = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a")


def find_tree(corpus_dir: Path) -> Path:
    """Return the folder of the parts: `corpus_dir/LibriSpeech` if it exists, else `corpus_dir`."""
    inner = corpus_dir / "LibriSpeech"
    return inner if inner.is_dir() else corpus_dir


def read_part(tree: Path, part: str, hint: str = "") -> list[Pair]:
    """Return the utterances sorted by id; audio is not read (`num_samples` is 0). Raises `UserError` for a missing part."""
    folder = tree / part
    transcripts = sorted(folder.glob(TRANSCRIPTS))
    if not transcripts:
        there = ", ".join(sorted(p.name for p in tree.iterdir() if any(p.glob(TRANSCRIPTS)))) or "no parts"
        raise UserError(f"part '{part}' is not in {tree}, which has {there}{hint}")
    pairs = []
    for transcript in transcripts:
        for line in read_lines(transcript):
            if line.strip():
                utterance_id, *text = line.split(maxsplit=1)
                pairs.append(_pair(transcript.parent, utterance_id, text[0].strip() if text else ""))
    return pairs


def _pair(folder: Path, utterance_id: str, text: str) -> Pair:
    candidates = (folder / (utterance_id + ending) for ending in AUDIO_ENDINGS)
    path = next((c for c in candidates if is_file(c)), folder / f"{utterance_id}.flac")
    return whole_file(utterance_id, path, text, speaker=utterance_id.partition("-")[0])
