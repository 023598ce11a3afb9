"""Checks of audio: each fires for a few spoilt files of a part, and is quiet about sounds that are whole."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

from local.common.errors import UserError
from local.corpus import shard_store
from local.health import listening
from local.health.audio import (
    OFFSET,
    check_audio,
    check_band,
    check_channels,
    check_clipping,
    check_level,
    check_offset,
    check_rates,
    check_silence,
    check_zeros,
)
from local.health.finding import Finding
from local.health.prepared import read_prepared
from tests.health.prepared_data import RATE, Folder, Spoken, run, speech, talk, words, write_data

import numpy as np
import pytest

QUIET_CHECKS = (check_audio, check_silence, check_zeros, check_clipping, check_offset, check_level, check_rates, check_band)


def with_spoilt(root: Path, *spoilt: Spoken) -> Folder:
    """Return data with whole utterances in `train` and `dev`, and spoilt ones in `dev`."""
    return write_data(root, {"train": talk("train"), "dev": [*talk("dev"), *spoilt]})


def samples(spoken: Spoken) -> np.ndarray:
    assert isinstance(spoken.samples, np.ndarray)
    return spoken.samples


def named(found: list[Finding], name: str = "bad") -> bool:
    """Return whether there is one finding, of part dev, that names the spoilt utterance and no other."""
    return len(found) == 1 and "1 of 21" in found[0].what and "'dev'" in found[0].what and f"({name})" in found[0].what


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_data(tmp_path_factory.mktemp("whole"), {"train": talk("train"), "dev": talk("dev")})


@pytest.mark.parametrize("content", [b"", b"not audio", b"RIFF\x00\x00\x00\x00WAVEfmt ", None])
def test_audio_fires(tmp_path: Path, content: bytes | None) -> None:
    folder = with_spoilt(tmp_path, Spoken("bad\x1b[31m", "ONE", content))
    (found,) = run(check_audio, folder)
    assert found.level == "warning" and "1 of 21" in found.what and "bad" in found.what and "\x1b" not in str(found)
    assert len(str(found).splitlines()) == 1
    (found,) = run(check_audio, folder, "data.max_lost=0.01")
    assert found.level == "error"
    (found,) = run(check_audio, folder, "data.max_lost=0.01", "features.type=precomputed")
    assert found.level == "warning"  # training needs no audio


def test_audio_fires_for_a_damaged_line(tmp_path: Path) -> None:
    """The line has what checks of texts need, but is not a cut."""
    folder = with_spoilt(tmp_path)
    path = folder.path / "cuts" / "dev.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().replace('"channel_ids": [0]', '"channel_ids": 7', 1)
    path.write_bytes(gzip.compress(lines.encode()))
    (found,) = run(check_audio, folder)
    assert "1 of 20" in found.what and f"{path}:1" in found.what
    assert run(check_zeros, folder) == []


def test_audio_is_quiet(whole: Folder) -> None:
    assert run(check_audio, whole) == []


def test_audio_is_quiet_about_audio_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_store, "fetch", pytest.fail)
    remote = [Spoken(f"r-{n}", source=f"https://example.invalid/{n}.wav") for n in range(3)]
    found = list(check_audio((folder := with_spoilt(tmp_path, *remote)).path, folder.cfg(), True))
    assert [f.level for f in found] == ["note"] and "3 utterances of part 'dev'" in found[0].what


def test_audio_is_heard_to_a_limit(whole: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An utterance may last hours."""
    monkeypatch.setattr(listening, "HEARD", 0.25)
    prepared = read_prepared(whole.path, whole.cfg())
    for utterance, cut in prepared.cuts("dev", prepared.parts["dev"]):
        assert not isinstance(cut, UserError) and utterance.seconds == cut.duration
        assert len(listening.samples_of(cut, prepared.store())[0]) == RATE // 4
        slow = cut.perturb_speed(0.5)
        assert len(listening.samples_of(slow, prepared.store())[0]) == RATE // 4


def test_a_sample_is_said_to_be_one(whole: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.health.audio.SAMPLE", 3)
    found = list(check_audio(whole.path, whole.cfg(), False))
    assert [f.level for f in found] == ["note"] and "6 of 40" in found[0].what
    prepared = read_prepared(whole.path, whole.cfg())
    assert prepared.sample("dev", 3) == prepared.sample("dev", 3) != prepared.sample("dev", None)[:3]


def test_silence_fires(tmp_path: Path) -> None:
    """Preparation has marked it; its audio is not read again."""
    assert named(run(check_silence, with_spoilt(tmp_path, Spoken("bad", silent=True))))


def test_silence_is_quiet(whole: Folder) -> None:
    assert run(check_silence, whole) == []


@pytest.mark.parametrize("place", [0, 1, 2])
def test_zeros_fires(tmp_path: Path, place: int) -> None:
    pieces = [speech(1), speech(2)]
    pieces.insert(place, np.zeros(RATE + 1, np.float32))
    folder = with_spoilt(tmp_path, Spoken("bad", samples=np.concatenate(pieces)))
    assert named(run(check_zeros, folder))
    assert run(check_zeros, folder, "augment.silence_prob=0.1") == []


def test_zeros_is_quiet(tmp_path: Path) -> None:
    gap = np.concatenate([speech(1), np.zeros(RATE // 2, np.float32), speech(2)])
    assert run(check_zeros, with_spoilt(tmp_path, Spoken("gap", samples=gap))) == []


@pytest.mark.parametrize(("rate", "level"), [(RATE, 1.0), (RATE, 0.3), (44100, 1.0)])
def test_clipping_fires(tmp_path: Path, rate: int, level: float) -> None:
    """Clipping is seen after the level was lowered, too, and in the file, before it is resampled."""
    x = level * np.clip(50 * speech(1, 2.0, rate), -0.99, 0.99)
    assert named(run(check_clipping, with_spoilt(tmp_path, Spoken("bad", samples=x, rate=rate))))


def test_clipping_is_quiet(tmp_path: Path) -> None:
    loud, quiet = speech(1, 2.0), np.round(speech(1, 2.0) * 100) / 32768
    tone = 0.5 * np.sin(2 * np.pi * 125 * np.arange(RATE) / RATE)
    spoken = [Spoken(str(n), samples=x) for n, x in enumerate((loud / np.abs(loud).max(), quiet, tone, np.zeros(RATE)))]
    assert run(check_clipping, with_spoilt(tmp_path, *spoken)) == []


def test_offset_fires(tmp_path: Path) -> None:
    assert named(run(check_offset, with_spoilt(tmp_path, Spoken("bad", samples=speech(1) - 2 * OFFSET))))


def test_offset_is_quiet(tmp_path: Path) -> None:
    assert run(check_offset, with_spoilt(tmp_path, Spoken("less", samples=speech(1) + OFFSET / 2))) == []


@pytest.mark.parametrize("offset", [0.0, 0.02])
def test_level_fires(tmp_path: Path, offset: float) -> None:
    """An offset is not a level."""
    assert named(run(check_level, with_spoilt(tmp_path, Spoken("bad", samples=speech(1) / 30 + offset))))


def test_level_fires_for_parts_of_different_levels(tmp_path: Path) -> None:
    loud, quiet = ([replace(u, samples=gain * samples(u)) for u in talk(part)] for part, gain in (("train", 4), ("dev", 0.5)))
    (found,) = run(check_level, write_data(tmp_path, {"train": loud, "dev": quiet}))
    assert "'dev'" in found.what and "18 dB" in found.what


def test_level_is_quiet(tmp_path: Path) -> None:
    """Silence is another finding."""
    folder = with_spoilt(tmp_path, Spoken("other", samples=speech(1) / 5), Spoken("silent", samples=np.zeros(RATE)))
    assert run(check_level, folder) == []


def test_rates_fires(tmp_path: Path) -> None:
    mixed = [*talk("train", 18), *talk("telephone", 2, rate=8000, highest=3900)]
    (found,) = run(check_rates, write_data(tmp_path, {"train": mixed, "dev": talk("dev")}))
    assert "2 of 20" in found.what and "0 of 20" in found.what and "8000" in found.what


def test_rates_fires_if_all_are_low(tmp_path: Path) -> None:
    parts = {part: [replace(u, rate=8000) for u in words(part, 30)] for part in ("train", "dev")}
    folder = write_data(tmp_path, parts)
    (found,) = run(check_rates, folder)
    assert "features.sampling_rate=8000" in found.fix and "30 of 30" in found.what
    assert run(check_rates, folder, "features.sampling_rate=8000") == []


def test_rates_is_quiet(tmp_path: Path) -> None:
    parts = {part: [replace(u, rate=rate) for u in words(part, 30)] for part, rate in (("train", 16000), ("dev", 44100))}
    assert run(check_rates, write_data(tmp_path, parts)) == []


def test_band_fires(tmp_path: Path) -> None:
    parts = {"train": [*talk("train", 18), *talk("narrow", 2, highest=3900.0)], "dev": talk("dev")}
    (found,) = run(check_band, write_data(tmp_path, parts))
    assert "2 of 20" in found.what and "'train'" in found.what


def test_band_fires_if_train_and_dev_differ(tmp_path: Path) -> None:
    (found,) = run(check_band, write_data(tmp_path, {"train": talk("train", highest=3900.0), "dev": talk("dev")}))
    assert "20 of 20" in found.what and "tested" in found.fix


def test_band_fires_only_for_files_that_could_have_more(tmp_path: Path) -> None:
    """All that is at 16 kHz is telephone audio; files at 8 kHz are not different."""
    parts = {"train": talk("train", highest=3900.0), "dev": talk("dev", rate=8000, highest=3900)}
    (found,) = run(check_band, write_data(tmp_path, parts))
    assert "20 of 20" in found.what and "'dev'" not in found.what


def test_band_is_quiet(whole: Folder, tmp_path: Path) -> None:
    assert run(check_band, whole) == []
    low = {part: talk(part, rate=8000, highest=3900) for part in ("train", "dev")}
    assert run(check_band, write_data(tmp_path, low)) == []  # check_rates says it


def test_channels_fires(tmp_path: Path) -> None:
    both = [Spoken(f"bad-{n}", samples=np.stack([speech(n), speech(n)], axis=1), channel=n % 2) for n in range(4)]
    folder = with_spoilt(tmp_path, *both)
    (found,) = run(check_channels, folder, "data.channel=both")
    assert "4 of 24" in found.what and "bad-1" in found.what
    assert run(check_channels, folder) == []  # the first is taken


def test_channels_is_quiet(tmp_path: Path) -> None:
    both = [Spoken(f"two-{n}", samples=np.stack([speech(n), speech(n + 9)], axis=1), channel=n % 2) for n in range(4)]
    assert run(check_channels, with_spoilt(tmp_path, *both), "data.channel=both") == []


def test_whole_audio_has_no_finding(whole: Folder) -> None:
    assert [str(f) for check in QUIET_CHECKS for f in run(check, whole)] == []
