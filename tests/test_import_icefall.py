"""icefall's checkpoints: what the import reads, checks and writes; the recorded results of a model that icefall trained."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local import import_icefall, stream
from local.artifacts.checkpoint import load_averaged, load_file
from local.config import load_config
from local.data.tokenizer import train_tokenizer
from model.search import get_search
from tests.toy_experiment import SMALL, TEXTS, toy_tokenizer, toy_weights

import numpy as np
import pytest
import torch

State = dict[str, torch.Tensor]


def run(folder: Path, content: Any, *more: str, bpe_model: bytes | None = None) -> Path:
    """Import a file in icefall's layout, with the toy tokens; return the path of the result."""
    torch.save(content, folder / "pretrained.pt")
    (folder / "bpe.model").write_bytes(bpe_model or toy_tokenizer().model)
    out = folder / "exp" / "averaged.pt"
    files = ["--checkpoint", str(folder / "pretrained.pt"), "--bpe-model", str(folder / "bpe.model")]
    import_icefall.main([*files, "--out", str(out), *more])
    return out


def toy_state() -> State:
    return toy_weights(load_config(None, SMALL), toy_tokenizer(), 3)


def test_a_toy_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its sizes, which no key names, are found; the weights are those of the file; other keys can be given."""
    state = toy_state()
    second = {"decoder_giga.embedding.weight": torch.ones(3, 2), "simple_am_proj_giga.bias": torch.ones(3)}
    out = run(tmp_path, {"model": {**state, **second}}, "decode.beam=7")
    model, cfg, tokenizer = load_averaged(out)
    assert cfg.model == load_config(None, SMALL).model and cfg.decode.beam == 7 and cfg.lang.vocab_size == len(tokenizer.tokens)
    saved = load_file(out)
    assert saved["model"].keys() == state.keys() and all(torch.equal(saved["model"][name], state[name]) for name in state)
    said = capsys.readouterr().out
    assert "decoder_giga.embedding.weight" in said and "model.encoder.d_model=16" in said
    assert saved["label"] == "pretrained" and "pretrained.pt" in saved["averaged"]


@pytest.mark.parametrize(("texts", "case"), [(TEXTS, "upper"), (["one two", "two"], "lower"), (["One two"], "none")])
def test_the_case_of_texts_is_that_of_the_tokens(texts: list[str], case: str) -> None:
    assert import_icefall.case_of(train_tokenizer(texts, 20)) == case


class Attack:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.made}",))


def other_shape(state: State, folder: Path) -> None:
    state["joiner.decoder_proj.weight"] = torch.ones(16, 20)


def missing(state: State, folder: Path) -> None:
    del state["encoder.encoder.layers.0.lstm.bias_hh_l0_scale"]


def unknown(state: State, folder: Path) -> None:
    state["encoder.encoder.layers.0.self_attn.weight"] = torch.ones(2)


def another_layer(state: State, folder: Path) -> None:
    state["encoder.encoder.layers.900.norm_final.eps"] = torch.tensor(1.0)


def infinite(state: State, folder: Path) -> None:
    state["joiner.output_linear.bias"][2] = float("inf")


def code(state: State, folder: Path) -> None:
    state["x"] = Attack(folder / "made")  # type: ignore[assignment]


FAULTS: list[tuple[Callable[[State, Path], None], list[str]]] = [
    (other_shape, ["'joiner.decoder_proj.weight'", "(16, 20)", "(16, 16)"]),
    (missing, ["'encoder.encoder.layers.0.lstm.bias_hh_l0_scale'"]),
    (unknown, ["'encoder.encoder.layers.0.self_attn.weight'"]),
    (another_layer, ["weights"]),
    (infinite, ["'joiner.output_linear.bias'"]),
    (code, ["system"]),
]


@pytest.mark.parametrize(("fault", "named"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_fault_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Callable[[State, Path], None], named: list[str]
) -> None:
    state = toy_state()
    fault(state, tmp_path)
    with pytest.raises(SystemExit):
        run(tmp_path, {"model": state})
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "pretrained.pt" in said, said
    assert all(part in said for part in named), said
    assert not (tmp_path / "made").exists() and not (tmp_path / "exp" / "averaged.pt").exists()


def test_tokens_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = train_tokenizer(["A B C D E"], 9)
    with pytest.raises(SystemExit):
        run(tmp_path, {"model": toy_state()}, bpe_model=other.model)
    said = capsys.readouterr().err
    assert f" {other.vocab_size}" in said and f" {toy_tokenizer().vocab_size} " in said and "bpe.model" in said


def test_a_checkpoint_of_this_project_needs_no_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(tmp_path, {"model": toy_state()})
    again = ["--bpe-model", str(tmp_path / "bpe.model"), "--out", str(tmp_path / "again.pt")]
    with pytest.raises(SystemExit):
        import_icefall.main(["--checkpoint", str(out), *again])
    assert str(out) in capsys.readouterr().err


@pytest.mark.slow
def test_the_recorded_results_of_a_model_that_icefall_trained(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("soundfile")
    from tests.reference import encode, read_features

    with np.load(shared / "reference" / "digits_model.npz") as arrays:
        state = {key[6:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("param/")}
    out = run(tmp_path, {"model": state}, bpe_model=(shared / "reference" / "digits_bpe.model").read_bytes())
    model, _, tokenizer = load_averaged(out)
    speech = shared / "speech" / "LibriSpeech-digits" / "dev-clean-2"
    recorded = json.loads((shared / "reference" / "digits_dev.json").read_text())["tokens"]["greedy_search"]
    found: dict[str, list[int]] = {}
    for ids, encoder_out, lens in encode(model, read_features(speech)):
        results = get_search("greedy_search")(model, encoder_out, lens)
        found.update({i: list(r.tokens) for i, r in zip(ids, results, strict=True)})
    assert len(found) == 180 and found == {key.rsplit("-", 1)[0]: tokens for key, tokens in recorded.items()}
    audio = next(path for path in sorted(speech.rglob("*.flac")) if found[path.stem])
    capsys.readouterr()
    stream.main([str(audio), "--checkpoint", str(out)])
    assert tokenizer.decode(found[audio.stem]).split()[0] in capsys.readouterr().out
