"""eSpeak NG through ctypes; its library and voices come in the PyPI package `espeakng-loader`.

The output depends on all earlier calls. A new process that says the same texts in the same order gives the same samples.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from local.common.errors import UserError

import numpy as np

# From speak_lib.h of eSpeak NG 1.52.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
POS_CHARACTER = 1
CHARS_UTF8 = 1
RATE, PITCH, RANGE = 1, 3, 4
LIST_TERMINATED, WORD = 0, 1


class Event(ctypes.Structure):
    """espeak_EVENT: something, such as a word, that starts at `sample` of the current text."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def load_library() -> tuple[ctypes.CDLL, Path]:
    """Return the shared library and the folder of `espeak-ng-data`. Raises `UserError` if the library does not load."""
    try:
        import espeakng_loader

        path, data = espeakng_loader.get_library_path(), Path(espeakng_loader.get_data_path())
    except (ImportError, RuntimeError) as e:
        raise UserError(f"eSpeak NG is needed to synthesise speech: pip install espeakng-loader ({e})") from e
    try:
        return ctypes.CDLL(path), data
    except OSError as e:
        raise UserError(f"{path}: eSpeak NG's library does not load on this machine: {e}") from e


class Speaker:
    """One eSpeak NG instance; at most one per process."""

    def __init__(self, seed: int = 0) -> None:
        """Load the library; `seed` fixes its noise and flutter. Raises `UserError` if library or voices are missing."""
        self.lib, data = load_library()
        # Without a path it would take the system's eSpeak NG, or end the process without one.
        rate = self.lib.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), INITIALIZE_DONT_EXIT)
        if rate <= 0:
            raise UserError(f"{data}: eSpeak NG finds no voices in it; reinstall espeakng-loader")
        self.sampling_rate = int(rate)
        self.chunks: list[np.ndarray] = []
        self.word_starts: list[int] = []  # first sample of each word of the last text
        self.callback = CALLBACK(self._collect)  # kept alive here: the library has a bare pointer to it
        self.lib.espeak_SetSynthCallback(self.callback)
        uint, pointer = ctypes.c_uint, ctypes.c_void_p
        text: list[Any] = [ctypes.c_char_p, ctypes.c_size_t]
        self.lib.espeak_Synth.argtypes = [*text, uint, ctypes.c_int, uint, uint, pointer, pointer]
        self.lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self.lib.espeak_ng_SetRandSeed(seed)

    def _collect(self, wav: Any, count: int, events: Any) -> int:
        if wav and count > 0:
            self.chunks.append(np.ctypeslib.as_array(wav, (count,)).copy())
        place = 0
        while events and events[place].type != LIST_TERMINATED:
            if events[place].type == WORD:
                self.word_starts.append(events[place].sample)
            place += 1
        return 0

    def set_voice(self, name: str, rate: int, pitch: int, pitch_range: int) -> None:
        """Set the voice `name` (`en-us+f2`), `rate` in words per minute, pitch and its range (0 to 99)."""
        if self.lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"eSpeak NG has no voice {name!r}")
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, pitch_range)):
            self.lib.espeak_SetParameter(parameter, value, 0)

    def say(self, text: str) -> np.ndarray:
        """Return int16 samples (n,) of `text` at `self.sampling_rate`."""
        self.chunks.clear()
        self.word_starts.clear()
        raw = text.encode()
        status = self.lib.espeak_Synth(raw, len(raw) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        if status != 0 or self.lib.espeak_Synchronize() != 0:
            raise UserError(f"eSpeak NG could not say {text!r}")
        return np.concatenate(self.chunks) if self.chunks else np.zeros(0, np.int16)
