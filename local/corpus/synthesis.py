"""The corpus `tiny`: phrases of a grammar said by eSpeak NG voices, in LibriSpeech's layout."""

from __future__ import annotations

import functools
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local.common.atomic import atomic_folder
from local.common.children import each_in_a_process
from local.common.errors import UserError
from local.common.progress import progress
from local.corpus.espeak import Speaker
from local.corpus.grammar import SPEC, Phrases, Spec, Voice, assign_voices, load_spec

import numpy as np
import soundfile

SPEAKERS_HEADER = "; made by local/synthesise_tiny.py\n;ID  |SEX| SUBSET |MINUTES| NAME\n"
CHAPTER = 1


@dataclass
class PartStats:
    """What a part holds: `minutes` of sound, utterances, voices, and how often each word is said."""

    minutes: float = 0.0
    utterances: int = 0
    voices: int = 0
    words: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Return the numbers in words."""
        return f"{self.minutes:.1f} minutes, {self.utterances} utterances, {self.voices} voices, {len(self.words)} words"


@dataclass
class Task:
    """One voice's work: say phrases for `seconds` (at most `limit` of them) into `folder`."""

    voice: Voice
    spec: Spec
    seconds: float
    limit: int | None
    seed: int
    folder: Path


@functools.cache
def resampling_filters(step: int, phases: int, cutoff: float, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of `phases` outputs of a block of `step` inputs its place (phases,) and filter (phases, taps)."""
    times = np.arange(phases) * step / phases
    first = np.floor(times).astype(np.int64)
    offsets = np.arange(-half, half + 1)[None, :] - (times - first)[:, None]
    window = np.where(np.abs(offsets) < half, np.cos(np.pi * offsets / (2 * half)) ** 2, 0.0)
    return first, cutoff * np.sinc(cutoff * offsets) * window


def resample(x: np.ndarray, source: int, target: int, zeros: int = 24) -> np.ndarray:
    """Resample `x (n,)` from `source` to `target` Hz; return (ceil(n * target / source),), float32.

    The filter is a Hann-windowed sinc with `zeros` zero crossings on each side, cut off at 0.95 of the lower Nyquist
    frequency (J. O. Smith, "Digital Audio Resampling", 2002). Filters repeat every target / gcd outputs. Another resampler
    would change the corpus's bytes.
    """
    common = math.gcd(source, target)
    step, phases = source // common, target // common
    cutoff = 0.95 * min(1.0, target / source)
    half = math.ceil(zeros / cutoff)
    count = -(-len(x) * phases // step)
    blocks = -(-count // phases)
    padded = np.zeros(blocks * step + 2 * half)
    padded[half : half + len(x)] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    out = np.empty((blocks, phases))
    for phase, (first, taps) in enumerate(zip(*resampling_filters(step, phases, cutoff, half), strict=True)):
        # einsum, not BLAS: its threads would change the order of sums and compete with the other processes.
        out[:, phase] = np.einsum("bk,k->b", windows[first::step], taps)
    return out.reshape(-1)[:count].astype(np.float32)


def loud_samples(x: np.ndarray) -> np.ndarray:
    """Return the indices in `x (n,)` that are not silence."""
    return np.flatnonzero(np.abs(x) > 0.005 * max(np.abs(x).max(initial=0.0), 1e-9))


def speech_in(x: np.ndarray, rate: int, margin: float = 0.02) -> slice:
    """Return the span of speech in `x (n,)` at `rate` Hz, with `margin` seconds of silence at both ends."""
    loud = loud_samples(x)
    if len(loud) == 0:
        return slice(0, 0)
    keep = int(margin * rate)
    return slice(max(int(loud[0]) - keep, 0), int(loud[-1]) + 1 + keep)


def word_times(x: np.ndarray, starts: Sequence[int], rate: int) -> list[tuple[float, float]]:
    """Return (start, end) in seconds, without pauses, of the words in `x (n,)` at `rate` Hz that start at these samples."""
    loud = loud_samples(x)
    ends = loud[np.searchsorted(loud, [*starts[1:], len(x)]) - 1] + 1 if len(loud) else np.zeros(len(starts), int)
    return [(start / rate, max(start, int(end)) / rate) for start, end in zip(starts, ends, strict=True)]


def record(speech: np.ndarray, spec: Spec, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Put `speech (n,)`, float, between silences; draw its level and microphone noise from `rng`.

    Return int16 samples, and the sample at which the speech starts.
    """
    rate = spec.sampling_rate
    level, snr = rng.uniform(*spec.level), rng.uniform(*spec.snr)
    before, after = (int(rate * rng.uniform(*s)) for s in (spec.silence_before, spec.silence_after))
    rms = max(float(np.sqrt(np.mean(speech**2))), 1e-9)
    speech = speech * min(10 ** (level / 20) / rms, 0.95 / float(np.abs(speech).max()))
    noise = rng.standard_normal(before + len(speech) + after + 1)
    noise = noise[1:] + 0.7 * noise[:-1]  # a little darker than white, like room noise
    noise *= float(np.sqrt(np.mean(speech**2))) * 10 ** (-snr / 20) / float(noise.std())
    noise[before : before + len(speech)] += speech
    return np.clip(np.round(noise * 32767), -32768, 32767).astype(np.int16), before


def speak(task: Task) -> tuple[Voice, list[str], float]:
    """Write one voice's utterances and transcripts; return the voice, its texts and seconds. Needs a fresh process."""
    voice, spec = task.voice, task.spec
    folder = task.folder / voice.part / str(voice.id) / str(CHAPTER)
    folder.mkdir(parents=True)
    speaker = Speaker(seed=(task.seed * 100003 + voice.id) % 2**31)
    speaker.set_voice(voice.name, voice.rate, voice.pitch, voice.range)
    phrases = Phrases(spec, f"{task.seed}/{voice.id}")
    noise = np.random.default_rng([task.seed, voice.id])
    texts: list[str] = []
    times: list[str] = []  # lines of the .ctm
    seconds = 0.0
    while seconds < task.seconds and len(texts) != task.limit:
        said, text = phrases.draw()
        raw = speaker.say(said).astype(np.float64) / 32768
        speech = resample(raw, speaker.sampling_rate, spec.sampling_rate)
        kept = speech_in(speech, spec.sampling_rate)
        if len(speech[kept]) == 0:
            raise UserError(f"eSpeak NG's voice {voice.name} says nothing for {said!r}")
        sound, begin = record(speech[kept], spec, noise)
        utterance = f"{voice.id}-{CHAPTER}-{len(texts):04d}"
        buffer = io.BytesIO()  # via memory: libsndfile's own writing would hide the OSError of a full disk
        soundfile.write(buffer, sound, spec.sampling_rate, format="FLAC", subtype="PCM_16")
        (folder / f"{utterance}.flac").write_bytes(buffer.getvalue())
        if len(speaker.word_starts) == len(text.split()):  # if not, eSpeak NG read some as other words
            shift = (begin - kept.start) / spec.sampling_rate
            spans = word_times(raw, speaker.word_starts, speaker.sampling_rate)
            for word, (start, end) in zip(text.split(), spans, strict=True):
                first = max(start + shift, 0.0)
                times.append(f"{utterance} 1 {first:.3f} {end + shift - first:.3f} {word}\n")
        texts.append(text)
        seconds += len(sound) / spec.sampling_rate
    lines = "".join(f"{voice.id}-{CHAPTER}-{i:04d} {text}\n" for i, text in enumerate(texts))
    (folder / f"{voice.id}-{CHAPTER}.trans.txt").write_text(lines)
    (folder / f"{voice.id}-{CHAPTER}.ctm").write_text("".join(times))
    return voice, texts, seconds


def synthesise(
    out: Path, *, seed: int = 0, num_jobs: int = 1, spec_path: Path = SPEC, limit: int | None = None
) -> dict[str, PartStats]:
    """Write the corpus to `out`, in full or not at all; return statistics by part. limit: most utterances of each voice.

    Replaces an earlier corpus. Raises `UserError` if the spec is wrong, eSpeak NG does not load, or `out` has something else.
    """
    spec = load_spec(spec_path)
    speakers = out / "SPEAKERS.TXT"
    ours = speakers.is_file() and speakers.read_text().startswith(SPEAKERS_HEADER)
    if not ours and out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty and not a synthesised corpus; name an empty or new folder")
    with atomic_folder(out) as work:
        tasks = [
            Task(v, spec, 60 * spec.parts[v.part].minutes / spec.parts[v.part].voices, limit, seed, work)
            for v in assign_voices(spec, seed)
        ]
        return run_tasks(tasks, num_jobs, work)


def run_tasks(tasks: Sequence[Task], num_jobs: int, work: Path) -> dict[str, PartStats]:
    """Run each task in its own process, since eSpeak NG keeps state, and list the voices in SPEAKERS.TXT."""
    stats: dict[str, PartStats] = {}
    rows = []
    results = each_in_a_process(speak, tasks, max(num_jobs, 1), "synthesis")
    for voice, texts, seconds in progress(results, total=len(tasks), desc="synthesis", unit="voices"):
        part = stats.setdefault(voice.part, PartStats())
        part.minutes += seconds / 60
        part.utterances += len(texts)
        part.voices += 1
        part.words.update(" ".join(texts).split())
        rows.append(
            f"{voice.id} | {voice.sex} | {voice.part} | {seconds / 60:.2f} | "
            f"{voice.name} rate={voice.rate} pitch={voice.pitch} range={voice.range}\n"
        )
    (work / "SPEAKERS.TXT").write_text(SPEAKERS_HEADER + "".join(rows))
    return stats
