"""Several processes train as one does: micro-batches, gradients, losses, weights, resuming, failures."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from local.artifacts.checkpoint import load_file
from local.common import processes as processes_module
from local.common.errors import TrainingDiverged, UserError
from local.common.processes import Processes, launch, start
from local.config import load_config
from local.data.batch import Batch
from local.data.batching import micro_batches, split_over_processes
from local.data.datamodule import AsrDataModule, Batches
from local.data.dataset import AsrDataset
from local.data.tokenizer import Tokenizer
from local.data.training_cuts import ShuffledCuts
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from local.training.trainer import Trainer
from model.layers.gradient_filter import GradientFilter
from tests.conftest import ROOT
from tests.speech_tree import make_part

import numpy as np
import pytest
import torch

SMALL = [
    *("model.encoder.num_layers=2", "model.encoder.d_model=16", "model.encoder.rnn_hidden_size=24"),
    *("model.encoder.dim_feedforward=32", "model.decoder.dim=16", "model.joiner.dim=16", "train.warm_step=2"),
    *("train.average_period=1", "train.log_every=5", "data.num_buckets=2", "data.num_workers=0", "train.max_duration=12"),
    *("train.save_every=0", "train.num_epochs=1", "optim.lr=0.001"),
]
EXACT = ["model.encoder.dropout=0", "model.encoder.layer_dropout=0", "model.encoder.balance_prob=0"]
STEPS = 20
CPU = torch.device("cpu")
needs_launcher = pytest.mark.skipif(torch.__version__.startswith("1."), reason="needs torch 2's launcher")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def in_processes(size: int, work: Callable[[Processes], Any]) -> list[Any]:
    """Run `work` in forked processes, connected as torchrun's; return the results in the order of their ranks."""
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
        sender.send_bytes(pickle.dumps(answer))  # the tensors themselves, not handles to a process that ends
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
    """Make a prepared corpus of 20 utterances of noise for training and 6 for validation."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "corpus.yaml").write_text("name: t\nsource: librispeech\ntrain: [tr]\ndev: [te]\ntest: [te]\n")
    make_part(root / "audio", "tr", utterances=10)
    make_part(root / "audio", "te", speakers=1)
    args = ["--corpus-yaml", str(root / "corpus.yaml"), "--corpus-dir", str(root / "audio")]
    prepare_manifests([*args, "--data-dir", str(root / "data")])
    for program in (prepare_cuts, prepare_lang):
        program(["--data-dir", str(root / "data")])
    return root / "data"


def module(data: Path, *overrides: str, processes: Processes | None = None) -> AsrDataModule:
    cfg = load_config(None, [*SMALL, *overrides])
    return AsrDataModule(cfg, data, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"), processes)


def trained(
    data: Path,
    exp: Path,
    *overrides: str,
    processes: Processes | None = None,
    device: torch.device = CPU,
    module_of: Callable[..., AsrDataModule] = module,
) -> SimpleNamespace:
    """Train; return the sums of every step, its gradient in one vector, the weights, the printed text and counts."""
    dm = module_of(data, *overrides, processes=processes)
    text = io.StringIO()
    sums: list[list[float]] = []
    gradients: list[torch.Tensor] = []
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        run = Trainer(dm.cfg, dm, exp, device, processes)
        train_pass, clear = run.train_pass, run.gradient.clear

        def recorded(batch: Batch) -> Any:
            result = train_pass(batch)
            if result is not None:
                sums.append(list(result))
            return result

        def recorded_gradient() -> None:  # called after each step of the optimiser
            gradients.append(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in params]))
            clear()

        params = run.gradient.params
        run.train_pass = recorded  # type: ignore[method-assign]
        run.gradient.clear = recorded_gradient  # type: ignore[method-assign]
        run.run()
    weights = {k: v.clone() for k, v in run.model.state_dict().items()}
    return SimpleNamespace(
        sums=sums, gradients=gradients, weights=weights, text=text.getvalue(), step=run.step, bad_steps=run.bad_steps
    )


def assert_same_training(a: SimpleNamespace, b: SimpleNamespace, within: float = 1e-5) -> None:
    assert len(a.sums) == len(b.sums) > 0
    for x, y in zip(a.sums[:STEPS], b.sums[:STEPS], strict=True):
        assert x[5:8] == y[5:8]  # the same utterances and frames
        assert x[:5] == pytest.approx(y[:5], rel=within)
    for name, value in a.weights.items():
        # Compare whole tensors: if a gradient is mere rounding, the optimiser may move single weights either way.
        apart = torch.linalg.vector_norm(value.double() - b.weights[name])
        assert apart <= 1e-3 * torch.linalg.vector_norm(value.double()) + 1e-4, (name, float(apart))


# ---- micro-batches ----


class Corpus:
    """Lengths and ids of cuts, as `ShuffledCuts` has them."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = np.array(seconds)

    def id_of(self, number: int) -> str:
        return f"cut-{number}"


def parts_of(seconds: list[float], limit: float, size: int) -> list[list[int]]:
    return micro_batches(list(range(len(seconds))), cast(ShuffledCuts, Corpus(seconds)), limit, size)


def padded(part: list[int], seconds: list[float]) -> float:
    return len(part) * max((seconds[number] for number in part), default=0.0)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_utterance_goes_to_one_process_in_equally_many_passes(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for n in (1, 2, 4, 9, 40):
        seconds = (torch.rand(n, generator=generator) * 9 + 1).double().tolist()
        parts = parts_of(seconds, 30.0, size)
        assert sorted(itertools.chain(*parts)) == list(range(n))
        assert all(padded(part, seconds) <= 30 for part in parts)
        if math.ceil(n / size) * max(seconds) <= 30:  # the processes can take the step at once: all of them get their share
            assert len(parts) == size and max(map(len, parts)) - min(map(len, parts)) <= 1
        else:  # whatever their number
            assert parts == parts_of(seconds, 30.0, 1)
        shares = [list(split_over_processes(parts, rank, size)) for rank in range(size)]
        assert [share.numbers for together in zip(*shares, strict=True) for share in together if share.numbers] == [
            part for part in parts if part
        ]
        for mine in shares:
            assert [share.ends_step for share in mine] == [False] * (len(mine) - 1) + [True]


def test_ties_in_length_are_ordered_by_id() -> None:
    """As in every version so far: the number of a cut depends on the order of the manifest, its id does not."""
    assert list(itertools.chain(*parts_of([2.0] * 12, 6.0, 1))) == sorted(range(12), key=lambda n: f"cut-{n}")


def test_a_step_has_a_full_micro_batch_for_every_process(data: Path) -> None:
    """Without train.batch_seconds, N processes make steps N times as large in one pass, and every process has work."""
    alone, per_process = list(module(data).train_dataloader(1)), []
    for rank in range(3):
        batches = list(module(data, processes=Processes(rank, 3)).train_dataloader(1))
        assert all(batch.ends_step and batch.inputs.shape[0] * batch.inputs.shape[1] <= 1200 + len(batch) for batch in batches)
        per_process.append(batches)
    counts = [[len(batch) for batch in together] for together in zip(*per_process, strict=True)]
    assert sum(map(sum, counts)) == sum(map(len, alone)) == 60
    assert all(max(c) - min(c) <= 1 for c in counts) and sum(0 not in c for c in counts) > len(counts) / 2
    assert len(counts) <= math.ceil(len(alone) / 3) + 2


def test_processes_have_the_utterances_of_one_with_the_same_augmentation(data: Path) -> None:
    step = "train.batch_seconds=12"
    whole = list(module(data, step).train_dataloader(1))
    shares = [list(module(data, step, processes=Processes(r, 2)).train_dataloader(1)) for r in range(2)]
    assert len(whole) == len(shares[0]) == len(shares[1])
    for batch, *parts in zip(whole, *shares, strict=True):
        rows = {i: x[:n] for i, x, n in zip(batch.ids, batch.inputs, batch.input_lens, strict=True)}
        for part in parts:
            for i, x, n in zip(part.ids, part.inputs, part.input_lens, strict=True):
                assert torch.equal(rows.pop(i), x[:n])
        assert not rows
    dev = [i for r in range(2) for b in module(data, processes=Processes(r, 2)).valid_dataloader() for i in b.ids]
    assert sorted(dev) == sorted(i for b in module(data).valid_dataloader() for i in b.ids)


# ---- training ----


class OneAfterAnother(AsrDataModule):
    """The micro-batches of `size` processes, one after another, for a single process."""

    size = 2

    def train_dataloader(self, epoch: int, skip_batches: int = 0) -> Batches:
        shares = [AsrDataModule(self.cfg, self.data_dir, self.tokenizer, Processes(r, self.size)) for r in range(self.size)]
        loaders = [share.train_dataloader(epoch, skip_batches) for share in shares]

        def in_turn() -> Iterator[Batch]:
            for batches in zip(*loaders, strict=True):
                for rank, batch in enumerate(batches):
                    yield replace(batch, ends_step=batch.ends_step and rank == self.size - 1)

        found = Batches(loaders[0].loader, loaders[0].num_cuts, with_empty=True)
        found._start_workers = in_turn  # type: ignore[method-assign]
        return found


def one_after_another(size: int) -> Callable[..., AsrDataModule]:
    def make(data: Path, *overrides: str, processes: Processes | None = None) -> AsrDataModule:
        plain = module(data, *overrides)
        made = OneAfterAnother(plain.cfg, data, plain.tokenizer)
        made.size = size
        return made

    return make


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (2, []),  # one pass per step
        # several passes; in the last ones, some processes are idle
        pytest.param(3, ["train.batch_seconds=30", "train.max_duration=5"], marks=pytest.mark.slow),
        pytest.param(2, ["train.max_duration=2"], marks=pytest.mark.slow),  # fewer utterances than processes
    ],
)
def test_processes_train_as_one_on_the_same_micro_batches(data: Path, tmp_path: Path, size: int, overrides: list[str]) -> None:
    """Losses, weights, validation and outliers, with the filter and the optimiser of the recipe."""
    options = [*EXACT, "gradient.threshold=1", *overrides]
    alone = trained(data, tmp_path / "alone", *options, module_of=one_after_another(size))
    runs = in_processes(size, lambda p: trained(data, tmp_path / "runs", *options, processes=p))
    for run in runs:
        assert_same_training(alone, run)
        assert all(torch.equal(value, runs[0].weights[k]) for k, value in run.weights.items())
    valid = [[float(v) for v in (tmp_path / d / "valid.csv").read_text().split(",")[-3:]] for d in ("alone", "runs")]
    assert valid[0] == pytest.approx(valid[1], rel=1e-4)
    outliers = [(tmp_path / d / "outliers.tsv").read_text() for d in ("alone", "runs")]
    names = [sorted(line.split("\t")[:2] for line in text.splitlines()) for text in outliers]
    assert names[0] == names[1]
    if not overrides:  # the micro-batches of the others hold one or two utterances, which are their own median
        assert len(names[0]) > 3


def test_gradients_of_processes_are_those_of_one(data: Path, tmp_path: Path) -> None:
    """Over 20 steps with the filter, on the same micro-batches."""
    # Plain descent, as the optimiser of the recipe enlarges differences of rounding from step to step.
    plain = ["optim.name=sgd", "optim.lr=1e-5", "train.max_duration=8", "train.num_epochs=5"]
    options = [*EXACT, *plain, "gradient.threshold=1", f"train.max_steps={STEPS}"]
    alone = trained(data, tmp_path / "alone", *options, module_of=one_after_another(2))
    runs = in_processes(2, lambda p: trained(data, tmp_path / "runs", *options, processes=p))
    for run in runs:
        assert len(run.gradients) == len(alone.gradients) == STEPS
        for a, b in zip(run.gradients, alone.gradients, strict=True):
            assert torch.linalg.vector_norm(a - b) <= 1e-5 * torch.linalg.vector_norm(b)
    unfiltered = trained(
        data, tmp_path / "none", *options, "gradient.control=none", "train.max_steps=1", module_of=one_after_another(2)
    )
    assert torch.linalg.vector_norm(unfiltered.gradients[0] - alone.gradients[0]) > 0.01 * unfiltered.gradients[0].norm()


def test_accumulated_passes_are_one_large_batch(data: Path, tmp_path: Path) -> None:
    """Without the filter, whose median is that of a micro-batch."""
    options = [*EXACT, "gradient.control=none", "train.batch_seconds=24"]
    large = trained(data, tmp_path / "large", *options, "train.max_duration=24")
    parts = trained(data, tmp_path / "parts", *options, "train.max_duration=6")
    assert_same_training(large, parts)
    assert large.step < trained(data, tmp_path / "small", *EXACT, "train.max_duration=6").step


def test_resumed_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    """Dropout, bypasses and balancers included. Another number of processes resumes too, with a warning."""
    whole = in_processes(2, lambda p: trained(data, tmp_path / "whole", processes=p))
    in_processes(2, lambda p: trained(data, tmp_path / "parts", "train.max_steps=3", processes=p))
    parts = in_processes(2, lambda p: trained(data, tmp_path / "parts", processes=p))
    assert len(parts[0].sums) == len(whole[0].sums) - 3 and parts[0].sums == whole[0].sums[3:]
    assert all(torch.equal(value, parts[1].weights[k]) for k, value in whole[0].weights.items())
    saved = load_file(tmp_path / "whole" / "checkpoints" / "epoch-1.pt")["rng"]
    assert not torch.equal(saved["cpu"], saved["others"][0]["cpu"])
    more = trained(data, tmp_path / "parts", "train.num_epochs=2")
    assert "epoch-1.pt was written by 2 processes" in more.text and more.step > parts[0].step


def test_all_processes_skip_a_step_that_is_not_finite(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = next(iter(module(data, processes=Processes(1, 2)).train_dataloader(1))).ids[0]
    load = AsrDataset._load
    monkeypatch.setattr(
        AsrDataset, "_load", lambda self, c, seed=None: load(self, c, seed) * (math.inf if c.id == victim else 1)
    )
    runs = in_processes(2, lambda p: trained(data, tmp_path, processes=p))
    assert [run.bad_steps for run in runs] == [1, 1] and re.search(rf"step 1 .*loss.* {victim};", runs[0].text)
    assert all(torch.equal(value, runs[0].weights[k]) and value.isfinite().all() for k, value in runs[1].weights.items())


def test_utterances_that_cannot_be_loaded_stop_no_process(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whole step and one process's share of another are missing."""
    step = "train.batch_seconds=12"
    loaders = [module(data, step, processes=Processes(rank, 2)).train_dataloader(1) for rank in range(2)]
    (first, other), (second, _) = [
        [b.ids for b in batches] for _, batches in zip(range(2), zip(*loaders, strict=True), strict=False)
    ]
    lost = {*first, *other, *second}
    load = AsrDataset._load

    def broken(self: AsrDataset, c: Any, seed: int | None = None) -> torch.Tensor:
        if c.id in lost:
            raise OSError("gone")
        return load(self, c, seed)

    monkeypatch.setattr(AsrDataset, "_load", broken)
    options = [*EXACT, step, "gradient.control=none", "data.max_lost=1"]
    runs = in_processes(2, lambda p: trained(data, tmp_path / "two", *options, processes=p))
    assert f"{len(lost)} utterances" in runs[0].text
    assert_same_training(trained(data, tmp_path / "one", *options), runs[1])


class Limit(torch.autograd.Function):
    """Identity whose backward pass runs out of memory for more than `rows` utterances: x (T, N, C)."""

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
    """The last process runs out of memory between two filters of a pass; the sum stays the same."""
    options = (*EXACT, "gradient.threshold=1e6", "train.batch_seconds=12")  # this threshold damps nothing
    plain = trained(data, tmp_path / "plain", *options)

    def limited(processes: Processes) -> SimpleNamespace:
        if processes.rank == size - 1:
            forward = GradientFilter.forward
            below = [lambda x: Limit.apply(x, 2), lambda x: x]  # the second layer's filter has run by then
            calls: list[int] = []

            def filtering(self: GradientFilter, x: torch.Tensor, params: Any) -> Any:
                calls.append(1)
                return forward(self, below[len(calls) % 2](x), params)

            monkeypatch.setattr(GradientFilter, "forward", filtering)
        return trained(data, tmp_path / "limited", *options, processes=processes)

    runs = in_processes(size, limited) if size > 1 else [limited(Processes())]
    assert "halved" in runs[-1].text
    for run in runs:
        assert_same_training(plain, run, within=2e-5)


def test_an_utterance_that_alone_is_too_long_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = GradientFilter.forward
    monkeypatch.setattr(GradientFilter, "forward", lambda self, x, params: forward(self, Limit.apply(x, 0), params))
    with pytest.raises(UserError, match=r"utterance \S+: .*CUDA out of memory"):
        trained(data, tmp_path)


def test_a_process_that_loses_another_waits_to_be_stopped_and_then_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher reports the one that ended; without a launcher, this line is all that there is."""
    waits: list[float] = []
    monkeypatch.setattr(processes_module.time, "sleep", waits.append)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(says)

    monkeypatch.setattr(processes_module.dist, "all_reduce", fail)
    says = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"
    with pytest.raises(UserError, match="another process .* closed by peer"):
        Processes(0, 2).sum(torch.ones(1))
    assert waits == [processes_module.STOPPING]
    says = "CUDA out of memory"
    with pytest.raises(RuntimeError, match="CUDA"):
        Processes(0, 2).sum(torch.ones(1))


# ---- torchrun ----


@needs_launcher
def test_a_process_that_dies_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # otherwise `launch` sets it for later tests
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "failing.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1':\n    sys.exit(3)\ntime.sleep(60)\n"
    )
    with pytest.raises(TrainingDiverged, match=r"process 1 .* status 3"):
        launch("failing", [], 2)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(UserError, match="--rdzv"):
        launch("failing", [], 1, nnodes=2)


def command(data: Path, exp: Path, *options: str) -> list[str]:
    program = [sys.executable, str(ROOT / "local" / "train.py"), "--data-dir", str(data), "--exp-dir", str(exp)]
    steps = ["train.batch_seconds=24", "train.max_duration=6", "train.log_every=1", "train.max_steps=4"]
    return [*program, *options, *SMALL, *EXACT, *steps]


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
