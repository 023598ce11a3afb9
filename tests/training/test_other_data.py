"""Resuming with other training data: refused within an epoch, a warning between epochs, no word of the same data."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_file, save_file
from local.common.errors import UserError
from local.training.resume_checks import check_same_data
from tests.common import test_processes
from tests.common.test_processes import module, trained

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")
prepared = test_processes.data  # its fixture: a prepared corpus of 20 utterances, 60 with their copies
WARNING = "other training data than those of"


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def change(data: Path, edit: Any) -> None:
    """Replace the list of training cuts by what `edit` returns for it."""
    path = data / "cuts" / "tr.jsonl.gz"
    cuts = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    path.write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in edit(cuts)).encode()))


def reworded(cuts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cuts[7]["supervisions"][0]["text"] += " ONE"
    return cuts


def unworded(cuts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cuts[7]["supervisions"][0]["text"] = cuts[7]["supervisions"][0]["text"].removesuffix(" ONE")
    return cuts


def moved(cuts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the same cuts, whose audio is in another folder."""
    for cut in cuts:
        for source in cut["recording"]["sources"]:
            source["source"] = "/elsewhere/" + source["source"]
    return cuts


EDITS = {
    "fewer": (lambda cuts: cuts[:13], "20 cuts then, 13 now"),
    "reworded": (reworded, "transcripts"),
    "another order": (lambda cuts: cuts[::-1], "order"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_other_data_within_an_epoch_are_refused(data: Path, tmp_path: Path, kind: str) -> None:
    trained(data, tmp_path / "exp", "train.max_steps=3")
    edit, says = EDITS[kind]
    change(data, edit)
    with pytest.raises(UserError, match=rf"step-3\.pt.*{says}.*epoch 1"):
        trained(data, tmp_path / "exp")
    assert [path.name for path in (tmp_path / "exp" / "checkpoints").iterdir()] == ["step-3.pt"]


def test_other_data_between_epochs_are_named(data: Path, tmp_path: Path) -> None:
    assert WARNING not in trained(data, tmp_path / "exp").text
    change(data, EDITS["fewer"][0])
    text = trained(data, tmp_path / "exp", "train.num_epochs=2").text
    assert WARNING in text and "20 cuts then, 13 now" in text
    assert WARNING not in trained(data, tmp_path / "exp", "train.num_epochs=2").text  # nothing is left to train
    change(data, EDITS["another order"][0])
    text = trained(data, tmp_path / "exp", "train.num_epochs=2").text  # nor is there now, but the model is of other data
    assert WARNING in text and "--force" in text and "epoch-2.pt" in text
    assert load_file(tmp_path / "exp/checkpoints/epoch-2.pt")["data"]["cuts"] == 13


def test_the_same_data_elsewhere_and_older_checkpoints(data: Path, tmp_path: Path) -> None:
    before = module(data).identity()
    trained(data, tmp_path / "exp", "train.max_steps=3")
    path = tmp_path / "exp/checkpoints/step-3.pt"
    content = load_file(path)
    del content["data"]
    save_file(content, path)
    change(data, reworded)
    assert WARNING not in trained(data, tmp_path / "exp", "train.max_steps=4").text
    assert before["cuts"] == 20 and module(data).identity() != before
    change(data, lambda cuts: moved(unworded(cuts)))
    assert module(data).identity() == before


def test_noise_counts() -> None:
    saved = {"data": {"cuts": 2, "hours": 0.1, "noises": 5, "hash": "a"}, "progress": {"batch": 0, "epoch": 3}}
    now = {"cuts": 2, "hours": 0.1, "noises": 4, "hash": "b"}
    assert "5 noises then, 4 now" in check_same_data(saved, now, Path("epoch-2.pt"))
    assert check_same_data(saved, saved["data"], Path("epoch-2.pt")) == ""
