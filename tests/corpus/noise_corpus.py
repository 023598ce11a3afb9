"""A corpus of noise: writes its files, prepares it, and says which samples training loads."""

from __future__ import annotations

from pathlib import Path

from local.corpus.shard_store import ShardStore
from local.prepare_cuts import main as prepare_cuts
from local.prepare_manifests import main as prepare_manifests
from tests.conftest import ROOT

import numpy as np
import soundfile
from lhotse import AudioSource, CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.cut import Cut

RATE = 16000
TEXT = "ONE TWO THREE"


def samples(seed: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    """Return noise (S, C) of -22 dB, exact in 16 bits."""
    noise = np.random.default_rng(seed).uniform(-0.14, 0.14, (int(seconds * RATE), channels))
    return np.round(noise * 32768) / 32768


def write(path: Path, seed: int, seconds: float = 1.0, channels: int = 1, **options: str) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = samples(seed, seconds, channels)
    soundfile.write(path, audio, RATE, **options)
    return audio[:, 0]


def table(corpus: Path, *files: str) -> None:
    (corpus / "train.tsv").write_text("".join(f"{name}\t{TEXT}\n" for name in files))


def prepare(
    corpus: Path, *overrides: str, yaml: Path = ROOT / "egs/custom/corpus.yaml"
) -> tuple[dict[str, Cut], dict[str, str]]:
    """Run stages 1 and 2; return the cuts of train and the reasons of what was dropped, both by id."""
    data = corpus.parent / "data"
    prepare_manifests(
        [
            "--corpus-yaml",
            str(yaml),
            "--corpus-dir",
            str(corpus),
            "--data-dir",
            str(data),
            *overrides,
        ]
    )
    prepare_cuts(["--data-dir", str(data), *overrides])
    return {cut.id: cut for cut in CutSet.from_file(data / "cuts" / "train.jsonl.gz")}, dropped(data)


def dropped(data: Path) -> dict[str, str]:
    listings = [path for path in (data / "dropped.tsv", data / "manifests" / "dropped.tsv") if path.exists()]
    return {line.split("\t")[0]: line.split("\t")[2] for line in listings[0].read_text().splitlines()}


def allow_commands(corpus: Path) -> Path:
    """Write a corpus.yaml beside the corpus that allows commands; return its path."""
    text = (ROOT / "egs/custom/corpus.yaml").read_text()
    assert "commands: false" in text
    (corpus.parent / "corpus.yaml").write_text(text.replace("commands: false", "commands: true"))
    return corpus.parent / "corpus.yaml"


def loaded(cut: Cut) -> np.ndarray:
    """Return the samples (S,) that training loads."""
    audio = ShardStore(Path(), 1.0, commands=True).with_audio_loaded(cut).load_audio()
    assert audio.shape[0] == 1
    return audio[0]


def equal(cut: Cut, audio: np.ndarray, tolerance: float = 1e-6) -> bool:
    found = loaded(cut)
    return found.shape == audio.shape and bool(np.abs(found - audio).max() <= tolerance)


def lhotse_manifests(corpus: Path, recordings: list[Recording], segments: list[SupervisionSegment]) -> None:
    RecordingSet.from_recordings(recordings).to_file(corpus / "recordings_train.jsonl.gz")
    SupervisionSet.from_segments(segments).to_file(corpus / "supervisions_train.jsonl.gz")


def recording(path: Path, seconds: float = 1.0, rate: int = RATE, channels: int = 1, **changes: float) -> Recording:
    sources = [AudioSource("file", list(range(channels)), str(path))]
    stated = {"num_samples": round(seconds * rate), "duration": seconds, **changes}
    return Recording(path.stem, sources, rate, **stated)  # type: ignore[arg-type]


def segment(name: str, channel: int | list[int] = 0, start: float = 0.0, duration: float = 1.0) -> SupervisionSegment:
    return SupervisionSegment(name, name, start, duration, channel, TEXT)
