"""What the doctor hears in an utterance: level, offset, clipping, zeros, band, and a fingerprint to find it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from local.common.errors import UserError, described
from local.common.processes import cores
from local.corpus.audio_files import level
from local.corpus.audio_reading import BadAudio, load_audio, read_audio
from local.corpus.shard_store import ShardStore, name_of
from local.health.prepared import Utterance

import numpy as np
from lhotse.cut import MonoCut

HEARD = 60.0  # seconds of an utterance, its first ones; some last hours
HOP, WINDOW = 0.01, 0.032  # seconds between frames of the spectrum, and of each
BANDS = np.geomspace(150, 3600, 17)  # Hz, edges of the fingerprint's bands, which a telephone line carries
STEPS = 32  # of time in a rough fingerprint
SPEECH, HIGH = (300.0, 3400.0), (5000.0, 7500.0)  # Hz: what a telephone line carries, and what it does not
DEPTH = 40.0  # dB below its loudest frame that a fingerprint keeps, so that faint noise does not matter
QUIET, SMOOTH = 30.0, 5  # dB below the loudest frame where speech begins and ends, by means over so many frames
OVERLAP = 0.8
FLAT = 1.5 / 32768  # samples so near to the largest one are as large, with 16 bits


class Heard(NamedTuple):
    """One utterance's audio at the rate of its file. Amplitudes are shares of full scale."""

    level: float  # dB of full scale
    mean: float
    clipped: float  # share of the samples that are cut off at the largest value, three or more in a row
    zeros: float  # seconds of the longest run of zeros, at the ends of the utterance or within
    high: float  # dB of what lies above a telephone's band, relative to what lies in it; NaN if the rate has no such band
    same_channels: bool  # whether the file has several channels, all with the same samples
    print: np.ndarray  # rough fingerprint (STEPS * 16,) float16, unit length; see `rough_print`


def listen(cuts: Iterable[tuple[Utterance, MonoCut | UserError]], store: ShardStore) -> Iterator[tuple[Utterance, Heard | str]]:
    """Yield each utterance with what is heard in it, or with the reason why it cannot be loaded. Threads read the files."""

    def one(pair: tuple[Utterance, MonoCut | UserError]) -> tuple[Utterance, Heard | str]:
        utterance, cut = pair
        if isinstance(cut, UserError):
            return utterance, str(cut)
        try:
            return utterance, hear(*samples_of(cut, store))
        except BadAudio as e:
            return utterance, f"{e}: {name_of(cut.recording.sources[0])}"
        except Exception as e:  # lhotse and its transforms raise exceptions of all types
            return utterance, f"{described(e)}: {name_of(cut.recording.sources[0])}"

    with ThreadPoolExecutor(max(1, cores())) as pool:
        yield from pool.map(one, cuts)


def samples_of(cut: MonoCut, store: ShardStore) -> tuple[np.ndarray, int, bool]:
    """Return samples (S,) of a cut, their rate, and whether its file has several channels that are all the same.

    They are the first `HEARD` seconds, from the file: resampling would hide clipping. With other transforms they are what
    training gets. Raises `BadAudio`, and what libraries raise.
    """
    names = {t["name"] if isinstance(t, dict) else type(t).__name__ for t in cut.recording.transforms or ()}
    if names - {"Resample"} or len(cut.recording.sources) > 1:
        whole = store.with_audio_loaded(cut)
        return load_audio(whole.truncate(duration=min(cut.duration, HEARD)))[0], cut.sampling_rate, False
    source = cut.recording.sources[0]
    rows, rate = read_audio(store.open(source), cut.start, min(cut.duration, HEARD))
    if not rows.size:
        raise BadAudio("no samples")
    x = rows[source.channels.index(cut.channel)]
    if not np.isfinite(x).all():
        raise BadAudio("samples that are not numbers")
    return x, rate, len(rows) > 1 and bool((rows == rows[0]).all())


def hear(x: np.ndarray, rate: int, same_channels: bool = False) -> Heard:
    """Return what is heard in samples (S,) at `rate` Hz."""
    mean = float(x.mean())
    power = float(np.square(x, dtype=np.float64).mean()) - mean**2
    spectrum = spectrum_of(x, rate)
    return Heard(
        level(max(power, 0.0)), mean, clipped(x), longest_zeros(x) / rate, high_band(spectrum, rate), same_channels,
        rough_print(fine_print(spectrum, rate)),
    )  # fmt: skip


def clipped(x: np.ndarray) -> float:
    """Return the share of samples at the largest or at the smallest value, counted from the third one in a row on."""
    if np.abs(x).max() < 0.05:  # of quiet audio few values are left, so that neighbours are often equal
        return 0.0
    count = 0
    for at in (x >= x.max() - FLAT, x <= x.min() + FLAT):
        count += int((at[2:] & at[1:-1] & at[:-2]).sum())
    return count / len(x)


def longest_zeros(x: np.ndarray) -> int:
    """Return the length of the longest run of zeros."""
    others = np.flatnonzero(x)
    return int(np.diff(others, prepend=-1, append=len(x)).max()) - 1


def spectrum_of(x: np.ndarray, rate: int) -> np.ndarray:
    """Return the power spectrum (T, K), K frequencies from 0 to rate / 2, of Hann windows.

    Zeros are put around the samples, so that fingerprints with and without silence at the ends are alike.
    """
    size, hop = round(WINDOW * rate), round(HOP * rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(x, size + SMOOTH * hop), size)[::hop]
    return np.square(np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32)))).astype(np.float32)


def between(spectrum: np.ndarray, rate: int, low: float, high: float) -> np.ndarray:
    """Return the mean power (T,) of the frequencies from `low` to `high` Hz."""
    first, last = (round(f / (rate / 2) * (spectrum.shape[1] - 1)) for f in (low, high))
    return spectrum[:, first : max(last, first + 1)].mean(1)


def high_band(spectrum: np.ndarray, rate: int) -> float:
    """Return the power above a telephone's band in the frames with most of it, in dB of that band's; NaN below 16 kHz."""
    if rate < 2 * HIGH[1]:
        return float("nan")
    edge = SMOOTH + round(WINDOW / HOP) + 1  # frames with the zeros around, before which audio may break off
    inner = spectrum[edge:-edge] if len(spectrum) > 2 * edge else spectrum
    high, speech = (np.quantile(between(inner, rate, *band), 0.95) for band in (HIGH, SPEECH))
    return float(10 * np.log10((high + 1e-20) / (speech + 1e-20)))


def fine_print(spectrum: np.ndarray, rate: int) -> np.ndarray:
    """Return dB (T, 16) of the bands from the first frame of speech to the last, the loudest band at 0.

    Gain, silence around the speech, the rate and the codec change it little.
    """
    power = np.stack([between(spectrum, rate, low, high) for low, high in zip(BANDS, BANDS[1:], strict=False)], axis=1)
    loudness = np.convolve(power.sum(1), np.ones(SMOOTH) / SMOOTH, "same")
    speech = np.flatnonzero(loudness >= 10 ** (-QUIET / 10) * loudness.max())
    x = 10 * np.log10(power + 1e-20)
    return np.maximum(x - x.max(), -DEPTH)[speech[0] : speech[-1] + 1]


def rough_print(x: np.ndarray) -> np.ndarray:
    """Return a fingerprint of unit length (STEPS * 16,), whatever the duration: means over STEPS parts of the time."""
    edges = np.linspace(0, len(x), STEPS + 1)
    sums = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0)])
    at = np.stack([np.interp(edges, np.arange(len(sums)), column) for column in sums.T], axis=1)
    return normal(np.diff(at, axis=0)).reshape(-1).astype(np.float16)


def normal(x: np.ndarray) -> np.ndarray:
    """Return x (T, 16) without each band's mean, which a microphone or a codec changes, and of unit length."""
    x = x - x.mean(0)
    return x / max(float(np.sqrt(np.square(x).sum())), 1e-9)


def likeness(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of two fine fingerprints that begin up to some frames apart; 1: the same audio.

    It is 0 if less than `OVERLAP` of the longer one is common.
    """
    loudness = np.correlate(normal(x).sum(1), normal(y).sum(1), "full")
    best, peak = 0.0, int(loudness.argmax()) - len(y) + 1
    for lag in (peak - 1, peak, peak + 1):
        a, b = x[max(lag, 0) :], y[max(-lag, 0) :]
        n = min(len(a), len(b))
        if n > 1 and n >= OVERLAP * max(len(x), len(y)):
            best = max(best, float((normal(a[:n]) * normal(b[:n])).sum()))
    return best
