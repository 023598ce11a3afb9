"""Runs stage 1 on a corpus of tones: the pitch of an utterance tells whose audio it has."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from local.corpus.dropped import Dropped, read_dropped
from local.corpus.shard_store import ShardStore
from local.data.channels import make_cuts
from local.prepare_cuts import read_pairs
from local.prepare_manifests import main as prepare_manifests

import numpy as np
import soundfile

YAML = "name: own\nsource: custom\ntrain: [train]\ndev: {dev}\ntest: {test}\n"


class Found(NamedTuple):
    """An utterance after stage 1; hertz is the pitch of its audio."""

    id: str
    text: str
    hertz: int
    speaker: str | None


def tone(path: Path, hertz: int, seconds: float = 0.5, rate: int = 8000) -> Path:
    """Write a tone as the ending says; `hertz` must be a multiple of 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate), rate)
    return path


def tones(folder: Path, *names: str, ending: str = ".wav") -> dict[str, int]:
    """Write a file for each name, and return their pitches: 200 Hz, 220 Hz ..."""
    pitches = {name: 200 + 20 * i for i, name in enumerate(names)}
    for name, hertz in pitches.items():
        tone(folder / (name + ending), hertz)
    return pitches


def stage_1(corpus_dir: Path, work: Path, dev: str = "[]", test: str = "[]") -> tuple[dict[str, list[Found]], list[Dropped]]:
    """Return the utterances of each part as stage 2 takes them, and what was left out."""
    work.mkdir(exist_ok=True)
    (work / "corpus.yaml").write_text(YAML.format(dev=dev, test=test))
    data = work / "data"
    prepare_manifests(
        ["--corpus-yaml", str(work / "corpus.yaml"), "--corpus-dir", str(corpus_dir), "--data-dir", str(data), "--nj", "1"]
    )
    parts = [p.name.removeprefix("supervisions_").removesuffix(".jsonl.gz") for p in (data / "manifests").glob("supervis*")]
    found = {part: [heard(cut) for cut in make_cuts(read_pairs(data, part), 8000, "first", part)] for part in sorted(parts)}
    return found, read_dropped(data / "manifests" / "dropped.tsv", "")


def heard(cut) -> Found:  # type: ignore[no-untyped-def]
    """Return the utterance of a cut with its pitch."""
    audio = ShardStore(Path("unused"), 1.0).with_audio_loaded(cut).load_audio()[0]
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 8000))
    segment = cut.supervisions[0]
    return Found(cut.id, segment.text, 10 * round(int(spectrum.argmax()) / 10), segment.speaker)
