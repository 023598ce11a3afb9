"""The choice of a configuration by hours of speech, characters and machine."""

from __future__ import annotations

import math
from pathlib import Path

from local.config import load_config
from local.config.load import CONF_DIR
from local.config.presets import PRESETS, Machine, Speech, as_yaml, batches_per_epoch, choose, expected_seconds
from local.config.schema import Config

import pytest

CPU, GPU = Machine(2), Machine(16, 80.0)
LATIN, MANY = 28, 5000  # characters, words


def chosen(tmp_path: Path, hours: float, machine: Machine, characters: int = LATIN, words: int = MANY) -> tuple[str, Config]:
    """Return the name of the preset, and what is loaded from the file that is written."""
    choice, path = choose(Speech(hours, characters, words), machine), tmp_path / "conf.yaml"
    path.write_text(as_yaml(choice, "test"))
    return choice.preset.name, load_config(path)


@pytest.mark.parametrize(
    ("hours", "machine", "preset", "d_model", "tokens"),
    [
        (0.1, CPU, "minutes", 96, (32, 50)),
        (0.1, GPU, "minutes", 96, (32, 50)),
        (1, CPU, "hours", 144, (50, 100)),
        (1, GPU, "hours", 144, (50, 100)),
        (10, CPU, "hours", 144, (100, 200)),
        (10, GPU, "hours", 144, (100, 200)),
        (100, CPU, "hours", 144, (300, 500)),
        (100, GPU, "hundred_hours", 256, (300, 500)),
        (1000, CPU, "hours", 144, (500, 500)),
        (1000, GPU, "thousand_hours", 512, (500, 500)),
        (1000, Machine(8, 6.0), "hundred_hours", 256, (500, 500)),
    ],
)
def test_the_choice_fits_the_hours_and_the_machine(
    tmp_path: Path,
    hours: float,
    machine: Machine,
    preset: str,
    d_model: int,
    tokens: tuple[int, int],
) -> None:
    name, cfg = chosen(tmp_path, hours, machine)
    assert name == preset and cfg.model.encoder.d_model == d_model
    assert tokens[0] <= cfg.lang.vocab_size <= tokens[1]
    assert cfg.train.num_epochs >= (10 if hours > 20 and machine.gpu_gib is None else 16)
    assert cfg.train.warm_share > 0, "the warm-up is a share of the batches"
    assert 1 <= cfg.average.num <= cfg.train.num_epochs


@pytest.mark.parametrize("machine", [CPU, GPU], ids=str)
def test_there_is_a_choice_for_any_hours(tmp_path: Path, machine: Machine) -> None:
    """More speech: never fewer tokens, and never fewer batches by the same preset on the same machine."""
    batches_of: dict[str, int] = {}
    tokens = 0
    for hours in [0.0005, 0.005, 0.05, 0.3, 0.499, 0.5, 0.92, 2, 5, 19.9, 20.1, 60, 199, 201, 960, 50_000]:
        name, cfg = chosen(tmp_path, hours, machine)
        batches = batches_per_epoch(hours, cfg) * cfg.train.num_epochs
        preset = next(p for p in PRESETS if p.name == name)
        assert batches >= min(preset.updates, 300) and cfg.lang.vocab_size >= tokens
        if hours > 0.01:
            assert batches >= preset.updates
        if machine.gpu_gib is not None or hours <= 20:
            assert batches >= 0.9 * batches_of.get(name, 0)
        assert cfg.optim.lr_batches == min(round(batches / 3), 5000) and cfg.optim.lr_epochs < cfg.train.num_epochs
        batches_of[name], tokens = batches, cfg.lang.vocab_size


@pytest.mark.parametrize("hours", [0.9, 10, 150])
def test_every_character_has_a_token(tmp_path: Path, hours: float) -> None:
    """2,998 characters need 3,002 tokens: sentencepiece says so. The reason is in the file."""
    name, cfg = chosen(tmp_path, hours, GPU, characters=2998)
    assert cfg.lang.vocab_size >= 3002
    assert "2998" in as_yaml(choose(Speech(hours, 2998, MANY), GPU), "")
    assert chosen(tmp_path, hours, GPU, characters=450)[1].lang.vocab_size >= 454


def test_a_few_words_are_spelled(tmp_path: Path) -> None:
    """yesno: YES and NO, five letters, must not be two tokens. The digits: ten words of 15 letters."""
    assert chosen(tmp_path, 0.05, CPU, characters=5, words=2)[1].lang.vocab_size == 9
    assert chosen(tmp_path, 1.0, CPU, characters=15, words=10)[1].lang.vocab_size == 19


def test_stored_features_do_not_fill_the_disk(tmp_path: Path) -> None:
    assert chosen(tmp_path, 10, CPU)[1].features.type == "precomputed"
    assert chosen(tmp_path, 1000, CPU)[1].features.type == "on_the_fly"


@pytest.mark.parametrize("path", sorted((CONF_DIR / "preset").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_leave_the_keys_of_earlier_stages_alone(path: Path) -> None:
    """Stages manifests and cuts run with conf/base.yaml, before the choice."""
    assert path.stem in {preset.name for preset in PRESETS}
    cfg, base = load_config(path), load_config()
    assert cfg.features.sampling_rate == base.features.sampling_rate
    assert cfg.features.num_mel_bins == base.features.num_mel_bins
    assert cfg.augment.musan is None
    early, changed = {**vars(base.data)}, {**vars(cfg.data)}
    for of_training in ("num_buckets", "num_workers", "shuffle_shards"):
        early.pop(of_training), changed.pop(of_training)
    assert changed == early
    assert {**vars(cfg.lang), "vocab_size": 0} == {**vars(base.lang), "vocab_size": 0}
    assert 5 <= len(path.read_text().splitlines()) <= 30


def test_the_time_is_estimated() -> None:
    """`tiny` took 338 s for 7 epochs of 1.69 h on two cores."""
    cfg = load_config(None, ["train.num_epochs=7", "augment.speed_perturb=false", "train.max_duration=40"])
    hours_preset = PRESETS[1]
    assert expected_seconds(1.69, cfg, hours_preset, CPU) == pytest.approx(338, rel=0.05)
    assert expected_seconds(1.69, cfg, hours_preset, Machine(1)) == pytest.approx(676, rel=0.05)
    cfg.train.max_steps = 106  # of 1064
    assert expected_seconds(1.69, cfg, hours_preset, CPU) == pytest.approx(33.8, rel=0.05)
    assert math.isinf(PRESETS[-1].cpu_seconds)
