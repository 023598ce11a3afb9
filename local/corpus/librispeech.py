"""A tree in LibriSpeech's layout: <part>/<speaker>/<chapter>/ with <speaker>-<chapter>-<n>.flac and a .trans.txt."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from local.common.errors import UserError
from local.common.text_files import read_lines
from local.corpus.audio_paths import AUDIO_ENDINGS, has_audio_ending
from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair, whole_file

TRANSCRIPTS = "*/*/*.trans.txt"  # in a part
PREFERRED = (".flac", *(ending for ending in AUDIO_ENDINGS if ending != ".flac"))


def find_tree(corpus_dir: Path) -> Path:
    """Return the folder of the parts: `corpus_dir/LibriSpeech` if it exists, else `corpus_dir`."""
    inner = corpus_dir / "LibriSpeech"
    return inner if inner.is_dir() else corpus_dir


def read_part(tree: Path, name: str, dropped: list[Dropped], hint: str = "", part: str = "") -> list[Pair]:
    """Return the utterances of folder `name`, sorted by id; audio is not read (`num_samples` is 0).

    Audio that no transcript has a line for goes to `dropped`, under `part` if the part has another name. Raises `UserError` if
    there is no such part.
    """
    folder = tree / name
    transcripts = sorted(folder.glob(TRANSCRIPTS))
    if not transcripts:
        there = ", ".join(sorted(p.name for p in tree.iterdir() if any(p.glob(TRANSCRIPTS)))) or "no parts"
        raise UserError(f"part '{name}' is not in {tree}, which has {there}{hint}")
    audio = {chapter: audio_in(chapter) for chapter in sorted(folder.glob("*/*")) if chapter.is_dir()}
    pairs = []
    used = set()
    for transcript in transcripts:
        chapter = transcript.parent
        for line in read_lines(transcript):
            if line.strip():
                utterance_id, *text = line.split(maxsplit=1)
                path = chapter / audio[chapter].get(utterance_id, f"{utterance_id}.flac")
                used.add((chapter, utterance_id))
                pairs.append(whole_file(utterance_id, path, text[0].strip() if text else "", chapter.parent.name))
    for chapter, names in audio.items():
        for stem, file in names.items():
            if (chapter, stem) not in used:
                dropped.append(Dropped(stem, part or name, "audio without transcript", str(chapter / file)))
    return pairs


def audio_in(folder: Path) -> dict[str, str]:
    """Return the audio files in a folder by their names without ending; of several with one name FLAC, then WAV, is used."""
    names = sorted(name for name in os.listdir(folder) if has_audio_ending(name) and not name.startswith("."))
    names.sort(key=lambda name: PREFERRED.index(PurePath(name).suffix.lower()), reverse=True)
    return {PurePath(name).stem: name for name in names}
