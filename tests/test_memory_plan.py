"""train.max_duration=auto: the fitted plane foretells passes, the plan keeps to the memory, probes leave no trace."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from local import memory_plan
from local.checkpoint import load_file, save_file
from local.config import config_from_dict, load_config, to_dict
from local.diagnose import main as diagnose
from local.distributed import Processes
from local.errors import UserError
from local.memory_plan import KEPT, SHARE, Plane, fit_plane, plan, round_down
from local.memory_probe import Lengths, Shape, bytes_of_pass, probe, unseen
from local.usage import Usage, free_bytes
from model.build import build_model
from tests import test_distributed
from tests.conftest import ROOT
from tests.test_distributed import SMALL, in_processes, module, needs_launcher, trained

CPU = torch.device("cpu")
AUTO = "train.max_duration=auto"
MODEL = ["model.encoder.num_layers=2", "model.encoder.d_model=64", "model.encoder.rnn_hidden_size=64",
         "model.encoder.dim_feedforward=128", "model.decoder.dim=64", "model.joiner.dim=64"]  # fmt: skip
SHORT = ["train.max_steps=4"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a pass's peak")
data = test_distributed.data  # its fixture: a prepared corpus of 20 utterances, 60 with their copies

# ---- the plane ----

PROGRAM = """
import json, sys, torch
from local.config import load_config
from local.heap import keep_large_blocks_apart
from local.memory_plan import fit_plane
from local.memory_probe import Lengths, Shape, bytes_of_pass, probe, unseen
from model.build import build_model
torch.set_num_threads(1)
keep_large_blocks_apart()
model, cpu = build_model(load_config(None, sys.argv[1:]), 50), torch.device("cpu")
def losses_of(b):
    return model(b["inputs"], b["input_lens"], b["tokens"], b["token_lens"], warmup=2.0, monitor=True)
def measure(shape):
    return bytes_of_pass(shape, model, losses_of, 0.5, cpu)
with unseen(model, cpu):
    passes = probe(measure, Lengths(8.0, 1e4, 30), 4e9)
    plane = fit_plane(passes)
    for shape in (Shape(40, 400, 10), Shape(11, 700, 60), Shape(25, 1000, 30)):
        print(json.dumps([plane.predict(shape.seconds, shape.tokens), measure(shape), plane.per_second, len(passes)]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere freed memory may stay with the process")
def test_the_plane_predicts_unseen_passes() -> None:
    """Larger ones than were measured, with other lengths and tokens; in a program of its own, as training is."""
    out = subprocess.run([sys.executable, "-c", PROGRAM, *MODEL], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for predicted, measured, per_second, count in map(json.loads, out.splitlines()):
        assert measured > 50e6 and per_second > 0 and 5 <= count <= 9
        assert predicted == pytest.approx(measured, rel=0.25)


coefficients = st.tuples(st.floats(0, 1e9), st.floats(1e4, 1e8), st.floats(0, 1e5))
sizes = ((1, 500, 30), (1, 1000, 30), (2, 1000, 30), (4, 1000, 30), (4, 1000, 7), (4, 1000, 61))
shapes = [Shape(*size) for size in sizes]


@given(coefficients)
def test_an_exact_plane_is_found(truth: tuple[float, float, float]) -> None:
    measured = [(s, Plane(*truth).predict(s.seconds, s.tokens)) for s in shapes]
    found = fit_plane(measured)
    for seconds, tokens in ((3.0, 5), (1000.0, 100)):
        assert found.predict(seconds, tokens) == pytest.approx(Plane(*truth).predict(seconds, tokens), rel=1e-4)
    assert found.error < 1e-4


@given(st.lists(st.floats(0, 1e10), min_size=6, max_size=6))
def test_the_fit_is_the_best_without_negative_coefficients(measured: list[float]) -> None:
    """As the conditions of Karush, Kuhn and Tucker say: the error's slope is 0 where a coefficient is not, else upward."""
    found = fit_plane(list(zip(shapes, measured, strict=True)))
    x = np.array([found.base, found.per_second, found.per_token])
    columns = np.array([[1.0, s.seconds, s.seconds * s.tokens] for s in shapes])
    slopes = (columns.T @ (columns @ x - np.array(measured))) / np.abs(columns).sum(0) / max(*measured, 1.0)
    assert (x >= 0).all() and (slopes > -1e-6).all() and (np.abs(slopes[x > 0]) < 1e-6).all()
    assert found.predict(50, 10) <= found.predict(51, 10) and found.predict(50, 10) <= found.predict(50, 11)


@given(coefficients, st.floats(1e6, 1e12), st.floats(0.3, 40), st.integers(1, 500), st.floats(1, 1e7))
def test_a_plan_keeps_to_the_memory(
    truth: tuple[float, float, float], room: float, longest: float, tokens: int, most: float
) -> None:
    plane, lengths = Plane(*truth), Lengths(longest, 1e6, tokens)
    seconds = plan(plane, lengths, room, most)
    if seconds > math.ceil(longest):
        assert seconds <= most and plane.predict(seconds, tokens) <= room * (1 + 1e-9)
        assert seconds == most or plane.predict(1.12 * seconds, tokens) > room  # two digits: a tenth at most is given away
    else:
        assert seconds == math.ceil(longest)
    assert plan(plane, lengths, 2 * room, most) >= seconds >= plan(plane, Lengths(longest, 1e6, 2 * tokens), room, most)


@given(st.floats(1e-3, 1e9))
def test_numbers_are_rounded_down_to_two_digits(number: float) -> None:
    rounded = round_down(number)
    assert rounded <= number * (1 + 1e-12) and rounded > 0.9 * number * (1 - 1e-9) and float(f"{rounded:.1e}") == rounded


def test_round_numbers() -> None:
    assert [round_down(n) for n in (1873.0, 247.9, 100.0, 7.36, -3.0)] == [1800.0, 240.0, 100.0, 7.3, 0.0]


@given(st.floats(0.1, 60), st.integers(0, 400), st.floats(1e5, 1e8), st.floats(1e7, 1e11))
def test_probes_grow_until_it_can_be_seen(longest: float, tokens: int, per_second: float, free: float) -> None:
    asked: list[Shape] = []

    def measure(shape: Shape) -> float:
        asked.append(shape)
        return 3e8 + per_second * shape.seconds

    passes = probe(measure, Lengths(longest, 1e6, tokens), free)
    assert [shape for shape, _ in passes] == asked[1:]  # the first warms up
    assert all(1 <= s.tokens <= s.frames // 4 and s.rows >= 1 for s in asked)
    largest = max(s.seconds for s in asked)
    growing = [s for s in asked[1:] if s.seconds < largest]
    others = asked[1 + len(growing) :]
    assert 2 <= len(growing) <= 6 and all(a.seconds < b.seconds for a, b in itertools.pairwise(growing))
    assert len({s.tokens for s in others}) == len(others) and len(others) > 1 or others[0].frames < 20
    enough = min(200 * 2**20, free / 10)
    assert per_second * (largest - asked[1].seconds) >= enough or len(growing) == 6
    assert len(growing) == 2 or per_second * (growing[-1].seconds - asked[1].seconds) < enough


# ---- no trace ----


def state_of(model: torch.nn.Module) -> list[Any]:
    modules = list(model.modules())
    return [
        [m.training for m in modules], [getattr(m, "balance_prob", None) for m in modules],
        [getattr(m, "layer_dropout", None) for m in modules], [getattr(m, "mask", None) is None for m in modules],
        [p.grad is None for p in model.parameters()], torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(),
        [v.tolist() for v in model.state_dict().values()],
    ]  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("norm", ["basic", "batch"])
def test_probes_leave_no_trace(norm: str, fails: bool) -> None:
    model = build_model(load_config(None, [*SMALL, f"model.encoder.norm={norm}"]), 20).eval()
    model.joiner.train()
    kept = model.simple_am_proj.weight
    kept.grad = torch.ones_like(kept)
    before = state_of(model)
    seen = {}

    def losses_of(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        losses = model(batch["inputs"], batch["input_lens"], batch["tokens"], batch["token_lens"], warmup=2.0)
        seen.update(now=state_of(model), training=model.training)
        seen["draws"] = {m.balance_prob for m in model.modules() if hasattr(m, "balance_prob")}
        return losses

    with unseen(model, CPU):
        bytes_of_pass(Shape(2, 100, 5), model, losses_of, 0.5, CPU)
        assert kept.grad is not None and not (kept.grad == 1).all()
        changed = state_of(model)
    assert state_of(model) == before and (kept.grad == 1).all()
    assert seen["training"] and seen["draws"] == {1.0}  # the most memory: every balancer acts
    differs = [now != then for now, then in zip(changed, before, strict=True)]  # there was something to put back
    assert differs == [True, True, True, True, True, True, False, norm == "batch"]
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"), unseen(model, CPU):
            losses_of({k: torch.ones(2, 50, 80) if k == "inputs" else torch.tensor([[1] * 3] * 2) if k == "tokens"
                       else torch.tensor([50, 50]) if k == "input_lens" else torch.tensor([3, 3])
                       for k in ("inputs", "input_lens", "tokens", "token_lens")})  # fmt: skip
            raise RuntimeError("out of memory")
        assert state_of(model) == before and (kept.grad == 1).all()


# ---- free memory ----


def system(root: Path, available: int, own: str, **limits: tuple[str, int, int]) -> Path:
    """A /proc and /sys under `root`; limits: of a control group ("" for the top, "a__b" for a/b) memory.max, current, cache."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  9 kB\nMemFree:  1 kB\nMemAvailable:  {available} kB\n")
    (root / "proc/self/cgroup").write_text(f"3:cpu:/x\n0::{own}\n")
    for name, (most, current, cache) in limits.items():
        folder = root / "sys/fs/cgroup" / name.replace("top", "").replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in (("max", most), ("current", str(current)), ("stat", f"anon 5\ninactive_file {cache}")):
            (folder / f"memory.{file}").write_text(f"{text}\n")
    return root


def test_free_memory_is_the_least_of_machine_and_limits(tmp_path: Path) -> None:
    mib = 2**20
    assert free_bytes(CPU, system(tmp_path / "a", 5000, "/")) == 5000 * 1024
    assert free_bytes(CPU, system(tmp_path / "b", 5000, "/x", x=("max", 1, 1))) == 5000 * 1024
    assert free_bytes(CPU, system(tmp_path / "c", 5000, "/", top=(f"{4 * mib}", 2 * mib, mib))) == 3 * mib
    outer = system(tmp_path / "d", 9000, "/x/y", x__y=(f"{8 * mib}", mib, 0), x=(f"{3 * mib}", 2 * mib, 0), z=("1", 1, 0))
    assert free_bytes(CPU, outer) == mib
    with pytest.raises(UserError, match="meminfo"):
        free_bytes(CPU, tmp_path / "nothing")


@linux
def test_free_memory_falls_by_what_is_taken() -> None:
    found = []
    for _ in range(10):  # other programs, which run here too, may give as much back meanwhile
        before = free_bytes(CPU)
        block = torch.ones(150_000_000)  # 600 MB
        found.append(before - free_bytes(CPU))
        assert block[0] == 1
        del block
    assert any(3e8 < taken < 3e9 for taken in found)


@linux
def test_peaks_do_not_begin_at_those_of_the_parent() -> None:
    """ru_maxrss of a program is at least what the process that started it once had."""
    program = "import torch; from local.usage import Usage; u = Usage(torch.device('cpu'))\n"
    program += "with u.of('x'): pass\nprint(u.peak_mib['x'])"
    parent = f"import sys, subprocess; x = b'x' * 2 * 10**9; subprocess.run([sys.executable, '-c', {program!r}], check=True)"
    out = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert 50 < float(out) < 1500


# ---- training ----


def fixed(monkeypatch: pytest.MonkeyPatch, *rooms: float) -> list[Shape]:
    """A pass takes 2 MB and 1 MB a second, and there is room for one of `rooms` seconds (of each process)."""
    parameters = sum(p.numel() for p in build_model(load_config(None, SMALL), 20).parameters())
    asked: list[Shape] = []

    def measured(shape: Shape, *_: Any) -> float:
        asked.append(shape)
        return 1e6 * (2 + shape.seconds)

    def free(device: torch.device) -> float:
        room = rooms[int(os.environ.get("RANK", "0")) % len(rooms)]
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (1e6 * (2 + room) + KEPT * parameters) / SHARE

    monkeypatch.setattr(memory_plan, "bytes_of_pass", measured)
    monkeypatch.setattr(memory_plan, "free_bytes", free)
    monkeypatch.setattr(Usage, "tells_peaks", lambda self: True)
    return asked


def saved_seconds(exp: Path) -> float:
    return load_file(max((exp / "checkpoints").glob("*.pt"), key=os.path.getmtime))["progress"]["max_duration"]


def same(a: SimpleNamespace, b: SimpleNamespace) -> bool:
    return a.sums == b.sums and all(torch.equal(value, b.weights[k]) for k, value in a.weights.items())


@linux
def test_auto_trains_as_its_number_does(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, after real probes, which draw random numbers."""
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 60e6)
    auto = trained(data, tmp_path / "auto", AUTO, *SHORT)
    seconds = saved_seconds(tmp_path / "auto")
    assert f"train.max_duration is {seconds:g}\n" in auto.text and auto.text.count("memory: a pass takes") == 1
    number = trained(data, tmp_path / "number", f"train.max_duration={seconds}", *SHORT)
    assert "memory:" not in number.text and same(auto, number) and saved_seconds(tmp_path / "number") == seconds
    assert len(auto.sums) > 1


def test_the_loaders_keep_to_the_plan(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, 9.46)
    dm = module(data, AUTO)
    trainer = test_distributed.Trainer(dm.cfg, dm, tmp_path, CPU)
    assert trainer.max_duration == dm.max_duration == 9.4 and dm.cfg.train.max_duration == "auto"
    batches = {value: [[b["ids"] for b in loader] for m in (dm if value == AUTO else module(data, value),)
                       for loader in (m.train_dataloader(1), m.valid_dataloader())]
               for value in (AUTO, "train.max_duration=9.4", "train.max_duration=12")}  # fmt: skip
    assert batches[AUTO] == batches["train.max_duration=9.4"] != batches["train.max_duration=12"]


def test_a_step_in_parts_and_the_bounds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = module(data).train_lengths(1000)
    total, longest = sum(d for d, _ in lengths), max(d for d, _ in lengths)
    assert len(lengths) == 60 and all(u > 0 for _, u in lengths) and len(module(data).train_lengths(7)) == 7
    for n, (room, step, expected) in enumerate(
        [(1000, 0, total), (1000, 25, 25), (9.46, 25, 9.4), (0.01, 25, math.ceil(longest)), (-3, 25, math.ceil(longest))]
    ):
        fixed(monkeypatch, room)
        dm = module(data, AUTO, f"train.batch_seconds={step}")
        assert test_distributed.Trainer(dm.cfg, dm, tmp_path / str(n), CPU).max_duration == pytest.approx(expected)
        err = capsys.readouterr().err
        assert ("auto without train.batch_seconds" in err) == (step == 0)
        assert (f"longest utterance ({longest:.1f} s) may not fit" in err) == (room < 1)
        if room == 9.46:  # passes of one step
            ends = [b["ends_step"] for b in dm.train_dataloader(1)]
            assert ends.count(True) < len(ends)


def test_a_resumed_run_keeps_its_number(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fixed(monkeypatch, 9.46)
    whole = trained(data, tmp_path / "whole", AUTO, *SHORT)
    first = trained(data, tmp_path / "parts", AUTO, "train.max_steps=2")
    asked.clear()
    fixed(monkeypatch, 5.0)
    parts = trained(data, tmp_path / "parts", AUTO, *SHORT)
    assert not asked and "memory:" not in parts.text and "warning: train.max_duration" not in parts.text
    assert first.sums + parts.sums == whole.sums and all(torch.equal(v, parts.weights[k]) for k, v in whole.weights.items())
    assert saved_seconds(tmp_path / "parts") == 9.4


@pytest.mark.parametrize(
    ("then", "now", "seconds", "warning"),
    [
        (AUTO, "train.max_duration=9.4", 9.4, None),
        (AUTO, "train.max_duration=6", 6.0, "train.max_duration was 9.4, is 6.0"),
        ("train.max_duration=8", AUTO, 9.4, "train.max_duration was 8.0, is auto"),
        ("train.max_duration=8", "train.max_duration=8.0", 8.0, None),
    ],
)
def test_resuming_with_another_number(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, now: str, seconds: float, warning: str | None
) -> None:
    fixed(monkeypatch, 9.46)
    trained(data, tmp_path, then, "train.max_steps=1")
    resumed = trained(data, tmp_path, now, *SHORT)
    assert saved_seconds(tmp_path) == seconds
    assert warning in resumed.text if warning else "warning: train.max_duration was" not in resumed.text


def test_checkpoints_from_before_go_on_and_damaged_ones_do_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(monkeypatch, 9.46)
    trained(data, tmp_path, "train.max_duration=8", "train.max_steps=2")
    path = tmp_path / "checkpoints" / "step-2.pt"
    content = load_file(path)
    del content["progress"]["max_duration"]
    save_file(content, path)
    assert "warning: train.max_duration" not in trained(data, tmp_path, "train.max_duration=8", "train.max_steps=3").text
    (tmp_path / "checkpoints" / "step-3.pt").unlink()
    for wrong in (-1.0, "much", None):
        content["progress"]["max_duration"] = wrong
        save_file(content, path)
        with pytest.raises(UserError, match=r"step-2\.pt: damaged"):
            trained(data, tmp_path, "train.max_duration=8")


@needs_launcher
def test_processes_take_the_least(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, 30.0, 9.46)

    def chosen(processes: Processes) -> float | None:
        dm = module(data, AUTO, processes=processes)
        test_distributed.Trainer(dm.cfg, dm, tmp_path, CPU, processes)
        return dm.max_duration

    assert in_processes(2, chosen) == [9.4, 9.4]


def test_where_no_peak_is_known_a_number_is_asked_for(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Usage, "_begin_peak", lambda self: False)
    with pytest.raises(UserError, match=r"'train\.max_duration' is auto: .* give a number"):
        trained(data, tmp_path, AUTO)


def test_other_programs_take_the_trainings_number(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'train\.max_duration' is auto"):
        module(data, AUTO).train_dataloader(1)
    fixed(monkeypatch, 9.46)
    trained(data, tmp_path, AUTO, "train.max_steps=1")
    seen: list[float | None] = []
    limit = memory_plan.AsrDataModule._limit
    monkeypatch.setattr(memory_plan.AsrDataModule, "_limit", lambda self: seen.append(self.max_duration) or limit(self))
    diagnose(["--data-dir", str(data), "--exp-dir", str(tmp_path), "--batches", "1", *SMALL, AUTO])
    assert seen and set(seen) == {9.4}


# ---- configuration ----


@pytest.mark.parametrize("value", ["foo", "0", "-1", "null", "true", "[3]", "nan", "Auto", "''"])
def test_wrong_values_name_the_key(value: str) -> None:
    with pytest.raises(UserError, match=r"max_duration=.*key 'train\.max_duration' is .*a number above 0, or auto") as e:
        load_config(None, [f"train.max_duration={value}"])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "value"), [("auto", "auto"), ("12", 12.0), ("1e3", 1000.0), ("'7.5'", 7.5), (".inf", math.inf)]
)
def test_numbers_and_auto_survive_a_checkpoint(text: str, value: float | str) -> None:
    cfg = load_config(None, [f"train.max_duration={text}"])
    assert cfg.train.max_duration == value and type(cfg.train.max_duration) is type(value)
    assert config_from_dict(to_dict(cfg)) == cfg
    assert load_config(None).train.max_duration == 300.0
