"""A pass that loses more than data.max_lost of its utterances is an error: training, validation, decoding, features."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

from local import compute_features
from local.common.errors import UserError
from local.common.processes import Processes
from local.data.batch import check_lost
from local.data.dataset import AsrDataset
from local.data.feature_store import Float16ArchiveReader
from local.decoding.batch_decoder import with_progress
from tests.common import test_processes
from tests.common.test_processes import in_processes, module, trained
from tests.killed_run import prepared_corpus

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")
data = test_processes.data  # its fixture: 20 training utterances, 60 with their copies, and 6 of part te
SHARE = r"key 'data\.max_lost'.*\(0\.05\)"


def lose(monkeypatch: pytest.MonkeyPatch, ids: list[str], train: bool = True) -> None:
    """Let the utterances `ids` of the training or of the other parts, and the copies of them, not be loaded."""
    load = AsrDataset._load

    def broken(self: AsrDataset, cut: Any, seed: int | None = None) -> Any:
        if self.augment == train and cut.id.partition("_sp")[0] in ids:
            raise OSError("gone")
        return load(self, cut, seed)

    monkeypatch.setattr(AsrDataset, "_load", broken)


def train_ids(data: Path) -> list[str]:
    return sorted({name.partition("_sp")[0] for batch in module(data).train_dataloader(1) for name in batch.ids})


def test_the_share_itself_is_allowed() -> None:
    check_lost("epoch 1", 5, 100, 0.05, "x")
    with pytest.raises(UserError, match=r"epoch 1: 6 of 100 .*" + SHARE + r".* x;"):
        check_lost("epoch 1", 6, 100, 0.05, "x")
    with pytest.raises(UserError, match="1 of 100"):
        check_lost("epoch 1", 1, 100, 0.0, "x")


@pytest.mark.slow
def test_an_epoch_that_lost_too_many(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = train_ids(data)[:2]
    lose(monkeypatch, lost[:1])
    assert "epoch 1: 3 utterances" in trained(data, tmp_path / "few").text
    lose(monkeypatch, lost)
    with pytest.raises(UserError, match=r"epoch 1: 6 of 60 .*" + SHARE + r".*utterance \S+ \(.*gone"):
        trained(data, tmp_path / "many")
    assert list((tmp_path / "many" / "checkpoints").iterdir()) == []
    assert "epoch 1: 6 utterances" in trained(data, tmp_path / "many", "data.max_lost=0.1").text


def test_it_stops_as_soon_as_it_is_certain(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = module(data).train_dataloader(1)
    early = [name.partition("_sp")[0] for _, batch in zip(range(4), first, strict=False) for name in batch.ids]
    lose(monkeypatch, early[:4])
    with pytest.raises(UserError, match=SHARE) as error:
        trained(data, tmp_path, "train.log_every=1")
    lost = re.search(r"epoch 1: (\d+) of 60", str(error.value))
    assert lost is not None and 3 < int(lost[1]) < 12


def test_processes_count_together(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch, train_ids(data)[:2])

    def error(processes: Processes) -> str:
        with pytest.raises(UserError, match=r"epoch 1: \d+ of 60 .*" + SHARE) as found:
            trained(data, tmp_path, processes=processes)
        return str(found.value)

    first, second = in_processes(2, error)
    assert first == second


def test_validation(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = min(module(data).valid_ids())
    lose(monkeypatch, [victim], train=False)
    with pytest.raises(UserError, match=r"dev parts: 1 of 6 .*" + SHARE + rf".*{victim}"):
        trained(data, tmp_path)


def test_decoding_and_tuning(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch, module(data).valid_ids()[:1], train=False)
    with pytest.raises(UserError, match=r"te: 1 of 6 .*" + SHARE):
        list(with_progress(module(data).test_dataloader("te"), "decoding", "te"))
    allowed = with_progress(module(data, "data.max_lost=0.2").test_dataloader("te"), "decoding", "te")
    assert sum(len(batch) for batch in allowed) == 5


def remove_audio(root: Path, part: str, count: int) -> None:
    for path in sorted((root / "audio" / part).rglob("*.flac"))[:count]:
        path.unlink()


def features(root: Path, *overrides: str) -> None:
    compute_features.main(["--data-dir", str(root / "data"), *overrides])


def test_stored_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Stage features fails, keeps what it has made, and decoding counts what it has not made."""
    folder = prepared_corpus(tmp_path) / "features"
    for path in folder.iterdir():
        path.unlink() if path.is_file() else [archive.unlink() for archive in path.iterdir()]
    remove_audio(tmp_path, "te", 2)
    with pytest.raises(SystemExit):
        features(tmp_path)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(r"te: 2 of 36 .*" + SHARE, errors[0])
    assert {path.name for path in folder.glob("*.gz")} == {"tr.jsonl.gz", "te.partial.jsonl.gz"}
    archives = {path: path.stat().st_mtime_ns for path in (folder / "te").iterdir()}
    features(tmp_path, "data.max_lost=0.06")
    assert {path.name for path in folder.glob("*.gz")} == {"tr.jsonl.gz", "te.jsonl.gz"}
    assert archives.items() <= {path: path.stat().st_mtime_ns for path in (folder / "te").iterdir()}.items()
    stored = gzip.decompress((folder / "te.jsonl.gz").read_bytes()).decode().splitlines()
    assert len(stored) == 34
    loader = module(tmp_path / "data", "features.type=precomputed").test_dataloader("te")
    assert (loader.skipped, loader.num_cuts) == (2, 36)
    with pytest.raises(UserError, match=r"te: 2 of 36 .*" + SHARE):
        list(with_progress(loader, "decoding", "te"))


def test_archives_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the report: no stored feature is left, and training went on to three checkpoints."""
    root = prepared_corpus(tmp_path)
    monkeypatch.setattr(Float16ArchiveReader, "__init__", lambda self, path, *_: Path(path).open().close())
    for archive in sorted((root / "features" / "tr").iterdir()):
        archive.unlink()
    with pytest.raises(UserError, match=r"72 utterances could be loaded|72 of 72"):
        trained(root, tmp_path / "exp", "features.type=precomputed")
    assert list((tmp_path / "exp" / "checkpoints").iterdir()) == []


def test_a_batch_of_a_resumed_epoch_counts_the_rest_only(data: Path) -> None:
    whole, rest = (module(data).train_dataloader(1, skip_batches=skip).num_cuts for skip in (0, 3))
    assert whole == 60 and 0 < rest < 60
    assert module(data).train_dataloader(1, skip_batches=3).epoch_cuts == 60, "data.max_lost is a share of the epoch"
