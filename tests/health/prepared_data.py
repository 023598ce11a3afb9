"""Prepared data of a few utterances that sound like no other, for tests of the doctor's checks of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local.config import load_config
from local.config.schema import Config
from local.corpus.dropped import Dropped, write_dropped
from local.corpus.screening import LEVELS
from local.data.token_counts import counts_file, write_token_counts
from local.data.tokenizer import Tokenizer, lang_dir, train_tokenizer
from local.health.finding import Finding
from local.prepare_lang import count_tokens, write_lang

import numpy as np
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment

RATE = 16000
TEXTS = ("ONE", "TWO THREE", "FOUR FIVE SIX", "SEVEN EIGHT NINE TEN", "ELEVEN TWELVE")
SEGMENT = 0.08  # seconds of one sound


@dataclass
class Spoken:
    """An utterance: samples (S,) or (S, channels); None: its file is missing; bytes: a file that is not audio."""

    id: str
    text: str = "ONE TWO"
    samples: np.ndarray | bytes | None = None
    seconds: float = 1.0  # without samples
    rate: int = RATE
    speaker: str | None = None
    channel: int = 0
    silent: bool = False
    source: str = ""  # of remote audio


def speech(seed: int, seconds: float = 1.0, rate: int = RATE, highest: float = 7900.0) -> np.ndarray:
    """Return samples (S,) of sounds that follow each other: noise whose spectrum is drawn for each, up to `highest` Hz."""
    rng, size = np.random.default_rng(seed), round(SEGMENT * rate)
    pieces = []
    for _ in range(int(seconds / SEGMENT) + 1):
        noise = np.fft.rfft(rng.standard_normal(size))
        frequencies = np.fft.rfftfreq(size, 1 / rate)
        gains = np.interp(frequencies, np.linspace(0, rate / 2, 20), rng.uniform(0, 1, 20) ** 3)
        sound = np.fft.irfft(noise * gains, size) * np.hanning(size) * rng.uniform(0.1, 1)  # without clicks between sounds
        pieces.append(sound)
    spectrum = np.fft.rfft(np.concatenate(pieces)[: round(seconds * rate)])
    x = np.fft.irfft(spectrum * (np.fft.rfftfreq(round(seconds * rate), 1 / rate) < highest), round(seconds * rate))
    return np.asarray(0.2 * x / np.abs(x).max(), dtype=np.float32)


def talk(part: str, count: int = 20, rate: int = RATE, highest: float = 7900.0) -> list[Spoken]:
    """Return utterances of different sounds, texts and lengths."""
    seeds = np.random.default_rng([len(part), count]).integers(0, 2**31, count)
    return [
        Spoken(f"{part}-{n:03d}", TEXTS[n % len(TEXTS)], speech(int(seed), 0.5 + 0.01 * n, rate, highest), rate=rate)
        for n, seed in enumerate(seeds)
    ]


def words(part: str, count: int, speakers: int = 10) -> list[Spoken]:
    """Return utterances without audio: of 1 to 12 words, with lengths that fit these."""
    rng = np.random.default_rng(count)
    found = []
    for n in range(count):
        text = " ".join(rng.choice(["ONE", "TWO", "THREE", "FOUR", "FIVE"], rng.integers(1, 13)))
        seconds = (len(text) + 8) / 14 * float(np.exp(0.15 * rng.standard_normal()))
        found.append(Spoken(f"{part}-{n:04d}", text, seconds=round(seconds, 3), speaker=f"{part}-{n % speakers}"))
    return found


@dataclass
class Folder:
    """A data folder, and its configuration."""

    path: Path
    overrides: list[str] = field(default_factory=lambda: ["lang.vocab_size=40"])

    def cfg(self, *overrides: str) -> Config:
        """Return the configuration with more overrides."""
        return load_config(None, [*self.overrides, *overrides])


def write_data(root: Path, parts: Mapping[str, Sequence[Spoken]], test: Sequence[str] = ()) -> Folder:
    """Write root/data with the parts; parts that are not `train` are dev parts, but for those of `test`."""
    folder = Folder(root / "data")
    held_out = [part for part in parts if part != "train"]
    lines = (
        f"train: {['train'] if 'train' in parts else []}",
        f"dev: {[p for p in held_out if p not in test]}",
        f"test: {[*test]}",
    )
    folder.path.mkdir(parents=True)
    (folder.path / "corpus.yaml").write_text("\n".join(("name: made", "source: custom", *lines)) + "\n")
    cuts = {part: [cut_of(root / "audio" / part, spoken) for spoken in utterances] for part, utterances in parts.items()}
    (folder.path / "cuts").mkdir()
    for part, found in cuts.items():
        CutSet.from_cuts(found).to_file(folder.path / "cuts" / f"{part}.jsonl.gz")
    write_tokens(folder, cuts)
    return folder


def cut_of(folder: Path, spoken: Spoken) -> MonoCut:
    """Write the audio of an utterance, if it has some, and return its cut."""
    path, seconds, channels, rate = folder / f"{spoken.id}.wav", spoken.seconds, 1, spoken.rate
    if isinstance(spoken.samples, np.ndarray):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, spoken.samples, rate)
        seconds, channels = len(spoken.samples) / rate, spoken.samples.shape[1] if spoken.samples.ndim > 1 else 1
    elif spoken.samples is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(spoken.samples)
    source = AudioSource("file" if not spoken.source else "url", list(range(channels)), spoken.source or str(path))
    recording = Recording(spoken.id, [source], rate, round(seconds * rate), round(seconds * rate) / rate)
    custom = {LEVELS: [-90.0]} if spoken.silent else None
    text = SupervisionSegment(
        spoken.id, spoken.id, 0.0, recording.duration, spoken.channel, spoken.text, speaker=spoken.speaker, custom=custom
    )
    cut = MonoCut(spoken.id, 0.0, recording.duration, spoken.channel, [text], recording=recording)
    return cut if rate == RATE else cut.resample(RATE)  # type: ignore[return-value]


def write_tokens(folder: Folder, cuts: Mapping[str, Sequence[MonoCut]]) -> Tokenizer:
    """Write what stage 3 writes: tokens of the texts of train, counts, what it drops."""
    cfg, dropped = folder.cfg(), list[Dropped]()
    lang = lang_dir(folder.path, cfg.lang)
    texts = [cut.supervisions[0].text or "" for part, found in cuts.items() for cut in found if part == "train"] or [*TEXTS]
    tokenizer = train_tokenizer([text for text in texts if text.isascii()], cfg.lang.vocab_size)
    for part, found in cuts.items():
        write_token_counts(count_tokens(found, part, part == "train", tokenizer, dropped), counts_file(lang, part))
    write_dropped(lang / "dropped.tsv", dropped)
    write_lang(tokenizer, texts, lang)
    return tokenizer


def run(check: Callable[..., Iterator[Finding]], folder: Folder, *overrides: str, every: bool = True) -> list[Finding]:
    """Return the errors and warnings of a check."""
    return [f for f in check(folder.path, folder.cfg(*overrides), every) if f.level != "note"]
