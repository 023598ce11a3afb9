"""Checks for what is in two parts: ids, speakers, audio under another name, gain, codec, rate or with other silence."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from local.health import duplicates
from local.health.duplicates import check_ids, check_same_audio, check_speakers
from tests.health.prepared_data import RATE, Folder, Spoken, run, speech, talk, words, write_data

import numpy as np
import pytest
import soundfile

Change = Callable[[np.ndarray], tuple[np.ndarray, int]]


def through(codec: str, subtype: str) -> Change:
    """Return a function that encodes and decodes samples."""

    def change(x: np.ndarray) -> tuple[np.ndarray, int]:
        file = io.BytesIO()
        soundfile.write(file, x, RATE, format=codec, subtype=subtype)
        file.seek(0)
        return soundfile.read(file, dtype="float32")

    return change


def with_silence(x: np.ndarray) -> tuple[np.ndarray, int]:
    return np.concatenate([np.zeros(RATE // 4, np.float32), x, np.zeros(RATE // 2, np.float32)]), RATE


def halved(x: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the samples at half the rate, with half the gain."""
    spectrum = np.fft.rfft(x)
    return (0.25 * np.fft.irfft(spectrum[: len(x) // 4 + 1], len(x) // 2)).astype(np.float32), RATE // 2


CHANGES: dict[str, Change] = {
    "none": lambda x: (x, RATE),
    "gain": lambda x: (0.1 * x, RATE),
    "silence": with_silence,
    "ogg": through("OGG", "VORBIS"),
    "mp3": through("MP3", "MPEG_LAYER_III"),
    "rate": halved,
}


def copied(original: Spoken, name: str, change: Change, text: str) -> Spoken:
    """Return an utterance of the same audio, changed, under another name."""
    assert isinstance(original.samples, np.ndarray)
    samples, rate = change(original.samples)
    return Spoken(name, text, samples, rate=rate)


@pytest.fixture(scope="module")
def different(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    parts = {part: talk(part) for part in ("train", "dev", "test")}
    return write_data(tmp_path_factory.mktemp("different"), parts, ["test"])


def test_ids_is_quiet(tmp_path: Path) -> None:
    same_names = [replace(u, id=u.id.replace("dev", "train"), seconds=u.seconds + 1) for u in words("dev", 30)]
    assert run(check_ids, write_data(tmp_path, {"train": words("train", 60), "dev": same_names})) == []


def test_ids_is_quiet_if_a_part_is_dev_and_test(tmp_path: Path) -> None:
    folder = write_data(tmp_path, {"train": words("train", 60), "dev": words("dev", 30)})
    path = folder.path / "corpus.yaml"
    path.write_text(path.read_text().replace("test: []", "test: [dev]"))
    assert run(check_ids, folder) == [] == run(check_speakers, folder)


def test_ids_fires(tmp_path: Path) -> None:
    train = words("train", 60)
    parts = {"train": train, "dev": [*words("dev", 30), *train[3:5]], "test": [*words("test", 30), train[3]]}
    found = run(check_ids, write_data(tmp_path, parts, ["test"]))
    assert [f.level for f in found] == 3 * ["error"]  # train and dev, train and test, dev and test
    assert any("2 of 32" in f.what and "train-0003" in f.what and "'dev'" in f.what for f in found)


def test_speakers_is_quiet(tmp_path: Path) -> None:
    assert run(check_speakers, write_data(tmp_path / "a", {"train": words("train", 60), "dev": words("dev", 30)})) == []
    few = {part: [replace(u, speaker=str(n % 3)) for n, u in enumerate(words(part, 30))] for part in ("train", "dev")}
    assert run(check_speakers, write_data(tmp_path / "b", few)) == []
    each = {part: [replace(u, speaker=str(n)) for n, u in enumerate(words(part, 30))] for part in ("train", "dev")}
    assert run(check_speakers, write_data(tmp_path / "c", each)) == []  # the speakers are numbers of utterances
    unknown = {part: [replace(u, speaker=None) for u in words(part, 30)] for part in ("train", "dev")}
    assert run(check_speakers, write_data(tmp_path / "d", unknown)) == []


def test_speakers_fires(tmp_path: Path) -> None:
    train, dev = words("train", 60), words("dev", 30)
    dev[4].speaker = dev[5].speaker = "train-7"
    (found,) = run(check_speakers, write_data(tmp_path, {"train": train, "dev": dev}))
    assert found.level == "warning" and "train-7" in found.what and "2 of its 30" in found.what


def test_same_audio_is_quiet(different: Folder) -> None:
    assert run(check_same_audio, different) == []


@pytest.mark.parametrize("change", CHANGES)
def test_same_audio_fires(tmp_path: Path, change: str) -> None:
    """The copy has another text, so only its sound gives it away."""
    train = talk("train")
    copies = [copied(train[n], f"copy-{n}", CHANGES[change], "TEN") for n in (3, 8, 15)]
    (found,) = run(check_same_audio, write_data(tmp_path, {"train": train, "dev": [*talk("dev"), *copies]}))
    assert found.level == "error" and "3 of 23" in found.what and "copy-3=train-003" in found.what


def test_same_audio_fires_outside_the_sample_if_the_text_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.health.audio.SAMPLE", 3)
    train = talk("train")
    copies = [copied(u, f"copy-{u.id}", CHANGES["mp3"], u.text) for u in train]
    (found,) = run(check_same_audio, write_data(tmp_path, {"train": train, "dev": copies}), every=False)
    assert "20 of 20" in found.what


def test_same_audio_fires_for_at_most_so_many_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PAIRS", 2)
    train = talk("train")
    copies = [copied(u, f"copy-{u.id}", CHANGES["none"], u.text) for u in train]
    (found,) = run(check_same_audio, write_data(tmp_path, {"train": train, "dev": copies}), every=False)
    assert "2 of 20" in found.what


def test_same_audio_is_quiet_about_the_same_words(tmp_path: Path) -> None:
    parts = {p: [Spoken(f"{p}-{n}", "ONE", speech(n + 100 * i)) for n in range(9)] for i, p in enumerate(("train", "dev"))}
    assert run(check_same_audio, write_data(tmp_path, parts)) == []


def test_same_audio_is_quiet_about_audio_that_cannot_be_loaded(tmp_path: Path) -> None:
    parts = {part: [Spoken(f"{part}-{n}", "ONE", b"not audio") for n in range(3)] for part in ("train", "dev")}
    assert run(check_same_audio, write_data(tmp_path, parts)) == []
