"""Checkpoints whose tensors, sizes or names are not those of a model, through every program that reads them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local import checkpoint_conf, diagnose
from local.artifacts.averaging import load_for_averaging, make_average
from local.artifacts.checkpoint import load_averaged, newest_readable, provenance, save_file
from local.artifacts.decoded_sets import write_set
from local.artifacts.language_model import load_lm
from local.artifacts.plain_values import tensor_problem, without_floats
from local.common.errors import UserError
from local.config import load_config, named_files, to_dict
from tests.artifacts.odd_tensors import ODD, raw
from tests.conftest import ROOT
from tests.toy_experiment import SMALL, save_toy_lm, toy_tokenizer, toy_weights

import pytest
import torch


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make EXP/checkpoints/epoch-1.pt, as averaging, decoding and training need it, and EXP/lm.pt."""
    exp = tmp_path_factory.mktemp("experiment")
    cfg, tokenizer = load_config(None, SMALL), toy_tokenizer()
    weights = toy_weights(cfg, tokenizer, 0)
    average = {"state": {k: v.double() for k, v in weights.items()}, "batches": 4, "period": 1}
    resume = {"optimizer": {}, "schedule": {}, "scaler": {}, "rng": {}, "progress": {"step": 4}}
    save_file(
        {"model": weights, "average": average, **resume, **provenance(cfg, tokenizer)}, exp / "checkpoints" / "epoch-1.pt"
    )
    (exp / "lm").mkdir()
    save_toy_lm(cfg, tokenizer, exp / "lm")
    return exp


READERS: dict[str, Callable[[Path], Any]] = {
    "average": lambda exp: make_average(exp / "checkpoints", load_config(None, ["average.mode=plain"]).average),
    "average of averages": lambda exp: load_for_averaging(exp / "checkpoints" / "epoch-1.pt", running=True),
    "decode, stream, tune": lambda exp: load_averaged(exp / "checkpoints" / "epoch-1.pt"),
    "language model": lambda exp: load_lm(exp / "lm" / "lm.pt", toy_tokenizer()),
}


def changed(experiment: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    exp = tmp_path / "exp"
    shutil.copytree(experiment, exp)
    for path in (exp / "checkpoints" / "epoch-1.pt", exp / "lm" / "lm.pt"):
        content = torch.load(path, weights_only=True)
        change(content)
        raw(path, without_floats(content))  # torch 1.13 cannot read floats
    return exp


def test_every_reader_reads_what_is_whole(experiment: Path, tmp_path: Path) -> None:
    exp = changed(experiment, tmp_path, lambda content: None)
    for read in READERS.values():
        read(exp)
    assert newest_readable(exp / "checkpoints") is not None


def test_a_tensor_with_an_attribute_is_not_plain() -> None:
    value = torch.ones(2)
    value.double = 3  # type: ignore[method-assign,assignment]
    assert tensor_problem(value) is not None and tensor_problem(torch.ones(2)) is None


@pytest.mark.parametrize("name", ["sparse", "meta", "quantized", "expanded", "complex"])
def test_every_reader_refuses_an_odd_weight(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        key = list(content["model"])[0]
        content["model"][key] = ODD[name]()  # type: ignore[no-untyped-call]

    exp = changed(experiment, tmp_path, change)
    for read in READERS.values():
        with pytest.raises(UserError, match=r"(epoch-1|lm)\.pt: "):
            read(exp)
    assert newest_readable(exp / "checkpoints") is None  # training and diagnosis: it is skipped with a line
    assert "epoch-1.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sizes",
    [
        {"d_model": 10**5, "rnn_hidden_size": 10**5},
        {"num_layers": 1000, "dim_feedforward": 10**5},
        {"d_model": 2000, "rnn_hidden_size": 4000, "num_layers": 12},
    ],
)
def test_a_model_larger_than_its_file_is_not_built(experiment: Path, tmp_path: Path, sizes: dict[str, int]) -> None:
    def change(content: dict[str, Any]) -> None:
        content["config"]["model"]["encoder"].update(sizes)

    exp = changed(experiment, tmp_path, change)
    start = time.process_time()
    with pytest.raises(UserError, match=r"epoch-1\.pt: .*model\.encoder"):
        load_averaged(exp / "checkpoints" / "epoch-1.pt")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "sizes",
    [
        {"dim": 10**5, "hidden": 10**5}, {"num_layers": 10**6}, {"hidden": 10**18}, {"dim": 2**70}, {"dim": 0}, {"dim": -1},
        {"num_layers": 0}, {"dim": "x"}, {"dim": 1.5}, {"dim": True}, {"dropout": 2.0}, {"dropout": "x"}, {"dropout": 10**400},
        {"other": 1}, {"sos_eos_id": 10**6}, {"sos_eos_id": "x"}, {1: 2}, {"dim": None}, {"hidden": [3]},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_sizes_of_a_language_model(experiment: Path, tmp_path: Path, sizes: dict[Any, Any]) -> None:
    def change(content: dict[str, Any]) -> None:
        if "lm" in content:
            content["lm"].update(sizes)

    exp = changed(experiment, tmp_path, change)
    start = time.process_time()
    with pytest.raises(UserError, match=r"lm\.pt: .*('lm'|lm\.hidden)"):
        load_lm(exp / "lm" / "lm.pt", toy_tokenizer())
    assert time.process_time() - start < 2


WRONG: dict[str, list[Any]] = {
    "tokens": [3, [3, None]],
    "tokens_hash": [["x"], torch.ones(3)],
    "bpe_model": [torch.ones(3), torch.zeros(2, 2, dtype=torch.uint8)],
    "vocab_size": [10**400],
    "versions": [None],
    "label": ["x" * 10**5],
    "averaged": [[None]],
    "progress": [torch.ones(3), {"step": "x"}],
    "config": [None, {"model": 3}],
    "average": [3, {"state": {"w": None}, "batches": 1, "period": 1}],
}


@pytest.mark.parametrize("key", WRONG)
def test_other_values_of_the_wrong_kind(experiment: Path, tmp_path: Path, key: str) -> None:
    """No reader fails with a traceback, whether it needs the value or not."""
    for i, value in enumerate(WRONG[key]):
        exp = changed(experiment, tmp_path / str(i), lambda content, value=value: content.update({key: value}))  # type: ignore[misc]
        for read in READERS.values():
            try:
                read(exp)
            except UserError as e:
                assert ".pt: " in str(e) or "checkpoints: " in str(e)
        newest_readable(exp / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["average", "decode", "stream", "tune", "diagnose"])
def test_programs_say_it_in_one_line(experiment: Path, tmp_path: Path, module: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"][list(content["model"])[0]] = torch.eye(3).to_sparse()

    exp = changed(experiment, tmp_path, change)
    checkpoint = ["--checkpoint", str(exp / "checkpoints" / "epoch-1.pt")]
    arguments = {
        "average": ["--exp-dir", str(exp)],
        "stream": ["x.wav", *checkpoint],
        "decode": [*checkpoint, "--exp-dir", str(exp), "--data-dir", str(tmp_path)],
        "tune": [*checkpoint, "--exp-dir", str(exp), "--data-dir", str(tmp_path), "tune.blank_penalty=[0,1]"],
        "diagnose": [*checkpoint, "--exp-dir", str(exp), "--data-dir", str(tmp_path)],
    }[module]
    done = subprocess.run([sys.executable, "-m", f"local.{module}", *arguments], capture_output=True, text=True, cwd=ROOT)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and lines and "Traceback" not in done.stderr and len(lines) == 1, done.stderr
    assert module == "diagnose" or "epoch-1.pt" in lines[0]


@pytest.mark.parametrize("progress", [3, {}, {"epoch": 1, "batch": 0}, {"epoch": 1, "batch": 0, "step": -1}, {"step": 1.5}])
def test_a_damaged_progress_is_named(experiment: Path, tmp_path: Path, progress: Any) -> None:
    exp = changed(experiment, tmp_path, lambda content: content.update(progress=progress))
    with pytest.raises(UserError, match=r"epoch-1\.pt: .*'progress'"):
        diagnose.load_model(load_config(None, SMALL), toy_tokenizer(), exp, exp / "checkpoints" / "epoch-1.pt")


def test_a_weight_that_is_infinite_in_float32_is_named(experiment: Path, tmp_path: Path) -> None:
    """Weights may be stored as float64; the model's are float32."""

    def change(content: dict[str, Any]) -> None:
        key = next(iter(content["model"]))
        content["model"][key] = content["model"][key].double() + 1e300

    exp = changed(experiment, tmp_path, change)
    with pytest.raises(UserError, match=r"epoch-1\.pt: .*NaN"):
        load_averaged(exp / "checkpoints" / "epoch-1.pt")


def test_files_that_a_checkpoint_names_are_told(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its configuration may name any file of this machine: decoding reads it, and says so; preparation does not."""

    def change(content: dict[str, Any]) -> None:
        config = content["config"]
        config["decode"].update(hotwords="/etc/hostname", lm="mine/lm.pt")
        config["decode"]["by_method"]["greedy_search"] = {"ngram": "secret.arpa"}
        config["augment"]["musan"] = config["lm"]["text"] = "/etc"
        config["average"]["checkpoints"] = ["/etc/passwd"]

    exp = changed(experiment, tmp_path, change)
    checkpoint = exp / "checkpoints" / "epoch-1.pt"
    load_averaged(checkpoint, ["decode.lm=my.pt"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(str(checkpoint) in line for line in lines)
    assert "decode.hotwords=/etc/hostname" in lines[0] and "decode.by_method.greedy_search.ngram=secret.arpa" in lines[1]
    checkpoint_conf.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "conf.yaml")])
    assert len(capsys.readouterr().err.splitlines()) == 3
    named = named_files(to_dict(load_config(tmp_path / "conf.yaml")))
    assert {key for key, _ in named} == {"decode.hotwords", "decode.lm", "decode.by_method.greedy_search.ngram"}


@pytest.mark.parametrize("label", ["..", "." * 300, "../../evil", "x" * 1000, "語" * 1000, "", "a\n"])
def test_the_label_of_a_checkpoint_names_no_other_folder(tmp_path: Path, label: str) -> None:
    path = tmp_path / "decode" / "greedy_search" / "test.jsonl"
    made_by = {"label": label, "date": "", "commit": "", "average": "", "options": {}}
    write_set(path, [{"id": "a"}], {"made_by": made_by})
    write_set(path, [{"id": "b"}], {"made_by": {**made_by, "label": "new"}})
    [moved] = [p for p in tmp_path.rglob("*.jsonl") if p != path]
    assert moved.read_text() == '{"id": "a"}\n' and moved.resolve().parents[2] == (tmp_path / "decode_earlier").resolve()
    assert moved.parent.name == "greedy_search"
