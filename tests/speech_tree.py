"""A small corpus of noise in LibriSpeech's layout, for tests that need files but no speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

WORDS = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "ZERO")


def write_noise(path: Path, seconds: float, rate: int = 16000, seed: int = 0) -> Path:
    """Write white noise at -20 dB as FLAC or WAV, by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.17, 0.17, int(seconds * rate)), rate)
    return path


def make_part(tree: Path, part: str, speakers: int = 2, utterances: int = 6, rate: int = 16000) -> list[str]:
    """Write <part>/<speaker>/1/*.flac of 1 to 3 s with transcripts of 1 to 4 words, and return the ids."""
    ids = []
    for speaker in range(100, 100 + speakers):
        lines = []
        for n in range(utterances):
            seed = 1000 * speaker + n
            rng = np.random.default_rng([seed, len(part)])
            utterance_id = f"{speaker}-1-{n:04d}"
            write_noise(tree / part / str(speaker) / "1" / f"{utterance_id}.flac", rng.uniform(1, 3), rate, seed)
            lines.append(f"{utterance_id} {' '.join(rng.choice(WORDS, rng.integers(1, 5)))}\n")
            ids.append(utterance_id)
        (tree / part / str(speaker) / "1" / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return ids


def set_text(tree: Path, part: str, utterance_id: str, text: str) -> None:
    """Replace (or add) an utterance's line in its transcript."""
    speaker, chapter, _ = utterance_id.split("-")
    path = tree / part / speaker / chapter / f"{speaker}-{chapter}.trans.txt"
    lines = [line for line in path.read_text().splitlines() if line.split()[0] != utterance_id]
    path.write_text("\n".join(sorted([*lines, f"{utterance_id} {text}".rstrip()])) + "\n")


def audio_of(tree: Path, part: str, utterance_id: str) -> Path:
    """Return the utterance's audio file."""
    speaker, chapter, _ = utterance_id.split("-")
    return tree / part / speaker / chapter / f"{utterance_id}.flac"
