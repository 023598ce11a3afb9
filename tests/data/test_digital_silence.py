"""Digital silence as augmentation: its values, its places, and all else as without it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

from local.config import load_config
from local.data.batch import Batch
from local.data.datamodule import AsrDataModule
from local.data.digital_silence import FRAMES, SILENCE, with_silence
from local.data.features import make_extractor
from tests.data.test_feature_floor import data, module

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")
assert data  # a fixture


def test_its_values_are_those_of_zeros() -> None:
    features = load_config().features
    for rate in (8000, 16000):
        found = make_extractor(replace(features, sampling_rate=rate)).extract(torch.zeros(1, rate), rate)
        assert torch.equal(found, torch.full_like(found, SILENCE))


def test_silence_comes_before_after_or_within() -> None:
    x = torch.randn(40, 80, generator=torch.Generator().manual_seed(1))
    x[25] = -9.0  # the quietest frame
    places, lengths = Counter[int](), set()
    for seed in range(300):
        found = with_silence(x, random.Random(seed))
        assert torch.equal(found, with_silence(x, random.Random(seed)))
        silent = (found == SILENCE).all(1)
        first, count = int(silent.int().argmax()), int(silent.sum())
        assert silent[first : first + count].all() and torch.equal(found[~silent], x)
        places[first] += 1
        lengths.add(count)
    assert set(places) == {0, 26, 40} and min(places.values()) > 60
    assert FRAMES[0] <= min(lengths) < 30 and 180 < max(lengths) <= FRAMES[1]
    assert len(with_silence(torch.zeros(0, 80), random.Random(1))) >= FRAMES[0]


def rows(dm: AsrDataModule, epoch: int = 1) -> dict[str, torch.Tensor]:
    batches: list[Batch] = list(dm.train_dataloader(epoch))
    return {b.ids[i]: b.inputs[i, : b.input_lens[i]] for b in batches for i in range(len(b))}


def test_other_augmentation_is_the_same(data: Path) -> None:  # noqa: F811
    plain, some, every = (rows(module(data, f"augment.silence_prob={share}")) for share in (0, 0.5, 1))
    assert plain.keys() == some.keys() == every.keys() and len(plain) == 36
    changed = [name for name in plain if len(some[name]) > len(plain[name])]
    assert 8 < len(changed) < 28
    for name, x in plain.items():
        assert torch.equal(some[name], every[name] if name in changed else x)
        silent = (every[name] == SILENCE).all(1)
        assert FRAMES[0] <= int(silent.sum()) <= FRAMES[1] and torch.equal(every[name][~silent], x)


@pytest.mark.parametrize("overrides", [["data.num_workers=2"], ["train.max_duration=3"]])
def test_depends_on_seed_epoch_and_utterance_alone(data: Path, overrides: list[str]) -> None:  # noqa: F811
    share = "augment.silence_prob=0.5"
    one, same, other = rows(module(data, share)), rows(module(data, share, *overrides)), rows(module(data, share), 2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    lengths = {name: (len(one[name]), len(other[name])) for name in one}
    assert any(a != b for a, b in lengths.values())


def test_evaluation_has_none(data: Path) -> None:  # noqa: F811
    plain, silent = (list(module(data, f"augment.silence_prob={share}").test_dataloader("tr")) for share in (0, 1))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(plain, silent, strict=True))
