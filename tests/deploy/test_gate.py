"""The gate: real sherpa-onnx says what the recipe says, and every planted fault is found."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

from local.artifacts.checkpoint import load_averaged
from local.common.errors import UserError
from local.corpus.corpus_yaml import load_corpus
from local.deploy.client import BEAM, GREEDY
from local.deploy.dev_audio import Utterance, read_utterances
from local.deploy.gate import Gate, allowed, frames_decoded, padded
from local.deploy.int8 import write_int8
from local.deploy.sherpa import Said, recognise, recogniser_options
from local.deploy.tokens_files import write_tokens
from local.deploy.transducer_graphs import write_graphs
from local.scoring.align import word_errors
from model.transducer import Transducer
from tests.deploy.exported import copied, run_export, write_digits
from tests.digits import DEV, digits_folder, references, zeros
from tests.reference import RATE, read_audio

import numpy as np
import pytest
import torch

for package in ("onnx", "onnxruntime", "sherpa_onnx"):
    pytest.importorskip(package, reason="needs requirements-export.txt")

CHUNK = 32


@pytest.fixture(scope="module")
def digits(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(shared, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def gate(digits: Path) -> Gate:
    model, cfg, tokenizer = load_averaged(digits / "averaged.pt")
    return Gate(model, cfg, tokenizer, CHUNK)


@pytest.fixture(scope="module")
def utterances(digits: Path, gate: Gate) -> list[Utterance]:
    return read_utterances(gate.cfg, digits / "data", load_corpus(digits / "data" / "corpus.yaml"), 100)


@pytest.fixture(scope="module")
def graphs(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with all graphs and tokens.txt."""
    folder = tmp_path_factory.mktemp("graphs")
    write_graphs(gate.model, folder, CHUNK)
    write_int8(folder)
    write_tokens(gate.tokenizer, folder)
    return folder


def test_the_frames_that_the_client_decodes() -> None:
    """Count as sherpa-onnx does: while processed + T < ready, decode T frames and move on by a chunk."""
    for chunk in (4, 32, 64):
        for ready in range(300):
            processed, seen = 0, 0
            while processed + chunk + 5 < ready:
                seen = processed + chunk + 5
                processed += chunk
            assert frames_decoded(ready, chunk) == seen


def test_the_zeros_bring_the_end_into_whole_chunks() -> None:
    for chunk in (4, 32, 64):
        for samples in range(0, 20_000, 777):
            total = len(padded(np.ones(samples, np.float32), RATE, chunk)) // 160
            assert frames_decoded(total, chunk) >= samples // 160 + 30


def test_how_many_may_differ() -> None:
    assert [allowed(0.0, 1000), allowed(1 / 200, 20), allowed(1 / 200, 400), allowed(0.03, 100)] == [0, 1, 2, 3]


def test_the_gate_passes_on_speech(gate: Gate, graphs: Path, utterances: list[Utterance]) -> None:
    report = gate.run(graphs, utterances, True, 0.3)
    assert report["run"] and report["utterances"] == len(utterances) == 12
    assert report["float32"][GREEDY]["different"] == 0
    assert report["float32"][GREEDY]["wer"] == report["float32"][GREEDY]["wer_of_recipe"] < 10
    assert report["float32"][BEAM]["wer"] < 10 and report["int8"][GREEDY]["wer"] < 10
    assert report["encoder_int8_size"] < 0.3


def swapped(model: Transducer) -> Transducer:
    """Return the model with the gates i and f of its first LSTM in the other order."""
    other = copy.deepcopy(model)
    for name, weight in other.encoder.encoder.layers[0].lstm.named_parameters():
        if weight.ndim and weight.shape[0] == 4 * model.encoder.rnn_hidden_size and not name.endswith("_scale"):
            size = model.encoder.rnn_hidden_size
            weight.data = torch.cat([weight[size : 2 * size], weight[:size], weight[2 * size :]]).data
    return other


def without_floor(model: Transducer) -> Transducer:
    other = copy.deepcopy(model)
    assert other.encoder.feature_floor is not None
    other.encoder.feature_floor = None
    return other


def with_penalty(model: Transducer) -> Transducer:
    other = copy.deepcopy(model)
    other.joiner.output_linear.bias.data[0] -= 8.0
    return other


@pytest.mark.parametrize("fault", [swapped, without_floor, with_penalty])
def test_a_graph_of_another_model_is_found(
    gate: Gate, graphs: Path, utterances: list[Utterance], tmp_path: Path, fault: Callable[[Transducer], Transducer]
) -> None:
    folder = copied(graphs, tmp_path / "graphs")
    write_graphs(fault(gate.model).eval(), folder, CHUNK)
    with pytest.raises(UserError, match=rf"float32, {GREEDY}.* of 6 .*{utterances[0].id[:4]}"):
        gate.run(folder, utterances[:6], False, 0.3)


def test_bad_weights_of_int8_are_found(gate: Gate, graphs: Path, utterances: list[Utterance], tmp_path: Path) -> None:
    folder, other = copied(graphs, tmp_path / "graphs"), tmp_path / "other"
    other.mkdir()
    write_graphs(swapped(gate.model).eval(), other, CHUNK)
    write_int8(other)
    (other / "encoder.int8.onnx").replace(folder / "encoder.int8.onnx")
    with pytest.raises(UserError, match=f"int8, {GREEDY}"):
        gate.run(folder, utterances, True, 0.3)
    (folder / "encoder.int8.onnx").write_bytes((graphs / "encoder.onnx").read_bytes())  # as large as float32
    with pytest.raises(UserError, match="encoder.int8.onnx.*0.3"):
        gate.run(folder, utterances, True, 0.3)


@pytest.mark.parametrize(
    ("graph", "key", "value"),
    [
        ("encoder", "T", "38"),
        ("encoder", "decode_chunk_len", "16"),
        ("encoder", "d_model", None),
        ("encoder", "model_type", "x"),
    ]
    + [("decoder", "context_size", "1"), ("decoder.int8", "vocab_size", None), ("joiner", "joiner_dim", "1")],
)
def test_a_wrong_key_is_named(gate: Gate, graphs: Path, tmp_path: Path, graph: str, key: str, value: str | None) -> None:
    change_key(copied(graphs, tmp_path / "graphs") / f"{graph}.onnx", key, value)
    with pytest.raises(UserError, match=rf"{graph}.onnx.*'{key}' is {value and repr(value)}; "):
        gate.run(tmp_path / "graphs", [], True, 0.3)


def change_key(path: Path, key: str, value: str | None) -> None:
    """Change a metadata key of a graph; None removes it."""
    import onnx

    graph = onnx.load(path)
    kept = {entry.key: entry.value for entry in graph.metadata_props if entry.key != key}
    onnx.helper.set_model_props(graph, kept if value is None else {**kept, key: value})
    onnx.save(graph, path)


def test_the_end_of_the_client_is_an_error(gate: Gate, graphs: Path, utterances: list[Utterance], tmp_path: Path) -> None:
    """It ends by _Exit where a key is missing; this process stays."""
    folder = copied(graphs, tmp_path / "graphs")
    change_key(folder / "encoder.onnx", "decode_chunk_len", None)
    options = recogniser_options(folder, gate.cfg.features, GREEDY, False)
    with pytest.raises(UserError, match="^the test: .*decode_chunk_len"):
        recognise(options, [utterances[0].samples], gate.tokenizer, "the test")


def test_an_export_that_fails_leaves_nothing(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planted(model: Transducer, *args: object, **options: object) -> None:
        write_graphs(swapped(model).eval(), *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("local.export.write_graphs", planted)
    with pytest.raises(SystemExit):
        run_export(digits, tmp_path / "out")
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if line.startswith("error: ")] == said.splitlines()[-1:]
    assert "float32" in said.splitlines()[-1] and list(tmp_path.iterdir()) == []


# ---- digital silence ----


def heard(gate: Gate, graphs: Path, audio: list[np.ndarray]) -> list[Said]:
    options = recogniser_options(graphs, gate.cfg.features, GREEDY, False)
    return recognise(options, audio, gate.tokenizer, "silence")


def test_zeros_alone_have_no_word(gate: Gate, graphs: Path) -> None:
    assert heard(gate, graphs, [zeros(5.0)]) == [Said((), ())]


def test_zeros_between_utterances_have_no_word(gate: Gate, graphs: Path, utterances: list[Utterance]) -> None:
    pairs = list(zip(utterances[::2], utterances[1::2], strict=True))
    joined = [np.concatenate([a.samples, zeros(5.0), b.samples, zeros(0.8)]) for a, b in pairs]
    alone = heard(gate, graphs, [np.concatenate([u.samples, zeros(0.8)]) for u in utterances])
    errors, words = 0, 0
    for (a, _), said, *texts in zip(pairs, heard(gate, graphs, joined), alone[::2], alone[1::2], strict=True):
        begin = len(a.samples) / RATE
        assert not [t for t in said.times if begin + 0.5 < 0.04 * t < begin + 5.0]
        expected = " ".join(gate.tokenizer.decode(found.tokens) for found in texts)
        errors += word_errors(expected, gate.tokenizer.decode(said.tokens))
        words += len(expected.split())
    assert errors <= 0.1 * words  # the second utterance of a pair begins in another state


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(0.0, 0.66), (0.5, 0.8)])
def test_zeros_around_speech_cost_nothing(shared: Path, gate: Gate, graphs: Path, before: float, after: float) -> None:
    """As sherpa-onnx's Python example and its command line pad; the recipe's own WER of this set is 4.28 %."""
    audio, texts = read_audio(digits_folder(shared, DEV)), references(shared)
    said = heard(gate, graphs, [np.concatenate([zeros(before), samples, zeros(after)]) for samples in audio.values()])
    errors = sum(word_errors(texts[name], gate.tokenizer.decode(s.tokens)) for name, s in zip(audio, said, strict=True))
    wer = 100 * errors / sum(len(texts[name].split()) for name in audio)
    print(f"{before:g} s before, {after:g} s after: WER {wer:.2f} %")
    assert wer <= 4.28 + 0.5


@pytest.mark.slow
def test_the_gate_passes_on_all_digits(shared: Path, gate: Gate, graphs: Path) -> None:
    texts = references(shared)
    everything = [Utterance(name, texts[name], x) for name, x in read_audio(digits_folder(shared, DEV)).items()]
    report = gate.run(graphs, everything, True, 0.3)
    assert report["utterances"] == 180 and report["float32"][GREEDY]["wer"] < 4.78


def test_settings_of_the_search_reach_both(gate: Gate, graphs: Path, utterances: list[Utterance], tmp_path: Path) -> None:
    """A blank penalty that is folded changes both sides alike, so that the gate still passes."""
    decode = dataclasses.replace(gate.cfg.decode, blank_penalty=2.0, temperature=1.5, beam=2)
    other = Gate(gate.model, dataclasses.replace(gate.cfg, decode=decode), gate.tokenizer, CHUNK)
    folder = copied(graphs, tmp_path / "graphs")
    write_graphs(gate.model, folder, CHUNK, blank_penalty=2.0, temperature=1.5)
    assert other.run(folder, utterances[:3], False, 0.3)["float32"][GREEDY]["different"] == 0
    with pytest.raises(UserError, match="float32"):
        other.run(graphs, utterances[:6], False, 0.3)
