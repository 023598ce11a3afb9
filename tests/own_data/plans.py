"""Plans of corpora, as hypothesis draws them, and the audio files that a plan makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.own_data.claims import EITHER, KEPT, LOST, Claim
from tests.own_data.tones import CODECS, UNKNOWN_LENGTH, Span, encoded, frequency_of

RATES = (8000, 11025, 16000, 44100)
SECONDS = (0.3, 0.5)
SHORT = 0.04  # seconds; less than a frame after subsampling
TEXTS = (  # {}: the word that tells the utterance
    "say {} now",
    "{}",
    "  two   blanks {}  ",
    "full-width \uff21\uff22 {}",
    "can\u2019t\u2026 {}",
    "\u06a9\u062a\u0627\u0628\u200c\u0647\u0627 {}",
    "zero\u200bwidth {} \u00bd \u2116",
    'he said "{}", twice; # and | and \\',
    "e\u0301t\u00e9 stra\u00dfe {}",
    "text {}",
    "{}; one; two; three; four, five",
    'a "quote that {} does not end',
    "<blk> {} <sos/eos> <unk>",
)
FILE_HARMS = {  # what is done to a file: what may then become of it
    "truncated": LOST,
    "missing": LOST,
    "empty": LOST,
    "text as audio": LOST,
    "a folder": LOST,
    "no samples": LOST,
    "no header": LOST,
    "NaN": LOST,
    "bytes changed": EITHER,
    "another ending": EITHER,
}


@dataclass(frozen=True)
class UtterancePlan:
    """An utterance: its length in seconds, its text, its channel, and what is wrong with its line."""

    seconds: float
    text: str
    channel: int = 0
    harm: str = ""


@dataclass(frozen=True)
class SoundPlan:
    """A file with its utterances, one after the other, and what is wrong with it, or with what a manifest states of it."""

    codec: str
    rate: int
    channels: int
    utterances: tuple[UtterancePlan, ...]
    harm: str = ""


@dataclass(frozen=True)
class PartPlan:
    """A part in one form; `style` are choices that each form uses in its own way, such as a header line."""

    form: str
    sounds: tuple[SoundPlan, ...]
    style: tuple[bool, ...]
    spoil: tuple[str, int] = ("", 0)  # what is wrong with a whole file that lists its utterances, and with which


@dataclass
class Utterance:
    """An utterance in its file, with the id that its corpus gives it."""

    number: int
    word: str
    text: str
    start: float
    plan: UtterancePlan
    id: str
    speaker: str

    @property
    def end(self) -> float:
        """Return its end in the file, in seconds."""
        return self.start + self.plan.seconds


@dataclass
class Sound:
    """A file that was written, or should have been."""

    path: Path
    plan: SoundPlan
    utterances: list[Utterance]
    seconds: float
    num_samples: int


def word_of(number: int) -> str:
    """Return a word that tells the utterance."""
    return "q" + "".join(chr(ord("a") + int(digit)) for digit in f"{number:03d}") + "q"


def lay_out(plan: PartPlan, folder: Path, numbers: Iterator[int], ids: str = "{:04d}") -> list[Sound]:
    """Write the audio of a part into `folder` and return its files. ids: makes an id from the number of an utterance."""
    sounds = []
    for sound in plan.sounds:
        start, utterances = 0.0, []
        for utterance in sound.utterances:
            number = next(numbers)
            word = word_of(number)
            name = ids.format(number)
            text = "" if utterance.harm == "empty text" else utterance.text.format(word)
            utterances.append(Utterance(number, word, text, start, utterance, name, f"s{number % 3}"))
            start += utterance.seconds
        ending = CODECS[sound.codec][2]
        if sound.harm == "another ending":
            ending = ".flac" if ending == ".wav" else ".wav"
        path = folder / (utterances[0].id.replace("/", "_") + (".raw" if sound.harm == "no header" else ending))
        spans = tuple(Span(u.number, u.plan.seconds, u.plan.channel) for u in utterances)
        write_sound(path, sound, spans)
        num_samples = sum(round(span.seconds * sound.rate) for span in spans)
        sounds.append(Sound(path.absolute(), sound, utterances, num_samples / sound.rate, num_samples))
    return sounds


def write_sound(path: Path, plan: SoundPlan, spans: tuple[Span, ...]) -> None:
    """Write the file of a plan, with what is wrong with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = encoded(spans, plan.rate, plan.channels, plan.codec, nan=plan.harm == "NaN")
    if plan.harm == "missing":
        return
    if plan.harm == "a folder":
        path.mkdir()
        return
    if plan.harm == "truncated":
        content = content[: len(content) * 3 // 5]
    elif plan.harm == "empty":
        content = b""
    elif plan.harm == "text as audio":
        content = b"this is not audio\n" * 20
    elif plan.harm == "no samples":
        content = encoded((Span(0, 0.0),), plan.rate, plan.channels, "wav")
    elif plan.harm == "no header":
        content = content[-len(content) // 2 :]
    elif plan.harm == "bytes changed":
        middle = len(content) // 2
        content = content[:middle] + bytes(b ^ 0x5A for b in content[middle : middle + 40]) + content[middle + 40 :]
    path.write_bytes(content)


def verdict(sound: Sound, utterance: Utterance | None = None) -> int:
    """Return what may become of an utterance of the file, as far as the file is concerned."""
    plan = sound.plan
    found = FILE_HARMS.get(plan.harm, KEPT)
    if plan.harm == "truncated" and (plan.codec in UNKNOWN_LENGTH or len(sound.utterances) > 1):
        found = EITHER
    if plan.codec in ("sphere", "pipe-flac"):  # it may be that only another program can read them
        found = max(found, EITHER)
    if utterance is not None and utterance.plan.seconds == SHORT:
        found = LOST
    return found


def claim_of(part: str, sound: Sound, utterance: Utterance, names: Sequence[str], worst: int = KEPT, **more: object) -> Claim:
    """Return the claim of an utterance of a file; worst: the verdict on its line."""
    short = utterance.plan.seconds == SHORT
    why = ", ".join(filter(None, (sound.plan.harm, utterance.plan.harm, "short" if short else "")))
    values = {
        "word": utterance.word,
        "text": utterance.text,
        "frequency": frequency_of(utterance.number),
        "seconds": utterance.plan.seconds,
        "names": {*names},
        "files": {str(sound.path)},
        "verdict": max(verdict(sound, utterance), worst),
        "why": f"{why} [{sound.plan.codec} {sound.plan.rate} Hz, {sound.plan.channels} channels]",
        "late": short,
        **more,
    }
    return Claim(part=part, **values)  # type: ignore[arg-type]


def numbers() -> Iterator[int]:
    """Return the numbers of the utterances of a corpus."""
    return count()
