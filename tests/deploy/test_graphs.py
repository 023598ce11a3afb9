"""The ONNX graphs against the model: onnxruntime in float32 gives what torch gives, over chunks whose states are carried on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.config import load_config
from local.decoding.streaming import OVERLAP
from local.deploy.int8 import write_int8
from local.deploy.transducer_graphs import GRAPHS, graph_problem, write_graphs
from model.build import build_model
from model.layers.activation import ACTIVATIONS
from model.layers.norm import NORMS
from model.search.contexts import Joint
from model.transducer import Transducer
from tests.conftest import ROOT

import numpy as np
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("packages")
VOCAB = 40
SMALL = str(ROOT / "conf" / "model" / "small.yaml")
TOLERANCE = 1e-5  # of the largest value
SIZES = ("d_model=48", "rnn_hidden_size=64", "dim_feedforward=40", "num_layers=2")
TINY = [*(f"model.encoder.{size}" for size in SIZES), "model.decoder.dim=20", "model.joiner.dim=28"]


def make_model(*overrides: str, conf: str | None = None, tiny: bool = True) -> Transducer:
    """Return a model in which no parameter has its initial value: a forgotten bias or scale changes results."""
    torch.manual_seed(1)
    model = build_model(load_config(conf, [*(TINY if tiny else []), *overrides]), VOCAB).eval()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.2 * torch.randn_like(value) * max(float(value.std(correction=0)), 0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def start(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: Any, *inputs: Tensor | np.ndarray) -> list[np.ndarray]:
    """Run a session as clients do: inputs and outputs by their order."""
    names = [x.name for x in session.get_inputs()]
    return session.run(None, {name: np.asarray(x) for name, x in zip(names, inputs, strict=True)})


def error(theirs: np.ndarray, ours: Tensor) -> float:
    """Return the largest difference, as a share of our largest value."""
    assert theirs.shape == tuple(ours.shape) and theirs.dtype == np.float32
    exact = ours.detach().numpy()
    return float(np.abs(theirs - exact).max() / np.abs(exact).max())


@torch.no_grad()
def encoder_error(model: Transducer, folder: Path, frames: int, n: int, chunks: int = 10, level: float = -6.0) -> float:
    """Return the largest `error` of outputs and states in `chunks` chunks of `frames` frames, for n streams."""
    session = start(folder / "encoder.onnx")
    states = model.encoder.initial_states(n, torch.zeros(1))
    theirs: Sequence[np.ndarray] = [x.numpy() for x in states]
    audio = level + 4 * torch.randn(n, chunks * frames + OVERLAP, model.encoder.num_features)
    errors = []
    for begin in range(0, chunks * frames, frames):
        x = audio[:, begin : begin + frames + OVERLAP]
        out, lens, states = model.encoder(x, torch.full((n,), x.size(1)), states)
        assert lens.tolist() == [frames // 4] * n
        result, *theirs = run(session, x, *theirs)
        errors += [error(result, model.joiner.encoder_proj(out)), *map(error, theirs, states)]
    return max(errors)


@pytest.mark.parametrize("n", [1, 3])
def test_encoder_of_the_default_architecture(tmp_path: Path, n: int) -> None:
    model = make_model(conf=SMALL, tiny=False)
    write_graphs(model, tmp_path, 32)
    assert encoder_error(model, tmp_path, 32, n) <= TOLERANCE


@pytest.mark.parametrize("overrides", [
    *(f"activation={name}" for name in ACTIVATIONS),
    *(f"norm={name}" for name in NORMS if name != "instance"),
    "rnn_hidden_size=48",
    "num_layers=1",
])  # fmt: skip
def test_encoder_of_other_architectures(tmp_path: Path, overrides: str) -> None:
    model = make_model(f"model.encoder.{overrides}")
    write_graphs(model, tmp_path, 16)
    assert encoder_error(model, tmp_path, 16, 3) <= TOLERANCE


@pytest.mark.parametrize("frames", [4, 32, 64])
def test_encoder_of_other_chunks(tmp_path: Path, frames: int) -> None:
    model = make_model()
    write_graphs(model, tmp_path, frames)
    assert encoder_error(model, tmp_path, frames, 2) <= TOLERANCE


def test_encoder_lifts_features_to_the_floor(tmp_path: Path) -> None:
    model = make_model()
    write_graphs(model, tmp_path, 32)
    silence = torch.full((1, 37, 80), -15.9)
    states = [x.numpy() for x in model.encoder.initial_states(1, torch.zeros(1))]
    without = run(start(tmp_path / "encoder.onnx"), silence, *states)[0]
    model.encoder.feature_floor = torch.linspace(-12, -5, 80)
    write_graphs(model, tmp_path, 32)
    assert encoder_error(model, tmp_path, 32, 2, level=-15.9) <= TOLERANCE
    session = start(tmp_path / "encoder.onnx")
    lifted = run(session, silence, *states)[0]
    np.testing.assert_array_equal(lifted, run(session, model.encoder.feature_floor.expand(1, 37, 80), *states)[0])
    assert np.abs(lifted - without).max() > 0.1
    with pytest.raises(AssertionError):
        model.encoder.feature_floor = None  # so the comparison above would see a forgotten floor
        assert encoder_error(model, tmp_path, 32, 2, level=-15.9) <= TOLERANCE


@pytest.mark.parametrize("context", [1, 2, 3])
def test_decoder(tmp_path: Path, context: int) -> None:
    model = make_model(f"model.decoder.context_size={context}")
    write_graphs(model, tmp_path, 4)
    ids = torch.randint(-1, VOCAB, (50, context))
    ids[:3] = torch.tensor([-1, 0, VOCAB - 1])[:, None]
    ours = model.joiner.decoder_proj(model.decoder(ids, need_pad=False).squeeze(1))
    session = start(tmp_path / "decoder.onnx")
    assert error(run(session, ids)[0], ours) <= TOLERANCE
    assert error(run(session, ids[:1])[0], ours[:1]) <= TOLERANCE
    nothing = model.joiner.decoder_proj(torch.zeros(1, 20))
    assert error(run(session, torch.full((1, context), -1))[0], nothing) <= TOLERANCE


@pytest.mark.parametrize(("temperature", "penalty"), [(1.0, 0.0), (0.7, 1.0), (0.7, -2.0), (1.0, -2.0)])
def test_joiner(tmp_path: Path, temperature: float, penalty: float) -> None:
    import onnx

    model = make_model()
    write_graphs(model, tmp_path, 4, temperature=temperature, blank_penalty=penalty)
    inputs = 2 * torch.randn(2, 30, 28)
    logits = torch.from_numpy(run(start(tmp_path / "joiner.onnx"), *inputs)[0])
    joint = Joint(model, temperature, penalty)
    assert error(logits.log_softmax(-1).numpy(), joint.log_probs(*inputs)) <= TOLERANCE
    plain = model.joiner.output_linear(inputs.sum(0).tanh()).detach()
    plain[:, 0] -= penalty
    assert error(logits.numpy(), plain / temperature) <= TOLERANCE
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(tmp_path / "joiner.onnx").graph.initializer}
    np.testing.assert_array_equal(weights["output.weight"], joint.weight.detach().numpy().T)
    np.testing.assert_array_equal(weights["output.bias"], joint.bias.detach().numpy())


def test_the_files_are_what_clients_take(tmp_path: Path) -> None:
    """As ../shared/EXPORT.md says it: names, order, types and shapes, metadata, opset, IR version; weights inside, once."""
    import onnx

    model = make_model()
    write_graphs(model, tmp_path, 32, source={"checkpoint": "0123"})
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    states = [(2, "N", 48), (2, "N", 64)]
    expected: dict[str, tuple[list, list, dict[str, str]]] = {
        "encoder": (
            [("x", float32, ("N", 37, 80)), ("state0", float32, states[0]), ("state1", float32, states[1])],
            [("encoder_out", float32, ("N", 8, 28)), *((f"new_state{i}", float32, s) for i, s in enumerate(states))],
            {"model_type": "lstm", "version": "1", "num_encoder_layers": "2", "T": "37", "decode_chunk_len": "32"}
            | {"rnn_hidden_size": "64", "d_model": "48", "checkpoint": "0123"},
        ),
        "decoder": (
            [("y", int64, ("N", 2))], [("decoder_out", float32, ("N", 28))], {"vocab_size": "40", "context_size": "2"}
        ),
        "joiner": (
            [("encoder_out", float32, ("N", 28)), ("decoder_out", float32, ("N", 28))],
            [("logit", float32, ("N", 40))],
            {"joiner_dim": "28"},
        ),
    }  # fmt: skip
    assert tuple(expected) == GRAPHS and {p.name for p in tmp_path.iterdir()} == {f"{name}.onnx" for name in GRAPHS}
    for name, (inputs, outputs, metadata) in expected.items():
        file = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False)
        assert ([(o.domain, o.version) for o in file.opset_import], file.ir_version) == ([("", 13)], 8)
        assert [described(x) for x in file.graph.input] == inputs
        assert [described(x) for x in file.graph.output] == outputs
        found = {p.key: p.value for p in file.metadata_props}
        assert isinstance(found.pop("model_author", "" if name != "encoder" else None), str) and found == metadata
        assert all(not w.external_data for w in file.graph.initializer)
    count = sum(p.numel() for p in model.encoder.parameters())
    assert (tmp_path / "encoder.onnx").stat().st_size < 4 * count + 60_000


def described(value: Any) -> tuple[str, int, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)


def test_a_ctc_head_is_left_out(tmp_path: Path) -> None:
    """The graphs are those of the same model without it."""
    plain, headed = make_model(), make_model("loss.ctc_scale=0.1")
    headed.load_state_dict(plain.state_dict(), strict=False)
    for name, model in (("plain", plain), ("headed", headed)):
        (tmp_path / name).mkdir()
        write_graphs(model, tmp_path / name, 16)
    assert headed.ctc_head is not None
    for graph in GRAPHS:
        contents = [(tmp_path / name / f"{graph}.onnx").read_bytes() for name in ("plain", "headed")]
        assert contents[0] == contents[1]


PROGRAM = """
import sys
from pathlib import Path
from tests.deploy.test_graphs import export
export(Path(sys.argv[1]))
"""


def export(folder: Path) -> None:
    folder.mkdir()
    write_graphs(make_model(), folder, 16, blank_penalty=1.0)
    write_int8(folder)


@pytest.mark.slow
def test_two_exports_are_equal_in_bytes(tmp_path: Path) -> None:
    """One is made in another process, whose sets and dicts have another order of hashes."""
    folders = tmp_path / "here", tmp_path / "there"
    export(folders[0])
    env = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM, str(folders[1])], cwd=ROOT, env=env, check=True, timeout=300)
    found = [{p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()} for folder in folders]
    assert len(found[0]) == 6 and found[0] == found[1]


@pytest.mark.parametrize(("overrides", "words"), [
    (["rnn=gru", "rnn_hidden_size=48"], ("rnn", "gru")),
    (["rnn=rnn", "rnn_hidden_size=48"], ("rnn", "rnn")),
    (["norm=instance"], ("norm", "instance")),
])  # fmt: skip
def test_what_clients_cannot_run_is_refused(tmp_path: Path, overrides: list[str], words: tuple[str, str]) -> None:
    model = make_model(*(f"model.encoder.{override}" for override in overrides))
    with pytest.raises(UserError, match=f"model.encoder.{words[0]}.*{words[1]}") as caught:
        write_graphs(model, tmp_path, 4)
    assert str(graph_problem(model)) in str(caught.value) and not list(tmp_path.iterdir())


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    model = make_model()
    assert graph_problem(model) is None
    for frames in (0, 6):
        with pytest.raises(ValueError, match=str(frames)):
            write_graphs(model, tmp_path, frames)
    with pytest.raises(ValueError):
        write_graphs(model.train(), tmp_path, 4)
    assert not list(tmp_path.iterdir())


def test_too_many_weights_for_a_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.deploy.nodes.LARGEST", 1000)
    with pytest.raises(UserError, match="encoder.onnx.*2 GB"):
        write_graphs(make_model(), tmp_path, 4)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="onnx.*pip install"):
        write_graphs(make_model(), tmp_path, 4)
