"""Any sampling rate costs about the same: no table of gigabytes, in no place that resamples."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from local.config import load_config
from local.corpus.audio_reading import load_audio
from local.corpus.resampling import LARGEST_TABLE, SoxResampler, resampler, table_size
from local.data.durations import SPEEDS
from local.data.features import make_extractor
from tests.conftest import ROOT
from tests.corpus.noise_corpus import RATE

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording
from lhotse.augmentation import Resample, Speed
from lhotse.augmentation.resample import Resample as OwnOfLhotse

USUAL = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000)
ODD = (16001, 15999, 22051, 44101, 47999, 11027, 8001, 44056, 192001)
MEGABYTES = 500  # that any resampling may need
HERTZ = 440


def sound(rate: int, seconds: float = 2.0, hertz: int = HERTZ) -> np.ndarray:
    """Return a tone (S,), float32."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_usual_rates_keep_the_numbers_of_lhotse() -> None:
    for source in USUAL:
        noise = torch.from_numpy(np.random.default_rng(source).uniform(-1, 1, (2, source // 4)).astype(np.float32))
        for target in {8000, 16000, 22050, 44100} - {source}:
            assert torch.equal(resampler(source, target)(noise), OwnOfLhotse(source, target)(noise)), (source, target)
    for rate in (8000, 16000, 44100, 48000):
        assert all(isinstance(resampler(round(rate * speed), rate), OwnOfLhotse) for speed in SPEEDS)


@pytest.mark.parametrize("rate", ODD)
def test_odd_rates_are_resampled_exactly(rate: int) -> None:
    """The tone is the same tone in the same place; of two channels, each keeps its own."""
    assert table_size(rate, RATE) > LARGEST_TABLE
    two = np.stack([sound(rate), sound(rate, hertz=1000)])
    found = Resample(rate, RATE)(two, rate)
    assert found.dtype == np.float32 and found.shape == (2, -(-two.shape[1] * RATE // rate))
    for row, hertz in zip(found, (HERTZ, 1000), strict=True):
        middle = slice(200, -200)
        assert np.abs(row - sound(RATE, 3.0, hertz)[: len(row)])[middle].max() < 1e-3
    assert isinstance(resampler(rate, RATE), SoxResampler)
    for samples in (0, 1, 2, 37):
        assert Resample(rate, RATE)(two[:, :samples], rate).shape == (2, -(-samples * RATE // rate))


def test_odd_speeds_are_changed_exactly() -> None:
    for factor, rate in ((1.0001, 16000), (0.95, 22050), (0.9, 11025)):
        found = Speed(factor)(sound(rate)[None], rate)[0]
        exact = round(rate * factor) / rate
        assert len(found) == -(-2 * rate * rate // round(rate * factor))
        expected = 0.5 * np.sin(2 * np.pi * HERTZ * exact * np.arange(len(found)) / rate)
        assert np.abs(found - expected)[200:-200].max() < 1e-4, factor


PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from local.corpus.audio_reading import load_audio
from local.data.durations import at_speed
from local.data.channels import make_cuts
from local.decoding.audio_pieces import open_checked
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.augmentation import Narrowband

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1 << 20)

if sys.platform == "linux":  # an older version would take 14 GB
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
load_audio(Recording.from_file(sys.argv[1]).to_cut().resample(8000))
before, took, file = used(), {}, Path(sys.argv[2])
recording = Recording.from_file(file)
pair = (recording, SupervisionSegment("u", recording.id, 0.0, recording.duration, 0, "a"))
for name, load in {
    "stage 2": lambda: load_audio(next(make_cuts([pair], 16000, "first", "x"))),
    "training": lambda: load_audio(at_speed(next(make_cuts([pair], 16000, "first", "x")), 0.9)),
    "noise": lambda: load_audio(list(recording.to_cut().cut_into_windows(1.5))[0].resample(16000)),
    "stream": lambda: list(open_checked(file, "first").pieces(16000)),
    "speed at its rate": lambda: load_audio(recording.to_cut().perturb_speed(0.9)),
    "speed of 1.0001": lambda: load_audio(recording.to_cut().perturb_speed(1.0001).resample(16000)),
    "up and down": lambda: load_audio(recording.resample(44100).resample(16000).to_cut()),
    "another target": lambda: load_audio(recording.resample(15999).to_cut()),
}.items():
    began = time.process_time()
    load()
    took[name] = time.process_time() - began
print(json.dumps({"megabytes": used() - before, "took": took}))
"""


@pytest.mark.parametrize("rate", [16001, 22051, 44101])
def test_no_place_that_resamples_needs_much(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "usual.wav", sound(RATE), RATE)
    soundfile.write(tmp_path / "odd.wav", sound(rate), rate)
    files = [str(tmp_path / "usual.wav"), str(tmp_path / "odd.wav")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *files], cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["megabytes"] < MEGABYTES and max(found["took"].values()) < 5.0, found


def test_an_odd_rate_costs_at_most_twice_a_usual_one(tmp_path: Path) -> None:
    """Loading and features together, as in each loader."""
    extractor = make_extractor(load_config(None, []).features)

    def seconds(rate: int) -> float:
        soundfile.write(tmp_path / f"{rate}.wav", sound(rate, 20.0), rate)
        recording = Recording.from_file(tmp_path / f"{rate}.wav")
        cut = recording.to_cut() if rate == RATE else recording.to_cut().resample(RATE)
        took = []
        for _ in range(5):
            began = time.process_time()
            extractor.extract(torch.from_numpy(load_audio(cut)), RATE)
            took.append(time.process_time() - began)
        return min(took)

    usual = seconds(RATE)
    assert max(seconds(rate) for rate in (16001, 22051)) <= 2 * usual + 0.02
