"""Compare the diagnosis with NumPy and autograd, and check that its first line names planted faults."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from local.common.visible import unquoted, visible
from local.config import load_config
from local.data.batch import Batch
from local.diagnose import corrupt, main, measure, scale_recurrent
from local.diagnosis.probe import PERCENTILES, Probed, Spread, in_order, recurrent_rms
from local.diagnosis.verdict import FRONT_END, verdict
from model.build import build_model
from model.transducer import Transducer
from tests.toy_experiment import make_experiment, write_toy_lang

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")  # two threads take several times as long with such small models

SMALL = [
    *(f"model.encoder.{key}=32" for key in ("d_model", "rnn_hidden_size", "dim_feedforward")),
    *("model.encoder.num_layers=4", "model.decoder.dim=16", "model.joiner.dim=16", "data.num_workers=0"),
]
WARMUP = 2.0  # the pruned loss and all layers have their full weight


def toy(seed: int, *overrides: str) -> tuple[Transducer, Any]:
    cfg = load_config(None, [*SMALL, *overrides])
    torch.manual_seed(seed)
    return build_model(cfg, 20).train(), cfg


def batch_of(seed: int, frames: int = 160, utterances: int = 5) -> Batch:
    """Return random features with the mean and the standard deviation of log-mel features."""
    generator = torch.Generator().manual_seed(seed)
    lens = torch.linspace(frames, frames * 0.7, utterances).long()
    inputs = torch.randn(utterances, frames, 80, generator=generator) * 3 - 8
    for row, length in zip(inputs, lens.tolist(), strict=True):
        row[length:] = -23.03
    tokens = torch.randint(3, 20, (utterances, 9), generator=generator)
    ids = [f"{seed}-{n}" for n in range(utterances)]
    return Batch(inputs, lens, tokens, torch.full((utterances,), 9), ids)


def line_of(model: Transducer, cfg: Any, batches: list[Batch], warmup: float = WARMUP) -> str:
    probe, losses = measure(model, cfg, batches, warmup)
    assert len(losses) == len(probe.ids) == sum(len(b.ids) for b in batches)
    return verdict(probe.modules, probe.ids, recurrent_rms(model)).line


def test_spread_equals_numpy() -> None:
    """Compare sums over two batches with sequences of different lengths, four axes and a non-finite value."""
    rng = np.random.default_rng(0)
    batches = [(1e3 * rng.standard_normal((3, 5, 2, 4)) + 500, [5, 3, 2]), (rng.standard_normal((2, 7, 2, 4)), [7, 4])]
    batches[0][0][1, 0, 1, 2] = np.nan
    spread = Spread()
    for x, lens in batches:
        spread.add(torch.from_numpy(x), torch.tensor(lens))
    sequences = [np.nan_to_num(x[i, :length]) for x, lens in batches for i, length in enumerate(lens)]
    frames = np.concatenate([s.reshape(-1, 4) for s in sequences])  # (positions, C)
    found = spread.numbers()
    assert found["not_finite"] == 1
    np.testing.assert_allclose(found["rms"], np.sqrt(np.mean(frames**2)), rtol=1e-5)
    np.testing.assert_allclose(found["positive"], np.mean(frames > 0), rtol=1e-6)
    np.testing.assert_allclose(torch.cat(spread.norms), [np.linalg.norm(s) for s in sequences], rtol=1e-5)
    np.testing.assert_allclose(
        torch.cat(spread.by_channel), [np.sqrt(np.mean(s**2, axis=(0, 1))) for s in sequences], rtol=1e-5
    )
    times = [np.sqrt(np.mean(np.stack([s[t] for s in sequences if len(s) > t]) ** 2)) for t in range(7)]
    for axis, values in (
        ("sequence", [np.sqrt(np.mean(s**2)) for s in sequences]),
        ("channel", np.sqrt(np.mean(frames**2, axis=0))),
        ("time", times),
    ):
        np.testing.assert_allclose([found[f"{axis}_p{p}"] for p in PERCENTILES], np.percentile(values, PERCENTILES), rtol=1e-5)
    eigenvalues = np.linalg.eigvalsh(np.cov(frames.T, bias=True))
    share = eigenvalues / eigenvalues.sum()
    np.testing.assert_allclose(found["top_direction"], share.max(), rtol=1e-4)
    np.testing.assert_allclose(found["effective_rank"], np.exp(-(share * np.log(share)).sum()), rtol=1e-4)


def test_every_module_is_seen_with_its_sequences_and_channels() -> None:
    model, cfg = toy(0)
    ran: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
    probe, _ = measure(model, cfg, [batch_of(1), batch_of(2, frames=100, utterances=3)], WARMUP)
    width = {
        "encoder.encoder_embed.conv.0": 8,
        "encoder.encoder_embed.conv.8": 128,
        "encoder.encoder_embed.out_norm": 32,
        "encoder.encoder.layers.2.lstm": 32,
        "encoder.encoder.layers.0.dropout#2": 32,
        "encoder": 32,
        "joiner.encoder_proj": 16,
        "simple_lm_proj": 20,
        "decoder.conv": 16,
        "decoder.embedding": 16,
    }
    for name, channels in width.items():
        p = probe.modules[name]
        assert len(p.output.channels) == len(p.gradient.channels) == channels, name
        assert len(torch.cat(p.output.norms)) == len(torch.cat(p.gradient.norms)) == 8, name
    frames = {
        "encoder.encoder_embed.conv.0": 158,
        "encoder.encoder_embed.conv.3": 78,
        "encoder.encoder.layers.0": 38,
        "decoder": 10,
    }
    for name, length in frames.items():
        assert len(probe.modules[name].output.times) == length
    assert {n.partition("#")[0] for n in probe.modules} == ran - {""}


def test_a_module_over_other_axes_is_named() -> None:
    """Refuse a module whose tensors are not over the batch's frames: its padding would count as speech."""
    model, cfg = toy(0)

    class Halved(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(x[:, :, ::2].transpose(1, 2), scale_factor=2.0).transpose(1, 2)[:, :3]

    model.simple_am_proj.register_module("odd", Halved())
    model.simple_am_proj.register_forward_hook(lambda m, args, out: (m.odd(out), out)[1])
    with pytest.raises(ValueError, match=r"simple_am_proj\.odd: \(5, 3\)"):
        measure(model, cfg, [batch_of(1)], WARMUP)


def test_tensors_are_permuted_by_their_axes() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    assert torch.equal(in_order(x, "NCTF"), x.permute(0, 2, 3, 1))
    assert torch.equal(in_order(x[0], "TNC"), x[0].transpose(0, 1).unsqueeze(2))
    assert torch.equal(in_order(x[0], "NCT"), x[0].transpose(1, 2).unsqueeze(2))


def test_amplification_excludes_the_filter() -> None:
    """Compare with a vector-Jacobian product of the LSTM without probe and filter, and with the filter's mask."""
    model, cfg = toy(3)
    layer = model.encoder.encoder.layers[1]
    seen: dict[str, torch.Tensor] = {}

    def keep(module: torch.nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        seen["x"] = args[0].detach()
        output[0].register_hook(lambda g: seen.update(g=g))

    layer.lstm.register_forward_hook(keep)
    probe, _ = measure(model, cfg, [batch_of(4)], WARMUP)
    x = seen["x"].requires_grad_()
    zeros = x.new_zeros(1, 5, 32)
    out = layer.lstm(x, zeros, zeros, layer.lstm.scaled_parameters())[0]
    (by_x,) = torch.autograd.grad(out, x, seen["g"])
    expected = by_x.square().sum((0, 2)).sqrt() / seen["g"].square().sum((0, 2)).sqrt()
    name = "encoder.encoder.layers.1"
    torch.testing.assert_close(probe.modules[f"{name}.lstm"].amplification().float(), expected, rtol=1e-4, atol=0)
    at_filter = probe.modules[f"{name}.gradient_filter"]
    ratio = torch.cat(at_filter.passed) / torch.cat(at_filter.gradient.norms)
    torch.testing.assert_close(ratio.float(), layer.gradient_filter.mask, rtol=1e-4, atol=0)


def test_the_probe_changes_no_gradients_and_removes_its_hooks() -> None:
    model, cfg = toy(5)
    batch = batch_of(6)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    results = []
    for probed in (True, False):
        torch.manual_seed(7)
        if probed:
            measure(model, cfg, [batch], WARMUP)
        else:
            found = model(batch.inputs, batch.input_lens, batch.tokens, batch.token_lens, warmup=WARMUP)
            model.zero_grad()
            (cfg.loss.simple_scale * found["simple"] + found["pruned"]).sum().backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(results[0]) == len(results[1]) == len(list(model.parameters()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=3e-5)  # with a gradient at the features, other kernels round otherwise
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("warmup", [0.0, WARMUP])
def test_a_scaled_recurrent_matrix_is_named(layer: int, warmup: float) -> None:
    model, cfg = toy(layer)
    scale_recurrent(model, str(layer), 8.0)
    assert line_of(model, cfg, [batch_of(1)], warmup).startswith(
        f"gradient explodes in encoder.encoder.layers.{layer}.lstm: x "
    )


def test_a_scaled_recurrent_matrix_that_does_not_explode_is_named() -> None:
    """Name the matrix if closed gates, which trained layers can have, pass no gradient on."""
    model, cfg = toy(0)
    for layer in model.encoder.encoder.layers:
        with torch.no_grad():
            layer.lstm.bias_ih_l0[: 2 * 32] -= 30.0  # input and forget gates
    scale_recurrent(model, "2", 8.0)
    line = line_of(model, cfg, [batch_of(1)])
    assert line.startswith("the recurrent matrix of encoder.encoder.layers.2.lstm is an outlier: x 8")


@pytest.mark.parametrize("warmup", [0.0, WARMUP])
def test_a_corrupt_utterance_is_named(warmup: float) -> None:
    model, cfg = toy(0)
    batches = [batch_of(1), batch_of(2)]
    assert corrupt(batches, "2-3", "loud") == "2-3"
    line = line_of(model, cfg, batches, warmup)
    assert line.startswith("activations of utterance 2-3 are outliers in encoder.encoder_embed.")
    assert "explodes" not in line


def smooth(batch: Batch) -> Batch:
    """Return the batch with features that are smooth over time and frequency, like those of speech."""
    pooled = torch.nn.functional.avg_pool2d(batch.inputs.unsqueeze(1), 7, stride=1, padding=3, count_include_pad=False)
    return replace(batch, inputs=pooled.squeeze(1))


@pytest.mark.parametrize("warmup", [0.0, WARMUP])
def test_noise_with_the_mean_and_deviation_of_speech_is_named_by_its_channels(warmup: float) -> None:
    model, cfg = toy(0)
    batches = [smooth(batch_of(1)), smooth(batch_of(2))]
    assert line_of(model, cfg, batches, warmup).startswith("nothing explodes; ")
    row = batches[1].inputs[3, : int(batches[1].input_lens[3])]
    row[:] = (torch.randn(row.shape, generator=torch.Generator().manual_seed(1)) * 3) - 8
    assert line_of(model, cfg, batches, warmup).startswith("a channel of utterance 2-3 is an outlier in " + FRONT_END)


def test_both_faults_are_named_together() -> None:
    model, cfg = toy(0)
    scale_recurrent(model, "1", 8.0)
    batches = [batch_of(1)]
    corrupt(batches, "first", "loud")
    line = line_of(model, cfg, batches)
    assert line.startswith("gradient explodes in encoder.encoder.layers.1.lstm")
    assert "activations of utterance 1-0 are outliers" in line


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("warmup", [0.0, WARMUP])
def test_healthy_models_raise_no_alarm(seed: int, warmup: float) -> None:
    model, cfg = toy(seed)
    assert line_of(model, cfg, [batch_of(seed), batch_of(seed + 50, frames=80)], warmup).startswith("nothing explodes; ")


@pytest.mark.parametrize(
    "override",
    [f"model.encoder.norm={n}" for n in ("layer", "batch", "group", "instance", "none")]
    + [f"model.encoder.activation={a}" for a in ("relu", "sigmoid", "tanh")]
    + ["gradient.control=none", "model.encoder.rnn=gru", "train.precision=bf16"],
)
def test_no_alarm_whatever_the_layers_are(override: str) -> None:
    model, cfg = toy(1, override)
    assert line_of(model, cfg, [batch_of(1, frames=100)]).startswith("nothing explodes; ")


def test_non_finite_values_come_first() -> None:
    model, cfg = toy(0)
    batch = batch_of(1)
    batch.inputs[2, 5] = float("inf")
    assert line_of(model, cfg, [batch]).startswith("not finite: the activations of encoder.encoder_embed.conv.0, utterance 1-2")
    model, cfg = toy(0)
    layer = model.encoder.encoder.layers[2]
    layer.lstm.register_forward_hook(lambda m, a, out: (_Overflow.apply(out[0]), *out[1:]))
    line = line_of(model, cfg, [batch_of(1)])
    assert line.startswith("not finite: the gradient at the input of encoder.encoder.layers.2.lstm, utterance 1-4")


class _Overflow(torch.autograd.Function):
    """Identity whose gradient is infinite for the fifth sequence of (T, N, C)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        g = grads[0].clone()
        g[0, 4] = float("inf")
        return g


def measured(name: str, norms: list[list[float]], passed: list[list[float]] | None = None) -> Probed:
    """Return a module with these gradient norms by batch, and equal activations."""
    p = Probed(name)
    p.gradient.norms = [torch.tensor(n, dtype=torch.float64) for n in norms]
    p.output.norms = p.output.rms = [torch.ones_like(n) for n in p.gradient.norms]
    p.output.bad = p.gradient.bad = p.passed_bad = [torch.zeros(len(n)) for n in norms]
    p.passed = p.gradient.norms if passed is None else [torch.tensor(n, dtype=torch.float64) for n in passed]
    return p


def judge(*modules: Probed) -> str:
    ids = [f"u{i}" for i in range(len(torch.cat(modules[0].output.rms)))]
    return verdict({m.name: m for m in modules}, ids).line


def test_a_large_gradient_from_the_loss_is_blamed_on_its_utterance() -> None:
    """Name the layer of the largest ratio and the ratio at the loss, if no layer amplifies the gradient."""
    a = measured("encoder.a", [[1, 2, 90, 1, 2, 1, 1, 1]])
    whole = measured("encoder", [[1, 2, 60, 1, 2, 1, 1, 1]])
    line = judge(a, whole)
    assert line.startswith("the gradient of utterance u2 is an outlier in encoder.a: x 45")
    assert "x 30 " in line


def test_a_large_gradient_below_an_exploding_layer_is_not_blamed_on_its_utterances() -> None:
    below = measured("encoder.below", [[500, 9, 8, 8, 9, 8, 8, 8]])
    explodes = measured("encoder.top", [[1, 1, 1, 1, 1, 1, 1, 1]], [[500, 9, 8, 8, 9, 8, 8, 8]])
    line = judge(below, explodes, measured("encoder", [[1, 1, 1, 1, 1, 1, 1, 1]]))
    assert line == "gradient explodes in encoder.top: x 500 from its output to its input, utterance u0; median sequence x 8"


def test_a_stack_is_named_only_if_none_of_its_parts_explodes() -> None:
    parts = [measured(f"encoder.{n}", [[1.0] * 5], [[4.0] * 5]) for n in range(3)]
    stack = measured("encoder", [[1.0] * 5], [[64.0] * 5])
    assert judge(*parts, stack).startswith("gradient explodes in encoder: x 64")
    parts[1].passed = [torch.full((5,), 20.0, dtype=torch.float64)]
    assert judge(*parts, stack).startswith("gradient explodes in encoder.1: x 20")


def test_a_layer_bypassed_in_most_of_the_batches_is_no_outlier_in_the_others() -> None:
    assert judge(measured("encoder", [[0.01] * 20, [1.0] * 4])).startswith("nothing explodes")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    make_experiment(root)
    shutil.copy(root / "data" / "cuts" / "test.jsonl.gz", root / "data" / "cuts" / "train.jsonl.gz")
    write_toy_lang(root / "data")
    return root


def run(root: Path, *more: str) -> str:
    """Run the program; return the first line of its report."""
    small = [s for s in SMALL if "num_layers" not in s]
    main(["--data-dir", str(root / "data"), "--exp-dir", str(root / "exp"), "augment.speed_perturb=false", *small, *more])
    return (root / "exp" / "diagnose" / "report.txt").read_text().splitlines()[0]


def test_the_program_writes_a_report_that_names_the_planted_faults(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = "model.encoder.num_layers=2"
    assert run(experiment, layers).startswith("nothing explodes")
    first = run(experiment, layers, "--scale-recurrent", "1", "30", "--corrupt", "a-1")
    assert capsys.readouterr().out.splitlines()[-2] == first
    assert first.startswith("gradient explodes in encoder.encoder.layers.1.lstm") and "activations of utterance a-1" in first
    folder = experiment / "exp" / "diagnose"
    text = (folder / "report.txt").read_text()
    assert "untrained model" in text and "planted: recurrent matrix of layer 1 times 30" in text
    rows = list(csv.DictReader((folder / "report.tsv").open(), delimiter="\t"))
    assert rows[0]["module"] == "encoder.encoder.layers.1.lstm" and {r["tensor"] for r in rows} == {"activation", "gradient"}
    sequences = list(csv.DictReader((folder / "sequences.tsv").open(), delimiter="\t"))
    assert {r["utterance"] for r in sequences} == {"a-1", "b-2", "c-3", "d-4"}
    page = (folder / "diagnose.html").read_text()
    assert first.split(":")[0] in page and page.count("data:image/png") == 4
    assert sorted(p.stem for p in folder.glob("*.png")) == ["amplification", "depth", "filter", "time"]


def test_the_given_checkpoint_is_used_and_not_changed(experiment: Path) -> None:
    path = experiment / "averaged.pt"
    before = path.read_bytes()
    widths = [f"model.encoder.{key}=16" for key in ("d_model", "rnn_hidden_size", "dim_feedforward")]
    run(experiment, "model.encoder.num_layers=1", *widths, "--checkpoint", str(path), "--scale-recurrent", "0", "8")
    assert str(path) in (experiment / "exp" / "diagnose" / "report.txt").read_text()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corrupt", "nobody"], "--corrupt nobody"),
        (["--scale-recurrent", "7", "8"], "--scale-recurrent 7"),
        (["--batches", "0"], "--batches 0"),
    ],
)
def test_impossible_options_are_named(
    experiment: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        run(experiment, "model.encoder.num_layers=4", *arguments)
    assert message in capsys.readouterr().err


def test_ids_are_text_in_all_reports(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Formulas for matplotlib and for a spreadsheet, markup, escape characters, a very long one."""
    shutil.copytree(experiment, tmp_path / "toy")
    cuts = tmp_path / "toy" / "data" / "cuts" / "train.jsonl.gz"
    ids = ["$\\frac{$", "=1+1", "<script>\x1b[2J\u202e", "d" * 1000]
    with gzip.open(cuts, "rt") as file:
        rows = [json.loads(line) for line in file]
    for row, name in zip(rows, ids, strict=True):
        row["id"] = name
    with gzip.open(cuts, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    write_toy_lang(tmp_path / "toy" / "data")
    line = run(tmp_path / "toy", "model.encoder.num_layers=2", "--corrupt", ids[2])
    folder = tmp_path / "toy" / "exp" / "diagnose"
    for name in ("report.txt", "diagnose.html", "sequences.tsv"):
        text = (folder / name).read_text()
        assert "\x1b" not in text and "\u202e" not in text and "<script>\x1b" not in text
    assert r"<script>\x1b[2J\u202e" in line and "<script" not in (folder / "diagnose.html").read_text()
    assert sorted(p.stem for p in folder.glob("*.png")) == ["amplification", "depth", "filter", "time"]
    with (folder / "sequences.tsv").open(newline="") as file:
        found = {unquoted(row["utterance"]) for row in csv.DictReader(file, delimiter="\t")}
    assert found == set(map(visible, ids)) and "\x1b" not in "".join(capsys.readouterr())
