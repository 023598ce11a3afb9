"""The size of a model is known before it is built."""

from __future__ import annotations

import time
from pathlib import Path

from local.artifacts import new_model as module
from local.artifacts.language_model import lm_sizes
from local.artifacts.new_model import lm_weights_by_key, new_lm, new_model
from local.common.errors import UserError
from local.config import load_config
from model.build import weights_by_key

import pytest

SIZES = ["model.decoder.dim=24", "model.joiner.dim=40", "model.encoder.num_layers=3", "model.encoder.d_model=32"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.encoder.rnn_hidden_size=48", "model.encoder.dim_feedforward=100"],
        ["model.encoder.rnn_hidden_size=32", "model.encoder.dim_feedforward=10", "model.encoder.norm=batch"],
        ["model.encoder.rnn_hidden_size=32", "model.encoder.rnn=gru", "model.decoder.context_size=1"],
        ["model.encoder.rnn_hidden_size=32", "model.encoder.rnn=rnn", "features.num_mel_bins=23"],
    ],
)
def test_the_weights_are_as_many_as_computed(overrides: list[str]) -> None:
    """Without biases, scales, norms and the first convolutions, which make up little of any real model."""
    cfg = load_config(None, [*SIZES, *overrides])
    matrices = [v for k, v in new_model(cfg, 60).state_dict().items() if v.dim() > 1 and "embed.conv" not in k]
    spare = cfg.model.decoder.dim if cfg.model.decoder.context_size == 1 else 0  # there is no convolution then
    assert sum(v.numel() for v in matrices) == sum(weights_by_key(cfg, 60).values()) - spare


@pytest.mark.parametrize("dim", [8, 12])
def test_those_of_a_language_model_too(dim: int) -> None:
    sizes = lm_sizes(load_config(None, [f"lm.dim={dim}", "lm.hidden=12", "lm.num_layers=3"]), 60)
    matrices = [p for p in new_lm(sizes).parameters() if p.dim() > 1]
    assert sum(p.numel() for p in matrices) == sum(lm_weights_by_key(sizes).values())


WIDE = "model.encoder.rnn_hidden_size=100000"
TOO_LARGE = [
    (["model.encoder.d_model=100000", WIDE], ["model.encoder.rnn_hidden_size"]),
    (
        ["model.encoder.dim_feedforward=100000", "model.encoder.num_layers=1000", WIDE, "model.encoder.d_model=50000"],
        ["rnn_hidden"],
    ),
    (
        ["model.encoder.dim_feedforward=100000", "model.encoder.num_layers=1000", "model.encoder.rnn_hidden_size=512"],
        ["feedforward"],
    ),
    (["model.joiner.dim=100000"], ["model.joiner.dim"]),
    (["model.decoder.dim=100000"], ["model.decoder.dim"]),
]


@pytest.mark.parametrize(("overrides", "keys"), TOO_LARGE)
def test_a_model_larger_than_the_memory_is_not_built(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], keys: list[str]
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 64 * 2**30)
    monkeypatch.setattr(module, "build_model", lambda *args: pytest.fail("it was built"))
    cfg, start = load_config(None, overrides), time.process_time()
    with pytest.raises(UserError) as e:
        new_model(cfg, 1_000_000)
    assert time.process_time() - start < 1 and all(key in str(e.value) for key in keys)


@pytest.mark.parametrize("overrides", [["lm.hidden=100000", "lm.num_layers=1000"], ["lm.dim=100000", "lm.hidden=8"]])
def test_nor_such_a_language_model(monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 64 * 2**30)
    with pytest.raises(UserError, match=overrides[0].partition("=")[0]):
        new_lm(lm_sizes(load_config(None, overrides), 1_000_000))


def test_a_system_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(device: object) -> float:
        raise UserError("no /proc")

    monkeypatch.setattr(module, "free_bytes", none)
    new_lm(lm_sizes(load_config(None, ["lm.hidden=8", "lm.dim=8"]), 20))
