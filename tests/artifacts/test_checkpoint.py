"""Checkpoints: damaged ones are named and skipped, nothing in them is executed, and no half-written file stays."""

from __future__ import annotations

import csv
import dataclasses
import errno
import fcntl
import io
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import (
    _Output,
    check_finite,
    checkpoints,
    config_for_recognition,
    load_file,
    load_weights,
    newest_readable,
    save_file,
)
from local.common import signals
from local.common.atomic import atomic_write, remove_abandoned
from local.common.errors import UserError
from local.common.signals import Stopped, ending_signals
from local.config import load_config, to_dict
from tests.conftest import ROOT
from tests.test_train import trainer

import pytest
import torch


class Malicious:
    """An object that creates the file `path` when a careless reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_end_wait_until_the_file_is_written(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, path = {"model": {"weight": torch.arange(1000.0)}}, tmp_path / "a.pt"
    write, sent = _Output.write, list[int]()

    def signalled(self: _Output, data: Any) -> int:  # torch.save calls it from its own code
        if len(sent) < 2:  # the second is another wish
            sent.append(number)
            os.kill(os.getpid(), number)
        return write(self, data)

    monkeypatch.setattr(_Output, "write", signalled)
    monkeypatch.setattr(signals, "AGAIN", 0.0)
    try:
        with pytest.raises(Stopped), ending_signals():
            save_file(content, path)
    finally:
        signals._as_before()
    assert len(sent) == 2 and torch.equal(load_file(path)["model"]["weight"], content["model"]["weight"])
    assert os.listdir(tmp_path) == ["a.pt"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_weight(path: Path) -> None:
    """Flip one bit in the middle of the largest tensor; torch's own reader does not notice."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_text(path: Path) -> None:
    path.write_text("not a checkpoint\n")


def bare_weights(path: Path) -> None:
    """Keep only the weights: decoding can read the file, but training cannot resume from it."""
    save_file({"model": load_file(path)["model"]}, path)


def a_list(path: Path) -> None:
    torch.save([1, 2, 3], path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [truncate, flip_a_weight, empty, other_text, bare_weights, a_list, a_folder]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run with checkpoints step-9, step-12 and epoch-1, epoch-2, epoch-3 (of 4 batches each)."""
    exp_dir = tmp_path_factory.mktemp("trained")
    trainer(exp_dir).run()
    assert [n for n, _ in checkpoints(exp_dir / "checkpoints", "step")] == [12, 9]
    return exp_dir / "checkpoints"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["epoch", "step"])
def test_a_damaged_checkpoint_is_named_and_the_next_older_one_is_read(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, damage: Callable[[Path], None]
) -> None:
    for path in trained.glob(f"{kind}-*.pt"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (_, newest), (_, older) = checkpoints(tmp_path, kind)[:2]
    damage(newest)
    found = newest_readable(tmp_path)
    assert found is not None
    path, content = found
    assert path == older and content["progress"]["step"] == load_file(trained / older.name)["progress"]["step"]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {'checkpoint ' * (damage is a_folder)}{newest}")


def test_if_all_are_damaged_there_is_none(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in trained.glob("*.pt"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-100])
    assert newest_readable(tmp_path) is None
    assert len(capsys.readouterr().err.splitlines()) == 5


@pytest.mark.parametrize("wrap", ["zip", "pickle", "pickled weight"])
def test_a_file_is_never_executed(tmp_path: Path, wrap: str) -> None:
    """Neither in torch's format, nor in its old one, nor in the place of a tensor."""
    mark, path = tmp_path / "executed", tmp_path / "epoch-1.pt"
    content = {"model": {"weight": Malicious(mark)}, "epoch": Malicious(mark)}
    if wrap == "zip":
        torch.save(content, path)
    elif wrap == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="epoch-1.pt: "):
        load_file(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(content))  # what a careless reader would do
    assert mark.exists()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"bias": None}, "bias"),
        ({"scale": torch.ones(3)}, "scale"),
        ({"weight": torch.ones(2, 3)}, "weight"),
        ({"weight": torch.ones(3, 2, dtype=torch.int64)}, "weight"),
        ({"weight": [1.0, 2.0]}, "weight"),
    ],
)
def test_weights_of_another_model_are_named(changes: dict[str, Any], key: str) -> None:
    model = torch.nn.Linear(2, 3)
    state = {k: v for k, v in (model.state_dict() | changes).items() if v is not None}
    with pytest.raises(UserError, match=rf"x\.pt: .*'{key}'"):
        load_weights(model, state, Path("x.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    with pytest.raises(UserError, match=r"x\.pt: 'b'"):
        check_finite({"a": torch.ones(2), "n": torch.ones(2, dtype=torch.int64), "b": torch.tensor([1.0, value])}, Path("x.pt"))


@pytest.mark.parametrize("stop", [4, 5, 6, 7])
def test_resuming_before_and_after_a_skipped_step_is_exact(tmp_path: Path, stop: int) -> None:
    """Step 6 has an infinite loss; the count of such steps is resumed too."""
    poison = "201-b"
    trainer(tmp_path / "whole", poison=poison).run()
    trainer(tmp_path / "parts", f"train.max_steps={stop}", poison=poison).run()
    resumed = trainer(tmp_path / "parts", poison=poison)
    resumed.run()
    assert resumed.bad_steps == 1
    whole, parts = (load_file(tmp_path / d / "checkpoints" / "epoch-3.pt") for d in ("whole", "parts"))
    assert whole["progress"] == parts["progress"] and whole["progress"]["bad_steps"] == 1
    assert all(torch.equal(whole["model"][k], parts["model"][k]) for k in whole["model"])
    assert all(torch.equal(whole["average"]["state"][k], parts["average"]["state"][k]) for k in whole["average"]["state"])


@pytest.mark.parametrize("valid_every", [0, 4])
def test_a_step_is_validated_once_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valid_every: int) -> None:
    """Also if the epoch ends at the same step, and if a kill comes between validation and the epoch's checkpoint."""
    options = ["train.save_every=2", f"train.valid_every={valid_every}"]
    run = trainer(tmp_path, *options)
    save = run.save

    def killed(path: Path) -> None:
        if path.name == "epoch-2.pt":
            raise KeyboardInterrupt
        save(path)

    monkeypatch.setattr(run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    resumed = trainer(tmp_path, *options)
    assert (resumed.step, resumed.epoch, resumed.batch) == (8, 2, 4)
    resumed.run()
    with (tmp_path / "valid.csv").open(newline="") as f:
        assert [row["step"] for row in csv.DictReader(f)] == ["4", "8", "12"]


def test_another_optimiser_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, "train.max_steps=1").run()
    with pytest.raises(UserError, match="step-1.pt.*optim.name"):
        trainer(tmp_path, "optim.name=adam")


WRITER = """
import sys, time
from local.common.atomic import atomic_write
with atomic_write(sys.argv[1]) as tmp:
    tmp.write_text("half")
    print(tmp, flush=True)
    time.sleep(60)
"""


def test_the_file_of_a_killed_writer_is_removed_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "step-5.pt"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert writer.stdout is not None
    temporary = Path(writer.stdout.readline().strip())
    assert temporary.is_file() and remove_abandoned(target.parent) == [] and temporary.is_file()
    writer.kill()
    writer.wait()
    assert temporary.read_text() == "half" and not target.exists()
    other = target.parent / "mine.pt"
    other.touch()
    run = trainer(tmp_path, "train.max_steps=1")
    assert not temporary.exists() and other.exists() and run.step == 0
    assert remove_abandoned(tmp_path / "absent") == []


def test_a_reused_process_number_hides_nothing(tmp_path: Path) -> None:
    """In a container the next trainer often has the number of the one that was killed."""
    stray = tmp_path / f".tmp-{os.getpid()}-epoch-1.pt"
    stray.write_text("of an earlier process")
    assert remove_abandoned(tmp_path) == [stray]
    stray.write_text("of an earlier process")
    with atomic_write(tmp_path / "epoch-1.pt") as tmp, tmp.open("a") as f:
        assert tmp == stray
        f.write("new")
    assert (tmp_path / "epoch-1.pt").read_text() == "new" and not stray.exists()


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / ".tmp-1-epoch-1.pt").touch()
    assert remove_abandoned(tmp_path) == []
    with atomic_write(tmp_path / "file") as tmp:
        tmp.write_text("x")
    assert (tmp_path / "file").read_text() == "x"


class FullAfter(io.BytesIO):
    """A file on a disk with room for `room` bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 100, 50_000, 250_000])
def test_wherever_the_disk_is_full_the_message_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    path = tmp_path / "step-1.pt"
    save_file({"model": {"w": torch.zeros(1)}}, path)
    before = path.read_bytes()
    with monkeypatch.context() as m:
        m.setattr(Path, "open", lambda self, mode="r": FullAfter(room))
        with pytest.raises(UserError, match=r"step-1.pt .*No space left on device.* 0\.[34] MB"):
            save_file({"model": {"w": torch.randn(40_000), "v": torch.randn(40_000)}}, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["step-1.pt"]


def test_the_error_of_a_write_gets_the_name_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, atomic_write(tmp_path / "a.csv"):
        raise OSError(errno.ENOSPC, "full")
    assert raised.value.filename == str(tmp_path / "a.csv") and list(tmp_path.iterdir()) == []


def test_the_checkpoint_of_most_steps_is_taken_whatever_its_kind(trained: Path, tmp_path: Path) -> None:
    for name in ("step-9.pt", "epoch-2.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    found = newest_readable(tmp_path)
    assert found is not None and found[0].name == "step-9.pt"
    (tmp_path / "epoch-3.pt").write_bytes((trained / "epoch-3.pt").read_bytes())
    found = newest_readable(tmp_path)
    assert found is not None and found[0].name == "epoch-3.pt"


def test_recognition_may_compute_the_features_that_training_read() -> None:
    cfg = load_config(None, ["features.type=precomputed"])
    found = config_for_recognition(to_dict(cfg), ["features.type=on_the_fly", "features.num_mel_bins=40"], None, Path("x"))
    assert found.features == dataclasses.replace(cfg.features, type="on_the_fly")
