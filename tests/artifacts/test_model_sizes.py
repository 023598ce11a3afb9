"""Sizes that are read off the tensors of a model are those that it was built with."""

from __future__ import annotations

from pathlib import Path

from local.artifacts.model_sizes import check_fits, sizes_of
from local.common.errors import UserError
from local.config import load_config
from model.build import build_model
from model.encoder.subsampling import subsampled

import pytest
import torch

SIZES = [
    {"num_layers": 1, "d_model": 16, "rnn_hidden_size": 16, "dim_feedforward": 24, "dim": 12, "context_size": 1, "joiner": 20},
    {"num_layers": 11, "d_model": 8, "rnn_hidden_size": 12, "dim_feedforward": 8, "dim": 8, "context_size": 2, "joiner": 8},
    {"num_layers": 2, "d_model": 32, "rnn_hidden_size": 64, "dim_feedforward": 16, "dim": 8, "context_size": 3, "joiner": 40},
]
KEYS = {"dim": "model.decoder.dim", "context_size": "model.decoder.context_size", "joiner": "model.joiner.dim"}


def keys(sizes: dict[str, int]) -> dict[str, int]:
    return {KEYS.get(name, f"model.encoder.{name}"): value for name, value in sizes.items()}


def state(sizes: dict[str, int], *overrides: str) -> dict[str, torch.Tensor]:
    cfg = load_config(None, [*(f"{key}={value}" for key, value in keys(sizes).items()), *overrides])
    return build_model(cfg, 30).state_dict()


@pytest.mark.parametrize("head", ["loss.ctc_scale=0", "loss.ctc_scale=0.1"])
@pytest.mark.parametrize("sizes", SIZES)
def test_sizes(sizes: dict[str, int], head: str) -> None:
    assert sizes_of(state(sizes, head)) == {**keys(sizes), "lang.vocab_size": 30, "features.num_mel_bins": 80}


@pytest.mark.parametrize("channels", [9, 23, 40, 64, 80, 81, 100, 128])
def test_channels(channels: int) -> None:
    """Up to four numbers leave as many: a usual one is found, any other fits."""
    found = sizes_of(state(SIZES[0], f"features.num_mel_bins={channels}"))["features.num_mel_bins"]
    assert found == channels if channels in (40, 80, 100) else subsampled(found) == subsampled(channels)


def test_one_wrong_shape_changes_no_size_and_is_named() -> None:
    """Each matrix in turn, enlarged in each axis. The decoder's convolution alone has its width."""
    right = state(SIZES[1])
    for name, value in right.items():
        for axis in range(value.dim() if "conv" not in name else 0):
            shape = [size + 4 * (a == axis) for a, size in enumerate(value.shape)]
            wrong = {**right, name: torch.zeros(shape)}
            if "encoder_embed.out.weight" not in name:  # it alone tells the channels
                assert sizes_of(wrong) == sizes_of(right), name
            with pytest.raises(UserError) as caught:
                check_fits(wrong, right, Path("x.pt"))
            assert all(f"{part}" in str(caught.value) for part in ("x.pt", f"'{name}'", tuple(shape), tuple(value.shape)))


def test_missing_and_unknown_tensors_and_the_keys_to_set() -> None:
    small, large = state(SIZES[0]), state(SIZES[1])
    without = dict(small)
    del without["joiner.output_linear.bias"]
    for theirs, name in ((without, "joiner.output_linear.bias"), ({**small, "extra.w": torch.ones(1)}, "extra.w")):
        with pytest.raises(UserError, match=rf"x\.pt: has .*'{name}'"):
            check_fits(theirs, small, Path("x.pt"))
    with pytest.raises(UserError) as caught:
        check_fits(small, large, Path("x.pt"))
    assert all(f"{key}={value}" in str(caught.value) for key, value in keys(SIZES[0]).items())
    check_fits(small, small, Path("x.pt"))
