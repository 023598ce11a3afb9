"""A decoded experiment on disk, with audio and prepared data, of any texts: for tests of whole reports."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from local.report import main as report
from local.wer import main as wer

import numpy as np
import soundfile

RATE = 16000
METHODS = ("greedy_search", "modified_beam_search")


@dataclass(frozen=True)
class Said:
    """An utterance: its id, speaker and text, what each of `METHODS` recognised, and the seconds of its audio."""

    id: str
    speaker: str
    ref: str
    hyps: tuple[str, ...]
    seconds: float = 1.0


def make(folder: Path, utterances: Sequence[Said], tokens: Mapping[str, int] | None = None, name: str = "exp") -> Path:
    """Write FOLDER/<name> with the set "test", and FOLDER/data; score it and return the experiment's folder.

    tokens: tokens.txt of a BPE of 30 tokens; words that are tokens have times then.
    """
    tokens, exp, data = tokens or {}, folder / name, folder / "data"
    lang = data / "lang_bpe_30"
    for path in (data / "cuts", lang, *(exp / "decode" / method for method in METHODS)):
        path.mkdir(parents=True)
    (exp / "config.yaml").write_text("lang: {vocab_size: 30}\nfeatures: {num_mel_bins: 80, sampling_rate: 16000}\n")
    (lang / "tokens.txt").write_text("".join(f"{text} {n}\n" for text, n in tokens.items()), encoding="utf-8")
    (lang / "transcript.txt").write_text("GREEN RED LAMP\n")
    cuts = []
    for number, u in enumerate(utterances):
        audio = folder / f"{number}.flac"
        time = np.arange(round(u.seconds * RATE)) / RATE
        noise = 0.01 * np.random.default_rng(number).standard_normal(len(time))
        soundfile.write(audio, 0.3 * np.sin(2 * np.pi * 300 * time) * (np.sin(2 * np.pi * 3 * time) > 0) + noise, RATE)
        cuts.append(cut(u, audio))
    (data / "cuts" / "test.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(c) + "\n" for c in cuts).encode()))
    for place, method in enumerate(METHODS):
        rows = [row(u, u.hyps[place], tokens) for u in utterances]
        (exp / "decode" / method / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    wer(["--exp-dir", str(exp)])
    return exp


def cut(u: Said, audio: Path) -> dict:
    """Return the cut of an utterance."""
    supervision = {"id": u.id, "text": u.ref, "speaker": u.speaker}
    recording = {"sources": [{"type": "file", "channels": [0], "source": str(audio)}], "sampling_rate": RATE}
    return {
        "id": u.id,
        "start": 0.0,
        "duration": u.seconds,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
    }


def row(u: Said, hyp: str, tokens: Mapping[str, int]) -> dict:
    """Return the line of a decoded set."""
    known = [tokens[f"\u2581{word}"] for word in hyp.split() if f"\u2581{word}" in tokens]
    times = list(range(2, 2 + 4 * len(known), 4))
    return {"id": u.id, "ref": u.ref, "hyp": hyp, "tokens": known, "times": times, "confidences": [0.75] * len(known)}


def write_report(exp: Path, *options: str) -> Path:
    """Write the report of an experiment of `make` and return its path."""
    report(["--exp-dir", str(exp), "--data-dir", str(exp.parent / "data"), *options])
    return exp / "report.html"
