"""Checks of whether transcripts fit their audio: tokens and frames, lengths, the scores of a model."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from local.artifacts.checkpoint import load_averaged
from local.common.errors import UserError
from local.health import fit
from local.health.finding import Finding
from local.health.fit import check_lengths, check_scores, check_token_lengths
from tests.digits import DEV, digits_folder, references, write_digits_checkpoint
from tests.health.prepared_data import Folder, Spoken, run, words, write_data
from tests.reference import read_audio

import numpy as np
import pytest

LONG = " ".join(["THREE FIVE"] * 8)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_data(tmp_path, {"train": words("train", 300), "dev": words("dev", 60)})


def test_token_lengths_is_quiet(folder: Folder) -> None:
    assert run(check_token_lengths, folder) == []


def test_token_lengths_fires(tmp_path: Path) -> None:
    train = [*words("train", 97), *(Spoken(f"t-{n}", LONG, seconds=0.2) for n in range(3))]
    dev = [*words("dev", 60), Spoken("d-0", LONG, seconds=0.2)]
    first, second = run(check_token_lengths, write_data(tmp_path, {"train": train, "dev": dev}))
    assert "3 of 100" in first.what and "t-0" in first.what and "lang.vocab_size=40" in first.fix
    assert "1 of 61" in second.what and "d-0" in second.what


def test_lengths_is_quiet(folder: Folder) -> None:
    assert run(check_lengths, folder) == []


def test_lengths_is_quiet_about_few_utterances_and_equal_lengths(tmp_path: Path) -> None:
    odd = [*words("train", 20), Spoken("odd", "ONE", seconds=60.0)]
    assert run(check_lengths, write_data(tmp_path / "a", {"train": odd, "dev": words("dev", 20)})) == []
    second = {
        part: [replace(u, seconds=1.0 + 0.01 * (n % 3)) for n, u in enumerate(words(part, 100))] for part in ("train", "dev")
    }
    for utterances in second.values():
        for n, u in enumerate(utterances):
            u.text = ("YES", "STOP", "ONE")[n % 3]
    assert run(check_lengths, write_data(tmp_path / "b", second)) == []  # commands of one second


def test_lengths_fires(tmp_path: Path) -> None:
    train = words("train", 300)
    train[7].seconds *= 6
    train[8].text, train[8].seconds = LONG, 0.9
    longer, shorter = run(check_lengths, write_data(tmp_path, {"train": train, "dev": words("dev", 60)}))
    assert "1 of 300" in longer.what and "train-0007" in longer.what
    assert "1 of 300" in shorter.what and "train-0008" in shorter.what


def test_lengths_fires_for_transcripts_of_the_line_before(tmp_path: Path) -> None:
    train = words("train", 300)
    texts = [u.text for u in train]
    for u, text in zip(train, [texts[-1], *texts[:-1]], strict=True):
        u.text = text
    (found,) = run(check_lengths, write_data(tmp_path, {"train": train, "dev": words("dev", 60)}))
    assert "'train'" in found.what and "correlation" in found.what


def scored(monkeypatch: pytest.MonkeyPatch, losses: np.ndarray, tokens: np.ndarray) -> None:
    """Let a model of 40 tokens have given these losses to every part."""
    model = (None, None, type("Tokens", (), {"vocab_size": 40}))
    monkeypatch.setattr(fit, "load_averaged", lambda path: model)
    monkeypatch.setattr(fit, "score", lambda *args: ([f"u-{n}" for n in range(len(losses))], losses, tokens))


def lines(check: Callable[..., Iterator[Finding]], folder: Folder) -> list[str]:
    return [str(f) for f in check(folder.path, folder.cfg(), True, Path("averaged.pt"))]


def test_scores_fires(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = np.full(100, 1.0)
    losses[[3, 5]] = 40.0, 60.0
    scored(monkeypatch, losses, np.full(100, 8))
    found = lines(check_scores, folder)
    assert len(found) == 2 and found[0].startswith("warning") and "2 of 100" in found[0] and "(u-5" in found[0]


@pytest.mark.parametrize(
    ("loss", "tokens"),
    [
        pytest.param(12.0, 2, id="a word that is heard wrongly"),
        pytest.param(40.0, 30, id="much, but of a long text"),
        pytest.param(0.001, 8, id="nothing at all"),
    ],
)
def test_scores_is_quiet(folder: Folder, monkeypatch: pytest.MonkeyPatch, loss: float, tokens: int) -> None:
    losses, counts = np.full(100, 0.001), np.full(100, 8)
    losses[3], counts[3] = loss, tokens
    scored(monkeypatch, losses, counts)
    assert lines(check_scores, folder) == []


def test_scores_is_quiet_if_the_model_is_not_good(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = np.full(100, 20.0)
    losses[3] = 80.0
    scored(monkeypatch, losses, np.full(100, 8))
    found = lines(check_scores, folder)
    assert len(found) == 2 and all(line.startswith("note") and "averaged.pt" in line for line in found)
    scored(monkeypatch, np.zeros(0), np.zeros(0, np.int64))
    assert lines(check_scores, folder) == []


@pytest.fixture(scope="module")
def digits(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, Path]:
    """Return data with 40 recordings of digits and a checkpoint that was trained on such."""
    root = tmp_path_factory.mktemp("digits")
    audio, texts = read_audio(digits_folder(shared, DEV)), references(shared)
    names = sorted(texts, key=lambda name: -len(texts[name]))[:40]
    parts = {
        part: [Spoken(name, texts[name], audio[name]) for name in some]
        for part, some in (("train", names[:20]), ("dev", names[20:]))
    }
    return write_data(root, parts), write_digits_checkpoint(shared, root / "exp", floor=False)


def test_scores_fires_for_exchanged_transcripts_of_recorded_digits(
    one_thread: None, digits: tuple[Folder, Path], tmp_path: Path
) -> None:
    (prepared, checkpoint), folder = digits, Folder(tmp_path / "data", digits[0].overrides)
    shutil.copytree(prepared.path, folder.path)
    cfg = load_averaged(checkpoint)[1]
    assert [str(f) for f in check_scores(folder.path, cfg, True, checkpoint)] == []
    path = folder.path / "cuts" / "dev.jsonl.gz"
    cuts = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    first, second = random.Random(3).sample(range(len(cuts)), 2)
    texts = [cut["supervisions"][0]["text"] for cut in cuts]
    cuts[first]["supervisions"][0]["text"], cuts[second]["supervisions"][0]["text"] = texts[second], texts[first]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, cuts)).encode()))
    (found,) = check_scores(folder.path, cfg, True, checkpoint)
    assert "2 of 20" in found.what and cuts[first]["id"] in found.what and cuts[second]["id"] in found.what


def test_scores_names_a_damaged_checkpoint(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="bad.pt"):
        list(check_scores(folder.path, folder.cfg(), False, tmp_path / "bad.pt"))
