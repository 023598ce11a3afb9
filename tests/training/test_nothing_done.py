"""Doing nothing does not count as done: no utterance could be loaded, or no step was made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from local.artifacts.averaging import make_average
from local.artifacts.checkpoint import load_averaged, load_file, save_file
from local.common.errors import UserError
from local.common.processes import Processes
from local.data.datamodule import Batches
from local.data.dataset import AsrDataset
from local.decoding.batch_decoder import with_progress
from local.diagnose import take_batches
from local.training.validation import left_out
from tests.common import test_processes
from tests.common.test_processes import in_processes, module, trained
from tests.test_train import trainer

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")
data = test_processes.data  # its fixture: a prepared corpus of 20 utterances, 60 with their copies
EPOCH = r"epoch 1 has no step.* 60 utterances"


def losing(monkeypatch: pytest.MonkeyPatch, *, train: bool, dev: bool) -> None:
    """Let no audio of the training parts or of the dev parts be loaded."""
    load = AsrDataset._load

    def broken(self: AsrDataset, cut: Any, seed: int | None = None) -> Any:
        if train if self.augment else dev:
            raise OSError("gone")
        return load(self, cut, seed)

    monkeypatch.setattr(AsrDataset, "_load", broken)


def files(exp_dir: Path) -> list[str]:
    return [path.name for path in (exp_dir / "checkpoints").iterdir()]


def test_an_epoch_without_a_step_is_an_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, train=True, dev=False)
    with pytest.raises(UserError, match=EPOCH):
        trained(data, tmp_path)
    assert files(tmp_path) == [] and not (tmp_path / "valid.csv").exists()


def test_all_processes_agree_that_there_was_no_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, train=True, dev=False)

    def error(processes: Processes) -> str:
        with pytest.raises(UserError, match=EPOCH) as found:
            trained(data, tmp_path, processes=processes)
        return str(found.value)

    first, second = in_processes(2, error)
    assert first == second and files(tmp_path) == []


def test_a_later_epoch_without_a_step_leaves_the_earlier_checkpoints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(data, tmp_path)
    losing(monkeypatch, train=True, dev=False)
    with pytest.raises(UserError, match="epoch 2 has no step"):
        trained(data, tmp_path, "train.num_epochs=2")
    assert files(tmp_path) == ["epoch-1.pt"]


def test_a_validation_of_nothing_is_an_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, train=False, dev=True)
    with pytest.raises(UserError, match="dev parts"):
        trained(data, tmp_path)
    assert files(tmp_path) == []


def test_lost_dev_utterances_are_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victims = sorted(module(data).valid_ids())[:2]
    load = AsrDataset._load
    monkeypatch.setattr(AsrDataset, "_load", lambda self, cut, seed=None: 1 / 0 if cut.id in victims else load(self, cut, seed))
    text = trained(data, tmp_path, "data.max_lost=0.34").text
    assert "dev parts: 2 utterances" in text and "(4 utterances)" in text


def test_the_last_reason_is_named(tmp_path: Path) -> None:
    """Each process has its own; one of them is enough."""
    loader = SimpleNamespace(skipped=2, last_problem="utterance a (a.wav): gone")
    assert left_out(loader, Processes()) == (2, "utterance a (a.wav): gone")  # type: ignore[arg-type]
    reasons = ["utterance a (a.wav): gone", ""]
    found = in_processes(2, lambda p: left_out(SimpleNamespace(skipped=1, last_problem=reasons[p.rank]), p))  # type: ignore[arg-type]
    assert found == [(2, "utterance a (a.wav): gone")] * 2
    run = trainer(tmp_path)
    empty = type(run.data.valid_dataloader())()
    empty.last_problem, empty.skipped, empty.num_cuts = "utterance b (b.sph): no sphere", 9, 9  # type: ignore[attr-defined]
    run.data.train_dataloader = run.data.valid_dataloader = lambda *_, **__: empty  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"epoch 1 .* 9 utterances .*b\.sph\): no sphere"):
        run.run()
    with pytest.raises(UserError, match=r"dev parts .*b\.sph\): no sphere"):
        run.validate()


def test_decoding_names_the_last_reason() -> None:
    loader: Any = Batches([], 3)  # type: ignore[arg-type]
    loader._start_workers = lambda: iter([])
    loader.last_problem = "utterance b (b.sph): no sphere"
    with pytest.raises(UserError, match=r"test: .* 3 .*b\.sph\): no sphere"):
        list(with_progress(loader, "decoding", "test"))


def test_diagnose_needs_utterances(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, train=True, dev=False)
    with pytest.raises(UserError, match="training parts"):
        take_batches(module(data), None, 2)


@pytest.mark.parametrize(("mode", "num"), [("plain", 1), ("running", 3)])  # each needs epoch 3 alone
def test_untrained_weights_are_not_averaged_decoded_or_resumed(tmp_path: Path, mode: str, num: int) -> None:
    """Earlier versions wrote checkpoints after epochs without a step."""
    run = trainer(tmp_path, "train.max_steps=1", f"average.mode={mode}", f"average.num={num}")
    run.run()
    path = tmp_path / "checkpoints" / "epoch-3.pt"
    content = load_file(tmp_path / "checkpoints" / "step-1.pt")
    (tmp_path / "checkpoints" / "step-1.pt").unlink()
    content["progress"] |= {"step": 0, "epoch": 4}
    save_file(content, path)
    for use in (lambda: make_average(path.parent, run.cfg.average), lambda: load_averaged(path), lambda: trainer(tmp_path)):
        with pytest.raises(UserError, match=r"epoch-3\.pt: .*untrained"):
            use()
