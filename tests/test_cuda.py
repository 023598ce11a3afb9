"""On a GPU: model, losses, searches and training give the numbers of the CPU, and the memory plan holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from local.common.out_of_memory import in_halves_on_oom
from local.config import load_config
from local.data.batch import Batch
from local.training import memory_plan
from local.training.losses import forward_losses
from local.training.memory_plan import PassMeter, Shape
from local.training.trainer import Trainer
from model.build import build_model
from model.layers.gradient_filter import GradientFilter
from model.loss import lattice
from model.loss.native import backend as native
from model.search import STREAMS, get_search
from tests.common import test_processes
from tests.common.test_processes import EXACT, SMALL, module, trained
from tests.loss.problems import make_problem
from tests.loss.test_lattice import random_band
from tests.search.toy import toy_batch, toy_model

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
data = test_processes.data  # its fixture: a prepared corpus of 20 utterances, 60 with their copies


@pytest.fixture(autouse=True)
def float32_products() -> Iterator[None]:
    """Compute convolutions and LSTMs in full float32: by default, cuDNN rounds their operands to TF32."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


# ---- the loss ----


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 7, 1), (4, 12, 5), (5, 30, 6), (3, 300, 61), (2, 40, 200)])
@pytest.mark.parametrize("recursion", [lattice.band_recursion, lattice.band_recursion_torch])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recursions(recursion: Any, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    within = 1e-9 if dtype == torch.float64 else 1e-5
    for seed in range(8):
        px, py, starts, boundary = random_band(seed, *size)
        px, py = px.to(dtype), py.to(dtype)
        want = lattice.band_recursion(px, py, starts, boundary)
        got = recursion(*(x.to(GPU) for x in (px, py, starts, boundary)))
        for a, b in zip(got, want, strict=True):
            assert b is not None
            torch.testing.assert_close(a.cpu(), b, rtol=within, atol=within)
        total, *none = recursion(*(x.to(GPU) for x in (px, py, starts, boundary)), occupation=False)
        assert torch.equal(total, got[0]) and none == [None, None]


def test_the_compiled_recursion_is_used() -> None:
    lattice_triton = pytest.importorskip("model.kernels.lattice_gpu")
    assert lattice.on_gpu(GPU) is lattice_triton.band_recursion


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_stays_in_its_utterance(value: float) -> None:
    px, py, starts, boundary = (x.to(GPU) for x in random_band(5, 3, 8, 4))
    boundary[:, 3], boundary[:, 2] = 8, starts[:, -1]
    py[1, 4] = value
    total, px_occ, _ = lattice.band_recursion(px, py, starts, boundary)
    assert px_occ is not None and torch.isfinite(total[[0, 2]]).all() and not torch.isfinite(total[1])
    assert torch.isfinite(px_occ[[0, 2]]).all()


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_losses(dtype: torch.dtype, within: float) -> None:
    p = make_problem([(40, 9), (31, 12), (20, 0), (5, 5)], classes=30, width=16, padding=(2, 1), dtype=dtype)

    def run(device: torch.device) -> list[torch.Tensor]:
        leaves = [x.detach().to(device).requires_grad_() for x in p[:6]]
        am, lm, enc, dec, weight, bias = leaves
        tokens, boundary = p.tokens.to(device), p.boundary.to(device)
        simple, grads = native.simple_loss(am, lm, tokens, boundary, am_scale=0.25, lm_scale=0.25, delay_penalty=0.01)
        ranges = native.prune_ranges(*grads, boundary, 4)
        pruned = native.pruned_loss(enc, dec, weight, bias, tokens, ranges, boundary, delay_penalty=0.01)
        (0.5 * simple.sum() + pruned.sum()).backward()
        outside = native.pruned_mass(*grads, ranges, boundary)
        return [simple, pruned, outside, ranges, *(x.grad for x in leaves if x.grad is not None)]

    got, want = run(GPU), run(CPU)
    assert len(got) == len(want) == 10
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=within, atol=within)


# ---- the model ----


@pytest.mark.parametrize(("rnn", "lstm"), [("lstm", "standard"), ("lstm", "merged"), ("gru", "standard")])
def test_model(rnn: str, lstm: str) -> None:
    """Losses, gradients by tensor and the masks of the filters, with a threshold that damps many sequences."""
    sizes = [] if rnn == "lstm" else ["model.encoder.rnn_hidden_size=16"]
    options = ["gradient.threshold=0.2", f"model.encoder.rnn={rnn}", f"train.lstm={lstm}", *sizes]
    cfg = load_config(None, [*SMALL, *EXACT, *options])
    torch.manual_seed(0)
    model = build_model(cfg, 20).train()
    lens, token_lens = torch.tensor([120, 90, 100, 77, 60]), torch.tensor([9, 5, 7, 1, 3])
    batch = Batch(torch.randn(5, 120, 80), lens, torch.randint(3, 20, (5, 9)), token_lens, list("abcde"))

    def run(device: torch.device) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        model.to(device).zero_grad()
        losses = forward_losses(model, batch, warmup=2.0, monitor=True)
        (0.5 * losses.simple.sum() + losses.pruned.sum()).backward()
        grads = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        masks = [m.mask.cpu() for m in model.modules() if isinstance(m, GradientFilter) and m.mask is not None]
        return {**grads, **{name: value.detach().cpu() for name, value in losses._asdict().items()}}, masks

    (got, got_masks), (want, want_masks) = run(GPU), run(CPU)
    assert got.keys() == want.keys() and len(got) > 40 and len(got_masks) == 2
    for name, value in want.items():
        apart = torch.linalg.vector_norm(got[name].double() - value) / torch.linalg.vector_norm(value.double()).clamp(min=1e-3)
        assert apart < 2e-3, (name, float(apart))
    for a, b in zip(got_masks, want_masks, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", list(STREAMS))
def test_searches(method: str) -> None:
    model = toy_model(3)
    out, lens = toy_batch(2, num_utts=8, max_frames=40)
    want = get_search(method)(model, out, lens)
    got = get_search(method)(model.to(GPU), out.to(GPU), lens.to(GPU))
    assert [(h.tokens, h.times) for h in got] == [(h.tokens, h.times) for h in want]
    assert [h.score for h in got] == pytest.approx([h.score for h in want], rel=1e-4)
    assert sum(len(h.tokens) for h in got) > 10


# ---- training ----


def test_training_is_the_cpus(data: Path, tmp_path: Path) -> None:
    """20 steps without random numbers. Rounding differs, and the first steps of Eve enlarge that for gradients near zero."""
    options = [*EXACT, "train.num_epochs=2"]
    cpu = trained(data, tmp_path / "cpu", *options)
    gpu = trained(data, tmp_path / "gpu", *options, device=GPU)
    assert len(gpu.sums) == len(cpu.sums) >= 20 and gpu.bad_steps == 0
    for a, b in zip(gpu.sums[:20], cpu.sums[:20], strict=True):
        assert a[5:8] == b[5:8] and a[:5] == pytest.approx(b[:5], rel=2e-4)


@pytest.mark.parametrize("lstm", ["standard", "merged"])
def test_bfloat16_has_no_overflow(lstm: str) -> None:
    """Losses summed over a large batch give gradients beyond the range of float16: every product must be in bfloat16."""
    torch.manual_seed(0)
    model = build_model(load_config(None, [*SMALL, *EXACT, f"train.lstm={lstm}"]), 20).to(GPU).train()
    tensors = torch.randn(5, 120, 80), torch.full((5,), 120), torch.randint(3, 20, (5, 9)), torch.full((5,), 9)
    batch = Batch(*tensors, ids=list("abcde"))

    def gradient(scale: float, precision: str) -> torch.Tensor:
        model.zero_grad()
        losses = forward_losses(model, batch, warmup=2.0, precision=precision)
        (scale * (losses.simple + losses.pruned).sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) / scale

    exact, low = gradient(1.0, "float32"), gradient(1e8, "bf16")
    assert torch.isfinite(low).all()
    assert torch.linalg.vector_norm(low - exact) < 0.05 * torch.linalg.vector_norm(exact)


def test_bfloat16_trains_as_float32(data: Path, tmp_path: Path) -> None:
    exact = trained(data, tmp_path / "float32", "train.num_epochs=2", device=GPU)
    low = trained(data, tmp_path / "bf16", "train.num_epochs=2", "train.precision=bf16", device=GPU)
    assert len(low.sums) == len(exact.sums) >= 20 and low.bad_steps == 0
    assert low.sums[0][0] == pytest.approx(exact.sums[0][0], rel=0.02)
    assert sum(s[0] for s in low.sums[-5:]) == pytest.approx(sum(s[0] for s in exact.sums[-5:]), rel=0.1)


def test_float16_finds_its_scale(data: Path, tmp_path: Path) -> None:
    """Each of the first steps is skipped and halves the scale of the loss. These are not bad steps; then it trains."""
    exact = trained(data, tmp_path / "float32", "train.num_epochs=1", device=GPU)
    low = trained(data, tmp_path / "fp16", "train.num_epochs=3", "train.precision=fp16", device=GPU)
    assert low.bad_steps == 0 and low.sums[0][0] == pytest.approx(exact.sums[0][0], rel=0.02)
    assert sum(s[0] for s in low.sums[-5:]) < 1.1 * sum(s[0] for s in exact.sums[-5:])


def test_resumed_training(data: Path, tmp_path: Path) -> None:
    """With dropout: the random numbers of the GPU are resumed, too."""
    whole = trained(data, tmp_path / "whole", "train.max_steps=12", device=GPU)
    first = trained(data, tmp_path / "parts", "train.max_steps=5", device=GPU)
    rest = trained(data, tmp_path / "parts", "train.max_steps=12", device=GPU)
    assert "resuming from" in rest.text and len(first.sums) == 5 and len(rest.sums) == 7
    for a, b in zip([*first.sums, *rest.sums], whole.sums, strict=True):
        assert a[5:8] == b[5:8] and a[:5] == pytest.approx(b[:5], rel=2e-4)


# ---- memory ----


@pytest.fixture
def little_memory() -> Iterator[float]:
    """Limit torch to 1 GB; return the bytes."""
    torch.cuda.empty_cache()
    room = 1e9
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(GPU).total_memory)
    yield room
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_plan_holds(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, little_memory: float) -> None:
    """A pass of the planned size over the longest transcripts takes less than the free memory, but not far less."""
    sizes = ["model.encoder.d_model=128", "model.encoder.rnn_hidden_size=256", "model.encoder.dim_feedforward=512"]
    dm = module(data, *sizes, "train.max_duration=auto", "train.batch_seconds=100000")
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: little_memory - torch.cuda.memory_allocated(GPU))
    trainer = Trainer(dm.cfg, dm, tmp_path, GPU)
    most = max(u for _, u in dm.train_lengths(100))
    took = PassMeter(dm.cfg, dm.tokenizer.vocab_size, GPU)(Shape(int(trainer.max_duration / 3), 300, most))
    assert trainer.max_duration > 20 and 0.4 * little_memory < took < 0.95 * little_memory, (trainer.max_duration, took)


def test_work_that_does_not_fit_is_halved(little_memory: float, capsys: pytest.CaptureFixture[str]) -> None:
    def work(rows: slice) -> int:
        torch.ones((rows.stop - rows.start) * 100_000_000, device=GPU)  # 400 MB per row
        return rows.stop - rows.start

    assert in_halves_on_oom(work, [f"u{i}" for i in range(8)], GPU, "train on") == [2, 2, 2, 2]
    assert capsys.readouterr().err.count("halved") == 3


def test_a_pass_that_does_not_fit_is_processed_in_halves(data: Path, tmp_path: Path) -> None:
    """The sums of its losses and of the later steps equal those of a pass that fits."""
    options = [*EXACT, "gradient.control=none", "train.max_duration=200", "train.num_epochs=2", "train.warm_share=0.3"]
    whole = trained(data, tmp_path / "whole", *options, device=GPU)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trained(data, tmp_path / "again", *options, device=GPU)
    room = before + 0.7 * (torch.cuda.max_memory_allocated() - before)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(GPU).total_memory)
    try:
        halves = trained(data, tmp_path / "halves", *options, device=GPU)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "halved" in halves.text and "halved" not in whole.text and len(whole.sums) >= 2
    for a, b in zip(halves.sums, whole.sums, strict=True):
        assert a[5:8] == b[5:8] and a[:5] == pytest.approx(b[:5], rel=2e-4)
