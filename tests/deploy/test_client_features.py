"""The features that sherpa-onnx computes against ours. It shows them to nobody, so graphs that copy them to its scores do.

The probe's encoder makes an output frame of every feature of a chunk. Its joiner gives the token "a" the log-probability
-log(1 + exp(s)) with s = (feature - 20) / 8. So each score of the result is one feature, computed inside the client.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from local.config import load_config
from local.data.features import make_extractor
from local.deploy.nodes import Graph

import numpy as np
import pytest
import soundfile
import torch

CHUNK, AHEAD, BINS = 32, 5, 80
TOKENS = "<blk> 0\n<sos/eos> 1\n<unk> 2\na 3\nb 4\n"
CLIENT = """
import json, sys, sherpa_onnx, soundfile
folder, wav = sys.argv[1:]
files = {name: f"{folder}/{name}.onnx" for name in ("encoder", "decoder", "joiner")}
client = sherpa_onnx.OnlineRecognizer.from_transducer(f"{folder}/tokens.txt", **files, temperature_scale=1.0)
stream = client.create_stream()
samples, rate = soundfile.read(wav, dtype="float32")
stream.accept_waveform(rate, samples)
while client.is_ready(stream):
    client.decode_stream(stream)
print(json.dumps(client.ys_probs(stream)))
"""


def write_probe(folder: Path) -> None:
    graph = Graph("encoder")
    x = graph.input("x", ("N", CHUNK + AHEAD, BINS))
    states = [graph.input(f"state{i}", (1, "N", 1)) for i in range(2)]
    now, _ = graph.split(x, [CHUNK, AHEAD], axis=1)
    graph.output("encoder_out", graph.reshape(now, [0, CHUNK * BINS, 1]), ("N", CHUNK * BINS, 1))
    for i, state in enumerate(states):
        graph.output(f"new_state{i}", state, (1, "N", 1))
    facts = {"num_encoder_layers": 1, "T": CHUNK + AHEAD, "decode_chunk_len": CHUNK, "rnn_hidden_size": 1, "d_model": 1}
    graph.write(folder / "encoder.onnx", {"model_type": "lstm", **facts})
    graph = Graph("decoder")
    x = graph.node("Gather", graph.weight("zeros", torch.zeros(5, 1)), graph.input("y", ("N", 2), "int64"))
    graph.output("decoder_out", graph.node("ReduceSum", x, graph.integers([1]), keepdims=0), ("N", 1))
    graph.write(folder / "decoder.onnx", {"context_size": 2, "vocab_size": 5})
    graph = Graph("joiner")
    x = graph.node("Add", *(graph.input(name, ("N", 1)) for name in ("encoder_out", "decoder_out")))
    weight, bias = torch.tensor([[0.0], [0.0], [0.0], [0.0], [0.125]]), torch.tensor([-99.0, -99.0, -99.0, 0.0, -2.5])
    graph.output("logit", graph.linear(x, "output", weight, bias), ("N", 5))
    graph.write(folder / "joiner.onnx", {"joiner_dim": 1})
    (folder / "tokens.txt").write_text(TOKENS, encoding="utf-8")


def test_the_client_computes_our_features(tmp_path: Path) -> None:
    for package in ("onnx", "sherpa_onnx"):
        pytest.importorskip(package)
    write_probe(tmp_path)
    rng = np.random.default_rng(0)
    levels = np.repeat([0.0, 0.3, 1e-4, 0.003, 0.03, 0.0, 1e-5, 0.1], 6400)  # 3.2 s, with digital silence in two places
    hum = np.sin(2 * np.pi * 150 / 16000 * np.arange(len(levels)))  # leaves quiet bins beside loud ones
    soundfile.write(tmp_path / "a.wav", np.clip(levels * (rng.standard_normal(len(levels)) + 3 * hum), -1, 1), 16000)
    command = [sys.executable, "-c", CLIENT, str(tmp_path), str(tmp_path / "a.wav")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    scores = np.array(json.loads(run.stdout))
    theirs = (8 * np.log(np.expm1(-scores)) + 20).reshape(-1, BINS)
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    ours = make_extractor(load_config(None, []).features).extract(samples, 16000)
    assert len(ours) - CHUNK - AHEAD - 2 <= len(theirs) < len(ours)
    assert ours[: len(theirs)].min() < -15.9 < 2 < ours.max()
    np.testing.assert_allclose(theirs, ours[: len(theirs)], atol=2e-3, rtol=0)
