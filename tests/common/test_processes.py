"""Several processes train as one does: batches, losses, weights, the filter's medians, resuming, failures."""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from local.artifacts.checkpoint import load_file
from local.common.errors import TrainingDiverged, UserError
from local.common.processes import Processes, launch, start
from local.config import load_config
from local.data.batching import micro_batches, split_over_processes
from local.data.datamodule import AsrDataModule
from local.data.dataset import AsrDataset
from local.data.tokenizer import Tokenizer
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from local.training.trainer import Trainer
from model.layers.gradient_filter import Exchange, GradientFilter
from tests.conftest import ROOT
from tests.speech_tree import make_part

import pytest
import torch

SMALL = [
    "model.encoder.num_layers=2", "model.encoder.d_model=16", "model.encoder.rnn_hidden_size=24",
    "model.encoder.dim_feedforward=32", "model.decoder.dim=16", "model.joiner.dim=16", "train.warm_step=4",
    "train.average_period=1", "train.log_every=5", "data.num_buckets=2", "data.num_workers=0", "train.max_duration=12",
    "train.save_every=0", "train.num_epochs=1", "optim.lr=0.001",
]  # fmt: skip
EXACT = ["model.encoder.dropout=0", "model.encoder.layer_dropout=0", "model.encoder.balance_prob=0"]
STEPS = 20
CPU = torch.device("cpu")
needs_launcher = pytest.mark.skipif(torch.__version__.startswith("1."), reason="needs torch 2's launcher")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def in_processes(size: int, work: Callable[[Processes], Any]) -> list[Any]:
    """`work` in forked processes that are connected as torchrun's are; the results in the order of their ranks."""
    context = multiprocessing.get_context("fork")
    variables = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}

    def child(rank: int, sender: Any) -> None:
        torch.set_num_threads(1)
        torch.cuda.is_available = lambda: False  # type: ignore[assignment]
        os.environ.update({k: str(v) for k, v in {**variables, "RANK": rank, "LOCAL_RANK": rank}.items()})
        try:
            processes, _ = start()
            answer = (True, work(processes))
        except BaseException:
            answer = (False, traceback.format_exc())
        sender.send_bytes(pickle.dumps(answer))  # tensors as they are, not as handles to a process that ends
        os._exit(0)

    receivers = []
    children = []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        children.append(context.Process(target=child, args=(rank, sender)))
        children[-1].start()
        sender.close()
        receivers.append(receiver)
    results = []
    for receiver in receivers:
        well, result = pickle.loads(receiver.recv_bytes()) if receiver.poll(300) else (False, "no answer within five minutes")
        results.append(result)
        if not well:
            for process in children:
                process.kill()
            pytest.fail(result)
    for process in children:
        process.join()
    return results


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of 20 utterances of noise for training and 6 for validation."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "corpus.yaml").write_text("name: t\nsource: librispeech\ntrain: [tr]\ndev: [te]\ntest: [te]\n")
    make_part(root / "audio", "tr", utterances=10)
    make_part(root / "audio", "te", speakers=1)
    args = ["--corpus-yaml", str(root / "corpus.yaml"), "--corpus-dir", str(root / "audio")]
    prepare_manifests([*args, "--data-dir", str(root / "data")])
    for program in (prepare_lang, prepare_cuts):
        program(["--data-dir", str(root / "data")])
    return root / "data"


def module(data: Path, *overrides: str, processes: Processes | None = None) -> AsrDataModule:
    cfg = load_config(None, [*SMALL, *overrides])
    return AsrDataModule(cfg, data, Tokenizer.from_file(data / "lang" / "bpe.model"), processes)


def trained(
    data: Path, exp: Path, *overrides: str, processes: Processes | None = None, device: torch.device = CPU
) -> SimpleNamespace:
    """Train; -> every step's sums (loss, simple, pruned, ...), the weights, what was printed, the trainer."""
    dm = module(data, *overrides, processes=processes)
    text = io.StringIO()
    sums: list[list[float]] = []
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        run = Trainer(dm.cfg, dm, exp, device, processes)
        total = run.gradient.total

        def recorded() -> torch.Tensor:
            sums.append(total().tolist())
            return torch.tensor(sums[-1], dtype=torch.float64, device=device)

        run.gradient.total = recorded  # type: ignore[method-assign]
        run.run()
    weights = {k: v.clone() for k, v in run.model.state_dict().items()}
    return SimpleNamespace(sums=sums, weights=weights, text=text.getvalue(), step=run.step, bad_steps=run.bad_steps)


def assert_same_training(a: SimpleNamespace, b: SimpleNamespace, within: float = 1e-5) -> None:
    assert len(a.sums) == len(b.sums) >= min(STEPS, len(a.sums))
    for x, y in zip(a.sums[:STEPS], b.sums[:STEPS], strict=True):
        assert x[3:] == y[3:]  # the same utterances and frames
        assert x[:3] == pytest.approx(y[:3], rel=within)
    for name, value in a.weights.items():
        # Of a whole tensor: where a gradient is no more than rounding, the optimiser takes single weights either way.
        apart = torch.linalg.vector_norm(value.double() - b.weights[name])
        assert apart <= 1e-3 * torch.linalg.vector_norm(value.double()) + 1e-4, (name, float(apart))


# ---- who gets what ----


def cut(name: str, duration: float) -> Any:
    return SimpleNamespace(id=name, duration=duration)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_utterance_goes_to_one_process_in_as_many_passes(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for n in (1, 2, 4, 9, 40):
        cuts = [cut(f"{i}", float(d)) for i, d in enumerate(torch.rand(n, generator=generator) * 9 + 1)]
        parts = micro_batches(cuts, 30.0)
        assert sorted(c.id for p in parts for c in p) == sorted(c.id for c in cuts)
        assert all(len(p) * max(c.duration for c in p) <= 30 for p in parts)
        where = {c.id: i for i, p in enumerate(parts) for c in p}
        dealt = [list(split_over_processes(parts, rank, size)) for rank in range(size)]
        assert sorted(c.id for shares in dealt for share in shares for c in share.cuts) == sorted(where)
        assert {len(shares) for shares in dealt} == {math.ceil(len(parts) / size)}
        for shares in dealt:
            assert [s.ends_step for s in shares] == [False] * (len(shares) - 1) + [True]
        for rank, shares in enumerate(dealt):
            for i, share in enumerate(shares):
                together = [dealt[r][i] for r in range(size)]
                assert len({where[c.id] for c in share.cuts}) <= 1  # never of two micro-batches: the filter's factor is one
                assert len({s.batch_of for s in together}) == 1
                if share.batch_of:
                    assert share.rows == max(len(s.cuts) for s in together)
                    assert all(where[c.id] == i * size + share.batch_of[rank] for c in share.cuts)


def test_shares_make_the_batch_of_one_process_with_the_same_augmentation(data: Path) -> None:
    whole = list(module(data).train_dataloader(1))
    shares = [list(module(data, processes=Processes(r, 2)).train_dataloader(1)) for r in range(2)]
    assert len(whole) == len(shares[0]) == len(shares[1])
    for batch, *parts in zip(whole, *shares, strict=True):
        rows = {i: x[:n] for i, x, n in zip(batch.ids, batch.inputs, batch.input_lens, strict=True)}
        for part in parts:
            for i, x, n in zip(part.ids, part.inputs, part.input_lens, strict=True):
                assert torch.equal(rows.pop(i), x[:n])
        assert not rows
    dev = [i for r in range(2) for b in module(data, processes=Processes(r, 2)).valid_dataloader() for i in b.ids]
    assert sorted(dev) == sorted(i for b in module(data).valid_dataloader() for i in b.ids)


# ---- the gradient filter ----


def filtered(x: torch.Tensor, w: torch.Tensor, grad: torch.Tensor, exchange: Exchange | None) -> list[torch.Tensor]:
    """Gradients of x (T, N, C) and w (C,) behind a filter whose LSTM is a product, and the mask."""
    module = GradientFilter(2.0)
    module.exchange = exchange
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y, (v,) = module(x, [w])
    (y * v).backward(grad)
    assert x.grad is not None and w.grad is not None and module.mask is not None
    return [x.grad, w.grad, module.mask]


def test_the_filter_over_processes_is_the_filter_over_the_batch() -> None:
    """Two batches of 5 and 2 sequences on four processes, one without any, paddings of their own, one exploding sequence."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(11, 7, 3, generator=generator), torch.randn(3, generator=generator)
    grad = torch.randn(11, 7, 3, generator=generator)
    grad[:, 4] *= 1000
    for n, frames in enumerate((5, 11, 7, 7, 6, 9, 4)):
        grad[frames:, n] = 0
    batches, rows_of, lengths = (0, 0, 0, 1), ((0, 2, 4), (), (1, 3), (5, 6)), (7, 1, 11, 9)

    def share(processes: Processes) -> list[torch.Tensor] | None:  # of one process
        rows, frames = list(rows_of[processes.rank]), lengths[processes.rank]
        exchange = Exchange(batches, processes.rank, 3, 1, torch.device("cpu"))
        if not rows:
            exchange.finish()
            return None
        got = filtered(x[:frames, rows], w, grad[:frames, rows], exchange)
        assert exchange.calls == 0
        return got

    got = in_processes(4, share)
    for batch, rows in ((0, range(5)), (1, range(5, 7))):
        x_grad, w_grad, mask = filtered(x[:, list(rows)], w, grad[:, list(rows)], None)
        mine = [r for r in range(4) if batches[r] == batch and got[r] is not None]
        assert torch.allclose(sum(got[r][1] for r in mine), w_grad, rtol=1e-5)
        for r in mine:
            places = [rows.index(n) for n in rows_of[r]]
            assert torch.allclose(got[r][0], x_grad[: lengths[r], places], rtol=1e-5)
            assert torch.allclose(got[r][2], mask[places], rtol=1e-5)
    assert filtered(x[:, :5], w, grad[:, :5], None)[2].argmin() == 4


# ---- training ----


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (2, ["train.num_epochs=2"]),
        # several passes, the last ones split
        pytest.param(3, ["train.batch_seconds=30", "train.max_duration=7"], marks=pytest.mark.slow),
        pytest.param(2, ["train.max_duration=4"], marks=pytest.mark.slow),  # fewer utterances than processes
    ],
)
def test_processes_give_the_losses_of_one(data: Path, tmp_path: Path, size: int, overrides: list[str]) -> None:
    alone = trained(data, tmp_path / "alone", *EXACT, *overrides)
    together = in_processes(size, lambda p: trained(data, tmp_path / "together", *EXACT, *overrides, processes=p))
    for one in together:
        assert_same_training(alone, one)
        assert all(torch.equal(value, together[0].weights[k]) for k, value in one.weights.items())
    valid = [[float(v) for v in (tmp_path / d / "valid.csv").read_text().split(",")[-2:]] for d in ("alone", "together")]
    assert valid[0] == pytest.approx(valid[1], rel=1e-4)
    outliers = [(tmp_path / d / "outliers.tsv").read_text() for d in ("alone", "together")]
    assert [line.split("\t")[:2] for line in outliers[0].splitlines()] == [
        line.split("\t")[:2] for line in outliers[1].splitlines()
    ]


def test_accumulated_passes_are_one_large_batch(data: Path, tmp_path: Path) -> None:
    """But for the filter, whose median is over a pass."""
    options = [*EXACT, "gradient.control=none", "train.batch_seconds=24"]
    large = trained(data, tmp_path / "large", *options, "train.max_duration=24")
    parts = trained(data, tmp_path / "parts", *options, "train.max_duration=6")
    assert_same_training(large, parts)
    assert large.step < trained(data, tmp_path / "small", *EXACT, "train.max_duration=6").step


def test_resumed_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    """Dropout, bypasses and balancers included; with another number of processes it goes on, with a warning."""
    whole = in_processes(2, lambda p: trained(data, tmp_path / "whole", processes=p))
    in_processes(2, lambda p: trained(data, tmp_path / "parts", "train.max_steps=3", processes=p))
    parts = in_processes(2, lambda p: trained(data, tmp_path / "parts", processes=p))
    assert len(parts[0].sums) == len(whole[0].sums) - 3 and parts[0].sums == whole[0].sums[3:]
    assert all(torch.equal(value, parts[1].weights[k]) for k, value in whole[0].weights.items())
    saved = load_file(tmp_path / "whole" / "checkpoints" / "epoch-1.pt")["rng"]
    assert not torch.equal(saved["cpu"], saved["others"][0]["cpu"])
    more = trained(data, tmp_path / "parts", "train.num_epochs=2")
    assert "epoch-1.pt was written by 2 processes, now there are 1" in more.text and more.step > parts[0].step


def test_all_processes_skip_a_step_that_is_not_finite(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = module(data).train_dataloader(1).__iter__().__next__().ids[0]
    load = AsrDataset._load
    monkeypatch.setattr(AsrDataset, "_load", lambda self, c: load(self, c) * (math.inf if c.id == victim else 1))
    runs = in_processes(2, lambda p: trained(data, tmp_path, processes=p))
    assert [run.bad_steps for run in runs] == [1, 1] and f"step 1 skipped: loss not finite for {victim};" in runs[0].text
    assert all(torch.equal(value, runs[0].weights[k]) and value.isfinite().all() for k, value in runs[1].weights.items())


def test_utterances_that_cannot_be_loaded_stop_nobody(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whole step, and one process's share of another, are missing."""
    dm = module(data, processes=Processes(1, 2))
    first, second = [b.ids for _, b in zip(range(2), dm.train_dataloader(1), strict=False)]
    gone = {*first, *second, *next(iter(module(data, processes=Processes(0, 2)).train_dataloader(1))).ids}
    load = AsrDataset._load

    def broken(self: AsrDataset, c: Any) -> torch.Tensor:
        if c.id in gone:
            raise OSError("gone")
        return load(self, c)

    monkeypatch.setattr(AsrDataset, "_load", broken)
    runs = in_processes(2, lambda p: trained(data, tmp_path / "two", *EXACT, processes=p))
    assert f"{len(gone)} utterances could not be loaded" in runs[0].text
    assert_same_training(trained(data, tmp_path / "one", *EXACT), runs[1])


class Limit(torch.autograd.Function):
    """Identity whose backward pass has no memory for more than `rows` utterances: x (T, N, C)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.rows = rows
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        if grads[0].size(1) > ctx.rows:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return grads[0], None


@pytest.mark.parametrize("size", [1, 2])
def test_a_pass_without_memory_is_halved(data: Path, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process runs out of memory between the filters of a pass that it shares; the sum stays the same."""
    options = (*EXACT, "gradient.threshold=1e6")  # so large a threshold damps nothing
    plain = trained(data, tmp_path / "plain", *options)

    def limited(processes: Processes) -> SimpleNamespace:
        if processes.rank == size - 1:
            forward = GradientFilter.forward
            below = [lambda x: Limit.apply(x, 2), lambda x: x]  # the second layer's filter has had its norms by then
            calls: list[int] = []

            def filtering(self: GradientFilter, x: torch.Tensor, params: Any) -> Any:
                calls.append(1)
                return forward(self, below[len(calls) % 2](x), params)

            monkeypatch.setattr(GradientFilter, "forward", filtering)
        return trained(data, tmp_path / "limited", *options, processes=processes)

    runs = in_processes(size, limited) if size > 1 else [limited(Processes())]
    assert "not enough memory for" in runs[-1].text and "halved" in runs[-1].text
    for run in runs:
        assert_same_training(plain, run, within=2e-5)


def test_an_utterance_that_alone_is_too_long_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = GradientFilter.forward
    monkeypatch.setattr(GradientFilter, "forward", lambda self, x, params: forward(self, Limit.apply(x, 0), params))
    with pytest.raises(UserError, match=r"utterance .*: not enough memory to train on it: CUDA out of memory"):
        trained(data, tmp_path)


# ---- torchrun ----


@needs_launcher
def test_a_process_that_dies_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else `launch` sets it for what follows
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "failing.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1':\n    sys.exit(3)\ntime.sleep(60)\n"
    )
    with pytest.raises(TrainingDiverged, match="process 1 of the training ended with status 3; the others were stopped"):
        launch("failing", [], 2)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(UserError, match="--nnodes needs --rdzv"):
        launch("failing", [], 1, nnodes=2)


def command(data: Path, exp: Path, *options: str) -> list[str]:
    program = [sys.executable, str(ROOT / "local" / "train.py"), "--data-dir", str(data), "--exp-dir", str(exp)]
    return [*program, *options, *SMALL, *EXACT, "train.log_every=1", "train.max_steps=4"]


@needs_launcher
@pytest.mark.slow
def test_two_machines_that_are_one(data: Path, tmp_path: Path) -> None:
    """Two launchers of two processes each meet at a port, and train as one process does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    meeting = ["--nproc=2", "--nnodes=2", f"--rdzv=localhost:{free_port()}"]
    runs = [
        subprocess.Popen(command(data, tmp_path / "four", *meeting), env=environment, text=True, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    alone = subprocess.run(command(data, tmp_path / "one"), env=environment, capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stderr
    for run in runs:
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
    rows = [(tmp_path / name / "train.csv").read_text().splitlines()[1:] for name in ("one", "four")]
    assert len(rows[0]) == len(rows[1]) == 4
    for one, four in zip(*rows, strict=True):
        assert [float(v) for v in one.split(",")[2:6]] == pytest.approx([float(v) for v in four.split(",")[2:6]], rel=2e-5)
