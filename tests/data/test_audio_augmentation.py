"""Rooms, gain and codecs: no shift in time, the bands, all else as without them, and what happens if a codec fails."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

from local.common.errors import UserError
from local.config import load_config
from local.data import audio_augmentation
from local.data.audio_augmentation import CHANNELS, Channel, augmented_audio, coded, reverberated, with_gain
from local.data.batch import Batch
from local.data.batching import seeded
from local.data.datamodule import AsrDataModule
from tests.data.test_feature_floor import data, module

import numpy as np
import pytest
import soundfile
import torch

pytestmark = pytest.mark.usefixtures("one_thread")
assert data  # a fixture
RATE = 16000
CASES = [(channel, rate) for channel in CHANNELS for rate in channel.rates]
ALL = ["augment.reverb_prob=0.5", "augment.gain_prob=0.5", "augment.codec_prob=0.5"]
TWO_COPIES = ["loss.ctc_scale=0.1", "loss.cr_scale=0.1"]


def bursts(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """Return a voice-like signal (1, S): pulses of 120 Hz through a resonance, in syllables of different lengths."""
    rng = np.random.default_rng(1)
    pulses = np.zeros(int(seconds * rate))
    pulses[:: rate // 120] = 1.0
    ringing = np.exp(-np.arange(400) / 60) * np.sin(2 * np.pi * 700 * np.arange(400) / rate)
    loudness = np.repeat(rng.uniform(0, 1, int(seconds * 12) + 1) ** 2, rate // 12)[: len(pulses)]
    voiced = np.convolve(pulses, ringing)[: len(pulses)] * np.pad(loudness, (0, len(pulses) - len(loudness)))
    return (0.3 * voiced / np.abs(voiced).max() + rng.normal(0, 0.002, len(pulses)))[None].astype(np.float32)


def shift(x: np.ndarray, y: np.ndarray) -> int:
    """Return by how many samples `y` is later than `x`, both (1, S): the largest cross-correlation."""
    size = 2 * x.shape[1]
    found = int(np.argmax(np.fft.irfft(np.fft.rfft(y[0], size) * np.fft.rfft(x[0], size).conj(), size)))
    return found if found < size // 2 else found - size


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(("channel", "rate"), CASES, ids=[f"{c.codec}-{r}" for c, r in CASES])
def test_a_codec_keeps_times_and_takes_the_band(channel: Channel, rate: int, level: int) -> None:
    for x in (bursts(), bursts(1.2345), bursts(0.05)):
        y = coded(x, RATE, channel.codec, rate, channel.levels[level])
        assert y.shape == x.shape and y.dtype == np.float32 and np.abs(y).max() <= 1
        assert not np.array_equal(x, y)
        if len(x[0]) > RATE:
            assert abs(shift(x, y)) <= 2
            power = np.abs(np.fft.rfft(y[0])) ** 2
            above = power[np.fft.rfftfreq(len(y[0]), 1 / RATE) > rate / 2 + 100].sum()
            assert above < 1e-3 * power.sum()


@pytest.mark.parametrize("rate", [8000, 11025, 48000])
def test_other_rates_of_a_model(rate: int) -> None:
    x = bursts(0.7, rate)
    for channel, band in CASES:
        y = coded(x, rate, channel.codec, band, channel.levels[0])
        assert y.shape == x.shape and abs(shift(x, y)) <= 3 * rate // 8000
    assert reverberated(x, rate, random.Random(1)).shape == x.shape


def test_a_room_keeps_power_and_times() -> None:
    x = np.zeros((1, RATE), dtype=np.float32)
    x[0, 4000] = 0.5  # a click: what comes out is the impulse response
    rooms, tails = set(), 0
    for seed in range(12):
        y = reverberated(x, RATE, random.Random(seed))
        assert y.shape == x.shape and math.isclose((y**2).sum(), (x**2).sum(), rel_tol=1e-3)
        assert int(y.argmax()) == 4000  # the strongest tap
        power = np.cumsum(y[0] ** 2) / (y**2).sum()
        assert power[4000 - 18 * RATE // 1000] < 0.01  # the direct path comes later
        tails += power[4000 + 50 * RATE // 1000] < 0.98
        rooms.add(y.tobytes())
        assert np.array_equal(y, reverberated(x, RATE, random.Random(seed)))
    assert len(rooms) == 12 and tails > 5
    state = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    reverberated(x, RATE, random.Random(1))
    assert torch.equal(state[0], torch.get_rng_state()) and state[1:] == (random.getstate(), str(np.random.get_state()))


def test_gain_and_clipping() -> None:
    x = bursts()
    assert np.allclose(with_gain(x, -20), x / 10, rtol=1e-6)
    loud = with_gain(x, 20)
    assert loud.max() == 1 and np.allclose(loud[np.abs(10 * x) < 1], 10 * x[np.abs(10 * x) < 1], rtol=1e-6)


def test_each_draws_for_itself() -> None:
    x = bursts(0.2)
    found: dict[str, list[np.ndarray]] = {}
    for keys in (["reverb"], ["gain"], ["codec"], ["reverb", "gain", "codec"], []):
        augment = load_config(None, [f"augment.{key}_prob={0.5 if len(keys) > 1 else 1}" for key in keys]).augment
        found[" ".join(keys)] = [augmented_audio(x, RATE, augment, seed) for seed in range(24)]
    assert all(y is x for y in found[""])
    draws = [[random.Random(f"{seed} {key}").random() < 0.5 for key in ("reverb", "gain", "codec")] for seed in range(24)]
    assert {tuple(d) for d in draws} == {(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)}
    for seed, (reverb, gain, codec) in enumerate(draws):
        together = found["reverb gain codec"][seed]
        if [reverb, gain, codec].count(True) == 1:
            assert np.array_equal(together, found["reverb" if reverb else "gain" if gain else "codec"][seed])
        assert np.array_equal(together, x) == (not (reverb or gain or codec))
    changes = [20 * math.log10(np.abs(y).max() / np.abs(x).max()) for y in found["gain"]]
    low, high = load_config().augment.gain_db
    assert low <= min(changes) < low + 8 and high - 8 < max(changes) <= high


def batches(dm: AsrDataModule, epoch: int = 1, skip: int = 0) -> list[Batch]:
    return list(dm.train_dataloader(epoch, skip))


def rows(found: list[Batch]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((b.ids[i], b.inputs[i, : b.input_lens[i]]) for b in found for i in range(len(b)))


def test_others_stay_as_they_are_and_masks_too(data: Path) -> None:  # noqa: F811
    plain, some, every = (dict(rows(batches(module(data, f"augment.codec_prob={share}")))) for share in (0, 0.5, 1))
    assert plain.keys() == some.keys() == every.keys() and len(plain) == 36
    changed = [name for name in plain if not torch.equal(plain[name], some[name])]
    assert 8 < len(changed) < 28
    for name, x in plain.items():
        assert not torch.equal(every[name], x) and torch.equal(some[name], every[name] if name in changed else x)
        masks = [(y == y[:, :1]).all(1).nonzero().flatten().tolist() for y in (x, every[name])]
        assert masks[0] == masks[1]


@pytest.mark.parametrize("overrides", [["data.num_workers=2"], ["train.max_duration=3"], TWO_COPIES])
def test_depends_on_seed_epoch_and_utterance_alone(
    data: Path,  # noqa: F811
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AsrDataModule, "_noise", lambda self: self._cuts("tr")[:3])
    found = [batches(module(data, *ALL, "augment.time_warp_factor=0", *keys)) for keys in ([], overrides)]
    one, same = (dict(rows(b)) for b in found)
    assert all(torch.equal(one[name], same[name]) for name in one)
    if overrides == TWO_COPIES:
        first = found[1][0]
        assert first.second is not None and first.second.shape == first.inputs.shape
        assert not torch.equal(first.second, first.inputs) and (first.second == first.inputs).float().mean() > 0.5


def test_an_epoch_resumes_and_the_next_differs(data: Path) -> None:  # noqa: F811
    keys = [*ALL, "augment.spec_augment=false", "train.max_duration=12"]
    whole, rest = batches(module(data, *keys)), batches(module(data, *keys), skip=2)
    assert len(rest) == len(whole) - 2 > 1
    assert all(torch.equal(a.inputs, b.inputs) and a.ids == b.ids for a, b in zip(whole[2:], rest, strict=True))
    first, other = dict(rows(whole)), dict(rows(batches(module(data, *keys), 2)))
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_evaluation_has_none(data: Path) -> None:  # noqa: F811
    plain, other = (list(module(data, *keys).test_dataloader("tr")) for keys in ([], ALL))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(plain, other, strict=True))


@pytest.mark.parametrize("key", ["reverb_prob", "gain_prob", "codec_prob"])
def test_stored_features_have_none(key: str) -> None:
    with pytest.raises(UserError, match=rf"augment\.{key}.*features\.type=on_the_fly"):
        load_config(None, ["features.type=precomputed", f"augment.{key}=0.1"])


def test_gain_has_two_limits() -> None:
    with pytest.raises(UserError, match=r"augment\.gain_db"):
        load_config(None, ["augment.gain_db=[1]"])


def test_an_utterance_whose_codec_fails_is_left_out_and_named(
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails(self: object, samples: np.ndarray, rate: int) -> np.ndarray:
        if len(samples[0]) > 2 * rate:
            raise soundfile.LibsndfileError(1)
        return samples

    monkeypatch.setattr(audio_augmentation, "CHANNELS", (Channel("mp3", (8000,), (0.5, 0.5)),))
    monkeypatch.setattr(audio_augmentation.Compress, "__call__", fails)
    found = batches(module(data, "augment.codec_prob=1"))
    skipped = {name for b in found for name in b.skipped}
    assert skipped and skipped | {name for name, _ in rows(found)} == set(dict(rows(batches(module(data)))))
    err = capfd.readouterr().err
    assert all(name in err for name in skipped) and "mp3" in err and "8000" in err


def test_a_libsndfile_without_a_codec(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(soundfile, "check_format", lambda kind, subtype: kind != "MP3")
    batches(module(data))
    with pytest.raises(UserError, match=r"augment\.codec_prob.*mp3"):
        batches(module(data, "augment.codec_prob=0.1"))


def test_the_codecs_write_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for channel, rate in CASES:
        coded(bursts(0.5), RATE, channel.codec, rate, channel.levels[1])
    with seeded(1):
        reverberated(bursts(0.5), RATE, random.Random(1))
    assert capfd.readouterr() == ("", "")
