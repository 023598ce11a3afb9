"""The graphs with 8-bit weights: size, metadata, agreement with float32; nothing is said and nothing else is left."""

from __future__ import annotations

import sys
from pathlib import Path

from local.common.errors import UserError
from local.deploy.int8 import write_int8
from local.deploy.lm_graph import write_lm
from local.deploy.transducer_graphs import GRAPHS, write_graphs
from model.lm import LstmLm
from tests.deploy.test_graphs import SMALL, make_model, run, start

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("packages")


@pytest.fixture(scope="module")
def folder(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    write_graphs(make_model(conf=SMALL, tiny=False), folder, 32)
    torch.manual_seed(0)
    lm = LstmLm(40, 128, 128, 1).eval()
    with torch.no_grad():
        for parameter in lm.parameters():  # of an untrained one the outputs are nearly uniform, whatever its LSTM does
            parameter.normal_(std=0.1)
    write_lm(lm, folder / "lm.onnx")
    write_int8(folder)
    return folder


def test_files(folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    import onnx

    write_int8(folder)
    assert capfd.readouterr() == ("", "") and not caplog.records
    names = (*GRAPHS, "lm")
    assert {p.name for p in folder.iterdir()} == {f"{name}{kind}.onnx" for name in names for kind in ("", ".int8")}
    for name in names:
        before, after = (onnx.load(folder / f"{name}{kind}.onnx") for kind in ("", ".int8"))
        assert before.metadata_props == after.metadata_props and after.ir_version == 8
        assert (before.graph.input, before.graph.output) == (after.graph.input, after.graph.output)
    sizes = [(folder / f"encoder{kind}.onnx").stat().st_size for kind in (".int8", "")]
    assert sizes[0] <= 0.3 * sizes[1]
    graph = onnx.load(folder / "encoder.int8.onnx").graph
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    used = [weights[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]
    assert not [node for node in graph.node if node.op_type == "MatMul"] and len(used) == 3 * 4 + 2 + 4 * 2 * 8
    assert {int(np.abs(w.astype(int)).max()) for w in used} == {64}  # two products fit into 16 bits: 2 * 255 * 64 < 2 ** 15


@pytest.mark.parametrize("name", [*GRAPHS, "lm"])
def test_agreement_with_float32(folder: Path, name: str) -> None:
    sessions = [start(folder / f"{name}{kind}.onnx") for kind in ("", ".int8")]
    torch.manual_seed(2)
    ids = torch.randint(3, 40, (1, 8 if name == "lm" else 2))
    state = [torch.zeros(1, 1, 128)] * 2
    inputs = {
        "encoder": [4 * torch.randn(1, 37, 80) - 6, torch.zeros(4, 1, 144), torch.zeros(4, 1, 256)],
        "decoder": [ids],
        "joiner": [2 * torch.randn(1, 144), 2 * torch.randn(1, 144)],
        "lm": [ids, *state],
    }[name]
    limits = {"lm": (0.01, 0.03, 0.03)}.get(name, (0.05,))  # of the LM's states as well
    for exact, rounded, limit in zip(*(run(session, *inputs) for session in sessions), limits):  # noqa: B905
        assert 0 < np.abs(exact - rounded).max() / np.abs(exact).max() < limit


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime.*pip install"):
        write_int8(folder)
