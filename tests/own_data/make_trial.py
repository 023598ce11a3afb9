"""Make two corpora to try `./run.sh --corpus custom` on, from the digits in ../shared/speech.

    .venv/bin/python -m tests.own_data.make_trial OUT

OUT/kaldi is an hour of speech as Kaldi data directories, train (with segments) and test. OUT/table is a table of 300 files of
mixed formats, sampling rates and channels; three files are broken, and some texts have punctuation, digits or marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from local.corpus.librispeech import read_part

import numpy as np
import soundfile
import torch

JOINED = 10  # utterances of a long recording
CODECS = ((".wav", "PCM_16"), (".flac", "PCM_16"), (".ogg", "VORBIS"), (".mp3", "MPEG_LAYER_III"))
RATES = (8000, 16000, 44100)
UNCLEAN = ("{}.", "[noise] {}", "{}, 1 2", "\u2026 {}?")  # what transcribers write besides words
BROKEN = {7: "truncated", 8: "empty", 9: "text"}  # numbers of files; what is wrong with them


class Digits(NamedTuple):
    """An utterance of connected digits."""

    id: str
    path: Path
    text: str
    speaker: str


def digits(speech: Path, part: str) -> list[Digits]:
    """Return the utterances of a part of LibriSpeech-digits, by id."""
    pairs = read_part(speech / "LibriSpeech-digits", part, [])
    return [Digits(s.id, Path(str(r.sources[0].source)), s.text or "", s.speaker or "") for r, s in pairs]


def write_kaldi(folder: Path, utterances: Sequence[Digits], segments: bool) -> None:
    """Write a Kaldi data directory. segments: two of three groups of utterances are joined to long recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "text", "utt2spk")}
    for number, first in enumerate(range(0, len(utterances), JOINED)):
        group = utterances[first : first + JOINED]
        if segments and number % 3:
            name, path = f"long-{number:04d}", (folder / "wav" / f"long-{number:04d}.flac").absolute()
            lines["wav.scp"].append(f"{name} {path}")
            lines["segments"] += [f"{u.id} {name} {a:.5f} {b:.5f}" for u, a, b in join(group, path)]
        else:
            lines["wav.scp"] += [f"{u.id} {u.path}" for u in group]
            lines["segments"] += [f"{u.id} {u.id} 0 -1" for u in group]
        lines["text"] += [f"{u.id} {u.text}" for u in group]
        lines["utt2spk"] += [f"{u.id} {u.speaker}" for u in group]
    for name, content in lines.items():
        if segments or name != "segments":
            (folder / name).write_text("".join(f"{line}\n" for line in content))


def join(group: Sequence[Digits], path: Path) -> Iterator[tuple[Digits, float, float]]:
    """Write the utterances one after the other to a file, and yield each with its start and end in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pieces, start = [], 0
    for utterance in group:
        sound, rate = soundfile.read(utterance.path, dtype="int16")
        yield utterance, start / rate, (start + len(sound)) / rate
        pieces.append(sound)
        start += len(sound)
    soundfile.write(path, np.concatenate(pieces), rate)


def write_table(folder: Path, utterances: Sequence[Digits]) -> None:
    """Write train.tsv and its audio: every format, sampling rate, and one or two channels in turn."""
    from torchaudio.functional import resample  # the k2 environment, which imports this file, has no torchaudio

    lines = ["path\ttext\tspeaker\n"]
    for number, u in enumerate(utterances):
        ending, subtype = CODECS[number % len(CODECS)]
        rate, channels = RATES[number % len(RATES)], 1 + number // 12 % 2
        path = folder / "audio" / f"{u.id}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound, original = soundfile.read(u.path, dtype="float32")
        sound = resample(torch.from_numpy(sound), original, rate).numpy()
        second = 0.3 * np.roll(sound, rate // 100)  # as from a microphone farther off
        soundfile.write(path, np.stack([sound, second][:channels], axis=1).clip(-1, 1), rate, subtype=subtype)
        if number in BROKEN:
            content = {"truncated": path.read_bytes()[:1500], "empty": b"", "text": b"not audio\n"}
            path.write_bytes(content[BROKEN[number]])
        text = UNCLEAN[number // 10 % len(UNCLEAN)].format(u.text) if number % 10 == 4 else u.text
        lines.append(f"audio/{path.name}\t{text}\t{u.speaker}\n")
    (folder / "train.tsv").write_text("".join(lines), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Write both corpora."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--speech", type=Path, default=Path("../shared/speech"), help="folder of the digits (%(default)s)")
    args = parser.parse_args(argv)
    train, test = (digits(args.speech, part) for part in ("train-clean-5", "dev-clean-2"))
    write_kaldi(args.out / "kaldi" / "train", train, segments=True)
    write_kaldi(args.out / "kaldi" / "test", test, segments=False)
    write_table(args.out / "table", train[::5])
    print(f"{args.out}/kaldi: {len(train)} and {len(test)} utterances; {args.out}/table: {len(train[::5])} files")


if __name__ == "__main__":
    main()
