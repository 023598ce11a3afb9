"""The one reader of audio, for preparation, training and streaming. Importing it makes it lhotse's audio backend.

libsndfile reads most formats. ffmpeg converts the others, if it is installed (sph2pipe also converts compressed .sph).
lhotse itself then opens nothing but files and bytes in memory: it runs no command and fetches no URL.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from local.common.text_files import is_file
from local.corpus.commands import CommandFailed, run
from local.corpus.mpeg import states_length, with_length
from local.corpus.resampling import resampler

import numpy as np
import soundfile
from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend
from lhotse.audio.source import AudioSource
from lhotse.augmentation import AudioTransform
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples

Source = str | Path | io.BytesIO
BLOCK = 1 << 18  # samples, of all channels, decoded at a time
HEAD = 1024  # bytes: NIST SPHERE has the longest header that is read here
UNKNOWN_FRAMES = 1 << 40  # libsndfile's number of frames is larger if the file does not state it
LOWEST_RATE, HIGHEST_RATE = 1000, 768_000  # Hz; a lower rate cannot carry speech, no device has a higher one
MOST_CHANNELS = 256
MOST_SAMPLES = 1 << 32  # of all channels: 74 hours at 16 kHz. A few kB of FLAC can hold as much silence
MOST_LOADED = 1 << 30  # samples of all channels that are loaded together: 18 hours at 16 kHz
MOST_BYTES = 2 << 30  # of a file that is read into memory as a whole
QUIET_FORMATS = (b"RIFF", b"fLaC", b"OggS")  # their decoders write nothing to standard error
CHUNKS = (b"LIST", b"fact", b"bext", b"smpl", b"cue ", b"id3 ", b"ID3 ", b"PEAK", b"_PMX", b"JUNK")  # may follow an empty one
FOREIGN = re.compile(rb"....ftyp|\x1aE\xdf\xa3|0&\xb2u|#!AMR|\xff[\xf0\xf1\xf8\xf9]|FLV\x01|MAC |wvpk|TTA1", re.DOTALL)
# MP4 and M4A, WebM and Matroska, WMA, AMR, AAC, FLV, Monkey's Audio, WavPack, True Audio


class BadAudio(Exception):
    """Audio cannot be used: the kind of problem, the same for all files that have it, and the particulars of this one."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        """Return `kind (detail)`."""
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


class Unseekable(soundfile.SoundFile):
    """FLAC that was written to a pipe does not state its length; libsndfile cannot seek in it."""

    def seekable(self) -> bool:
        """Return False, so that soundfile only reads on."""
        return False


@contextlib.contextmanager
def open_audio(source: Source) -> Iterator[soundfile.SoundFile]:
    """Open a file, or one in memory. Raises `BadAudio`, and what soundfile raises for a damaged file."""
    head = first_bytes(source)
    with quiet() if head[:4] not in QUIET_FORMATS else contextlib.nullcontext():
        with _opened(_readable(source, head), head) as f:
            check_size(f.samplerate, f.channels, f.frames if f.frames < UNKNOWN_FRAMES else 0)
            if f.frames < UNKNOWN_FRAMES:
                yield f
                return
        with Unseekable(_unnamed(source)) as f:
            yield f


def check_size(rate: int, channels: int, frames: int, most: int | None = None) -> None:
    """Raise `BadAudio` if a sampling rate (Hz), or a number of channels or of samples per channel, is too small or too large.

    most: samples of all channels together, by default `MOST_SAMPLES`.
    """
    most = MOST_SAMPLES if most is None else most
    if rate < LOWEST_RATE:
        raise BadAudio("sampling rate too low for speech", f"{rate} Hz")
    if rate > HIGHEST_RATE:
        raise BadAudio("sampling rate too high", f"{rate} Hz; the highest is {HIGHEST_RATE} Hz")
    if channels > MOST_CHANNELS:
        raise BadAudio("too many channels", f"{channels}; the most are {MOST_CHANNELS}")
    if channels * frames > most:
        raise BadAudio("audio too long", f"more than {most} samples; cut it")


def _opened(source: Source, head: bytes) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(_unnamed(source))
    except soundfile.LibsndfileError:
        if head.startswith(b"NIST_1A"):
            return soundfile.SoundFile(convert(source, ("sph2pipe", "ffmpeg")))
        if isinstance(source, str | Path) and Path(source).suffix.lower() == ".raw":
            raise BadAudio("audio without a header", "convert it to WAV or FLAC; only you know its rate") from None
        raise


def _readable(source: Source, head: bytes) -> Source:
    """Return what libsndfile reads wholly: converted audio, MP3 with its length, WAV whose header does not deny its samples."""
    if FOREIGN.match(head):
        return convert(source, ("ffmpeg",))
    if not states_length(head):
        data = _all_bytes(source)
        found = with_length(data)
        return source if found is data else io.BytesIO(found)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE" and (place := data_chunk(head)) and place[1] == 0:
        data, start = _all_bytes(source), place[0]
        if len(data) - start >= 8 and data[start : start + 4] not in CHUNKS:
            return io.BytesIO(data[: start - 4] + struct.pack("<I", min(len(data) - start, 0xFFFFFFFE)) + data[start:])
    return source


def data_chunk(head: bytes) -> tuple[int, int] | None:
    """Return where the data of a WAV begin, in bytes, and the stated size; None if `head` does not reach that far."""
    place = 12
    while place + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, place)
        place += 8
        if name == b"data":
            return place, size
        place += size + size % 2
    return None


def first_bytes(source: Source) -> bytes:
    """Return the first bytes, up to `HEAD`. Raises `BadAudio` if there is no such file."""
    if isinstance(source, io.BytesIO):
        return source.getbuffer()[:HEAD].tobytes()
    if not is_file(Path(source)):
        raise BadAudio("missing audio file")
    with open(source, "rb") as f:
        return f.read(HEAD)


def _unnamed(source: Source) -> int | io.BytesIO:
    """Return what libsndfile opens and closes: a descriptor, as it would guess the format from the ending of a name."""
    if isinstance(source, io.BytesIO):
        source.seek(0)
        return source
    return os.open(source, os.O_RDONLY)


def _all_bytes(source: Source) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()
    if (size := os.path.getsize(source)) > MOST_BYTES:
        raise BadAudio("audio too long", f"{size} bytes; cut it, or convert it to FLAC")
    return Path(source).read_bytes()


def convert(source: Source, programs: tuple[str, ...]) -> io.BytesIO:
    """Return the audio as WAV, made by the first program that is installed. Raises `BadAudio` if none is, or it fails."""
    program = next(filter(shutil.which, programs), None)
    if program is None:
        names = " or ".join(programs)
        raise BadAudio(f"needs {names}", f"libsndfile cannot read this format; install {names}, or convert the file to FLAC")
    with tempfile.TemporaryFile() as copy:
        path = f"/dev/fd/{copy.fileno()}"
        if isinstance(source, io.BytesIO):  # these programs seek in their input
            copy.write(source.getbuffer())
            copy.seek(0)  # on macOS /dev/fd shares the place in the file
        else:
            path = os.path.abspath(source)  # no option, no protocol of ffmpeg's
        command = [program, "-f", "wav", "-p", path]
        if program == "ffmpeg":
            options = "-nostdin -v error -xerror -protocol_whitelist file -i".split()
            command = [program, *options, f"file:{path}", *"-map 0:a:0 -c:a pcm_f32le -f wav pipe:1".split()]
        out = io.BytesIO()
        try:
            run(command, out, files=(copy.fileno(),))
        except CommandFailed as e:
            raise BadAudio("unreadable audio file", f"{program}: {e}") from None
    return out


def read_audio(source: Source, offset: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """Return `duration` seconds (None: all) of samples (C, S), float32, from `offset` seconds on, and the rate in Hz.

    Returns fewer samples at the end of the audio. Raises `BadAudio`, and what soundfile raises for a damaged file.
    """
    with open_audio(source) as f:
        first = compute_num_samples(offset, f.samplerate) if offset > 0 else 0
        count = -1 if duration is None else compute_num_samples(duration, f.samplerate)
        if f.seekable():
            check_size(f.samplerate, f.channels, f.frames - first if count < 0 else count, MOST_LOADED)
            if first:  # seeking to the beginning changes the last bits of MP3
                f.seek(first)
            return f.read(count, dtype="float32", always_2d=True).T, f.samplerate
        blocks, place = [np.empty((0, f.channels), dtype=np.float32)], 0
        while (count < 0 or place < first + count) and len(block := read_block(f)):
            check_size(f.samplerate, f.channels, place + len(block) - first, MOST_LOADED)
            blocks.append(block[max(0, first - place) :])
            place += len(block)
        return np.concatenate(blocks)[: None if count < 0 else count].T, f.samplerate


def read_block(f: soundfile.SoundFile) -> np.ndarray:
    """Return the next samples (S, C), float32; none at the end."""
    return f.read(max(1, BLOCK // f.channels), dtype="float32", always_2d=True)


class Reader(LibsndfileBackend):
    """lhotse's backend that calls `read_audio`; writing is libsndfile's."""

    def read_audio(
        self,
        path_or_fd: Source,
        offset: float = 0.0,
        duration: float | None = None,
        force_opus_sampling_rate: int | None = None,
    ) -> tuple[np.ndarray, int]:
        """Return samples (C, S) and the rate; see `read_audio`."""
        return read_audio(path_or_fd, offset, duration)

    def is_applicable(self, path_or_fd: Source) -> bool:
        """Return True: this backend reads everything that can be read."""
        return True


def _from_file_or_memory(source: AudioSource, offset: float, duration: float | None) -> Source:
    """Return what `Reader` opens for a source. Raises `BadAudio` for a command or a URL; `ShardStore` may replace these."""
    if source.type == "file" and isinstance(source.source, str):
        return source.source
    if source.type == "memory" and isinstance(source.source, bytes):
        return io.BytesIO(source.source)
    raise BadAudio("source that is neither a file nor in memory", f"type {source.type}: {str(source.source)[:200]}")


set_current_audio_backend(Reader())
AudioSource._prepare_for_reading = _from_file_or_memory  # type: ignore[method-assign]
assert resampler  # importing it makes it lhotse's


def load_audio(cut: Cut) -> np.ndarray:
    """Return the samples (1, S) of a cut, as training uses them. Raises `ValueError` if it has several channels, and others."""
    samples = cut.load_audio()
    if samples is None or samples.ndim != 2 or samples.shape[0] != 1:
        raise ValueError("no audio" if samples is None else f"audio of {samples.shape[0]} channels")
    return samples


@dataclass
class Downmix(AudioTransform):
    """lhotse's transforms have no mean of the channels; see `mixed` of local.data.channels. lhotse finds it by its name."""

    def __call__(self, samples: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Return the mean (1, S) of the channels (C, S)."""
        return samples.mean(axis=0, keepdims=True)

    def reverse_timestamps(self, offset: float, duration: float | None, sampling_rate: int) -> tuple[float, float | None]:
        """Return the times unchanged."""
        return offset, duration


_lock, _users, _saved = threading.Lock(), 0, -1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send file descriptor 2 to nowhere: libmpg123 writes notes there, also about files that it decodes completely.

    Its errors are still raised. Threads that decode at the same time share the redirection.
    """
    global _users, _saved
    with _lock:
        if _users == 0:
            _saved = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                os.dup2(_saved, 2)
                os.close(_saved)
