"""Compare the gradient study's cells and norms with torch's layers and products of Jacobians; check its curves."""

from __future__ import annotations

import csv
import math
import struct
from pathlib import Path

from local.common.errors import UserError
from local.common.html_page import Page
from local.config import load_config
from studies.gradient_cells import ACTIVATIONS, Setting, Size, draw_time, growth, over_depth, over_time, run_layer
from studies.gradient_flow import GAINS, KINDS, RATE_GAINS, section
from studies.study import chosen

import numpy as np
import pytest
import torch

SMALL = Size(hidden=12, seeds=3, back=15, before=5, layers=4, steps=4, depth_seeds=3)
MIDDLE = Size(hidden=48, seeds=6, back=40, before=10, layers=6, steps=6, depth_seeds=4)


def torch_layer(setting: Setting, seed: int, network: int) -> torch.nn.RNNBase:
    """Return torch's layer with the weights of one network."""
    layer = draw_time(setting, SMALL, seed)[0]
    options = {"nonlinearity": setting.activation} if setting.cell == "rnn" else {}
    made = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[setting.cell](
        SMALL.hidden, SMALL.hidden, **options
    )
    values = (layer.w_x[network].t(), layer.w_h[network].t(), layer.bias, torch.zeros_like(layer.bias))
    for param, value in zip(made.double().parameters(), values, strict=True):
        param.data = value.contiguous()
    return made


CASES = [
    Setting("rnn", "tanh", 1.5),
    Setting("rnn", "relu", 1.5),
    Setting("gru", "tanh", 2.0),
    Setting("lstm", "tanh", 2.0),
    Setting("lstm", "tanh", 2.0, 1.0),
]


@pytest.mark.parametrize("setting", CASES, ids=str)
def test_cells_and_gradients_equal_torch(setting: Setting) -> None:
    """Compare the gradient of h_{T-k} with that of the first state of torch's layer over the last k steps."""
    layer, x, v = draw_time(setting, SMALL, 3)
    hs, cs, _ = run_layer(setting, layer, x)
    norms = over_time(setting, SMALL, 3)
    for network in range(SMALL.seeds):
        theirs = torch_layer(setting, 3, network)
        out, _ = theirs(x[:, network])
        torch.testing.assert_close(torch.stack(hs)[:, network], out, rtol=1e-10, atol=1e-12)
        for back in (1, 4, SMALL.back):
            h0 = hs[-back - 1][network][None].clone().requires_grad_()
            c0 = cs[-back - 1][network][None].clone().requires_grad_()
            out, _ = theirs(x[-back:, network], (h0, c0) if setting.cell == "lstm" else h0)
            (out[-1] * v[network]).sum().backward()
            assert h0.grad is not None
            assert norms.by_h[network, back].item() == pytest.approx(h0.grad.norm().item(), rel=1e-10)
            if setting.cell == "lstm":
                # The gradient of c includes the path through h_{T-k}: dh_{T-k}/dc_{T-k} = o phi'(c). That of c0 does not.
                o_times_slope = (hs[-back - 1] / torch.tanh(cs[-back - 1]))[network] * (1 - torch.tanh(c0[0]) ** 2)
                whole = c0.grad[0] + h0.grad[0] * o_times_slope
                assert norms.by_c[network, back].item() == pytest.approx(whole.norm().item(), rel=1e-8)


def test_rnn_is_a_product_of_jacobians() -> None:
    """Compute a tanh rnn of gain below 1 in NumPy: compare its norms and the rate of the derivation."""
    setting = Setting("rnn", "tanh", 0.7)
    layer, x, v = draw_time(setting, MIDDLE, 5)
    norms = over_time(setting, MIDDLE, 5).by_h.numpy()
    rates = []
    for network in range(MIDDLE.seeds):
        w_x, w_h = layer.w_x[network].numpy().T, layer.w_h[network].numpy().T
        h, slopes = np.zeros(MIDDLE.hidden), []
        for frame in x[:, network, 0].numpy():
            h = np.tanh(w_x @ frame + w_h @ h)
            slopes.append(1 - h**2)
        gradient = v[network, 0].numpy()
        for back in range(MIDDLE.back + 1):
            assert norms[network, back] == pytest.approx(np.linalg.norm(gradient), rel=1e-10)
            gradient = w_h.T @ (slopes[-back - 1] * gradient)
        rates.append(0.7 * math.sqrt(np.mean(np.square(slopes[-MIDDLE.back :]))))
        assert norms[network, -1] < np.linalg.norm(w_h, 2) ** MIDDLE.back
    rate = np.median((norms[:, -1] / norms[:, 10]) ** (1 / (MIDDLE.back - 10)))
    assert rate < 0.7 and rate == pytest.approx(np.mean(rates), rel=0.1)
    assert np.median(growth(torch.from_numpy(norms)).numpy()) == pytest.approx(rate, rel=1e-12)


def test_growth_if_gradients_are_0() -> None:
    halved = [2.0**-k for k in range(21)]
    norms = torch.tensor([[1.0] + [0.0] * 20, halved, [*halved[:10], 0.0, *halved[11:]]])
    assert growth(norms).tolist() == pytest.approx([0.0, 0.5, 0.5])


def test_relu_explodes_and_vanishes_as_derived() -> None:
    for gain, low, high in ((1.0, 0.6, 0.8), (4.0, 2.5, 3.2)):  # gain / sqrt 2
        assert low < float(growth(over_time(Setting("rnn", "relu", gain), MIDDLE, 1).by_h).median()) < high


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_forget_bias_keeps_more(activation: str) -> None:
    closed, opened = (over_time(Setting("lstm", activation, 0.5, bias), MIDDLE, 2) for bias in (0.0, 1.0))
    for part in ("by_h", "by_c", "by_gates"):
        assert (getattr(opened, part)[:, -1] > 100 * getattr(closed, part)[:, -1]).all(), part
    kept = opened.by_gates[:, -1] / opened.by_gates[:, 0]
    expected = (1 / (1 + math.exp(-1))) ** MIDDLE.back
    assert 0.1 < float(kept.median()) / expected < 10


def test_depth_against_torch() -> None:
    """Compare the norms of each layer with those of a stack of torch's tanh rnns with the same weights."""
    setting = Setting("rnn", "tanh", 1.3)
    generator = torch.Generator().manual_seed(4)
    shape, matrix = (SMALL.steps, 3, 1, 12), (3, 12, 12)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x = draw(*shape)
    weights = [(1.3 * draw(*matrix) / math.sqrt(12), 0.5 * draw(*matrix) / math.sqrt(12)) for _ in range(SMALL.layers)]
    v = draw(*shape)
    norms = over_depth(setting, SMALL, 4)
    for network in range(3):
        y, outputs = x[:, network].requires_grad_(), []
        for w_x, w_h in weights:
            rnn = torch.nn.RNN(12, 12, bias=False).double()
            for param, value in zip(rnn.parameters(), (w_x[network].t(), w_h[network].t()), strict=True):
                param.data = value.contiguous()
            y, _ = rnn(y)
            outputs.append(y)
        found = [g.norm().item() for g in torch.autograd.grad((y * v[:, network]).sum(), outputs[::-1])]
        assert norms[network].tolist() == pytest.approx([value / found[0] for value in found], rel=1e-10)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


@pytest.mark.slow
def test_section_writes_numbers_and_plots(tmp_path: Path) -> None:
    page = Page("study", tmp_path)
    cfg = load_config()
    section(page, cfg, tmp_path, SMALL)
    shown = page.write("study").read_text(encoding="utf-8")
    assert shown.count("<img") == 4 and "product of k Jacobians" in shown
    rows = read(tmp_path / "gradient_time.csv")
    kinds, lstms = len(KINDS) * len(ACTIVATIONS), 2 * len(ACTIVATIONS)
    assert len(rows) == (kinds + 2 * lstms) * len(GAINS) * (SMALL.back + 1)
    assert len(read(tmp_path / "gradient_growth.csv")) == kinds * len(RATE_GAINS)
    assert len(read(tmp_path / "gradient_depth.csv")) == kinds * len(GAINS) * SMALL.layers
    one = {"cell": "lstm", "activation": "tanh", "gain": "2", "forget_bias": "1", "norm_of": "dL/dc", "steps_back": "9"}
    (row,) = [row for row in rows if one.items() <= row.items()]
    expected = over_time(Setting("lstm", "tanh", 2.0, 1.0), SMALL, cfg.train.seed).by_c[:, 9]
    assert float(row["median"]) == pytest.approx(expected.median().item(), rel=1e-5)
    assert float(row["p10"]) <= float(row["median"]) <= float(row["p90"])
    for name in ("gradient_time", "gradient_growth", "gradient_depth", "forget_gate"):
        header = (tmp_path / f"{name}.png").read_bytes()[:24]
        assert header[:4] == b"\x89PNG" and struct.unpack(">I", header[16:20])[0] == 1200


def test_sections_are_chosen_by_name() -> None:
    assert chosen("norms, gradient_flow") == ["gradient_flow", "norms"]
    with pytest.raises(UserError, match="gradient_flaw"):
        chosen("norms,gradient_flaw")
