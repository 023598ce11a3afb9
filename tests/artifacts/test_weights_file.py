"""The weights of files that this project or icefall wrote: the numbers of torch's own loader, and nothing is run."""

from __future__ import annotations

import os
import pathlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import provenance, save_file
from local.artifacts.weights_file import read_weights
from local.common.errors import UserError
from local.config import load_config
from tests.artifacts.odd_tensors import ODD, raw
from tests.toy_experiment import SMALL, toy_tokenizer, toy_weights

import pytest
import torch


def saved(path: Path, state: dict[str, Any], **more: Any) -> Path:
    torch.save({"model": state, **more}, path)
    return path


def test_the_numbers_are_those_of_torch(tmp_path: Path) -> None:
    """Parameters, parts of a shared storage, scalars and several types; an icefall training saves paths and a device."""
    whole = torch.randn(6, 4)
    linear = torch.nn.Linear(3, 2)
    state = OrderedDict(linear.state_dict(keep_vars=True))
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    state |= {"a": whole[:2], "b": whole[2:], "scalar": torch.tensor(3.5), "wide": torch.randn(3).double()}
    state |= {"whole": torch.arange(4), "half": torch.randn(2, 2).half(), "row": torch.randn(1, 5)}
    more = {"exp_dir": pathlib.PosixPath("exp/x"), "device": torch.device("cpu"), "lr": 0.1, "optimizer": {"state": {0: whole}}}
    found, tokens, smoothing = read_weights(saved(tmp_path / "epoch-3.pt", state, **more))
    expected = torch.load(saved(tmp_path / "plain.pt", dict(state)), weights_only=True)["model"]
    assert tokens is None and smoothing == {} and list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name


def test_the_tokens_of_a_checkpoint_of_this_project(tmp_path: Path) -> None:
    cfg, tokenizer = load_config(None, SMALL), toy_tokenizer()
    weights = toy_weights(cfg, tokenizer, 0)
    save_file({"model": weights, **provenance(cfg, tokenizer)}, tmp_path / "averaged.pt")
    found, tokens, smoothing = read_weights(tmp_path / "averaged.pt")
    assert tokens == tokenizer.tokens and all(torch.equal(found[name], weights[name]) for name in weights)
    assert smoothing == {"am_scale": 0.0, "lm_scale": 0.25}
    for damaged in ({}, {"am_scale": 0.5}, {"am_scale": "x", "lm_scale": 0.5}, {"am_scale": [[]], "lm_scale": {}}, 3):
        torch.save({"model": weights, "config": {"loss": damaged}}, tmp_path / "x.pt")
        assert read_weights(tmp_path / "x.pt").smoothing == {}


class Attack:
    """A value whose pickle would run a command."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.made}",))


@pytest.mark.parametrize("place", ["beside", "among"])
def test_code_is_not_run(tmp_path: Path, place: str) -> None:
    made = tmp_path / "made"
    attack = Attack(made)
    state: dict[str, Any] = {"w": torch.ones(2), **({"x": attack} if place == "among" else {})}
    path = saved(tmp_path / "pretrained.pt", state, **({"x": attack} if place == "beside" else {}))
    with pytest.raises(UserError, match=r"pretrained\.pt: .*system") as caught:
        read_weights(path)
    assert not made.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sparse", "meta", "quantized", "expanded", "complex"])
def test_odd_tensors_are_refused(tmp_path: Path, name: str) -> None:
    raw(tmp_path / "x.pt", {"model": {"w": ODD[name]()}})
    with pytest.raises(UserError, match=r"x\.pt: "):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content",
    [{"model": {}}, {"model": {"w": 3}}, {"model": {"w": torch.ones(2, 3).t()}}, {"weights": {}}, [1], {"model": None}],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: "):
        read_weights(tmp_path / "x.pt")


def test_a_tensor_beyond_its_numbers_is_refused(tmp_path: Path) -> None:
    value = torch.ones(4)
    value.untyped_storage().resize_(8)
    torch.save({"model": {"w": value}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: .*'w'"):
        read_weights(tmp_path / "x.pt")


def test_a_file_that_is_missing_cut_or_not_finite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt"):
        read_weights(tmp_path / "none.pt")
    path = saved(tmp_path / "x.pt", {"w": torch.tensor([1.0, float("nan")])})
    with pytest.raises(UserError, match=r"x\.pt: 'w'"):
        read_weights(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"x\.pt: "):
        read_weights(path)
