"""The feature floor: what it is, from which utterances, in checkpoints, in training, and for a checkpoint that has none."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from local.artifacts.averaging import make_average
from local.artifacts.checkpoint import load_averaged, load_file, save_file
from local.common.errors import UserError
from local.config import load_config
from local.data import datamodule
from local.data.datamodule import AsrDataModule
from local.data.feature_floor import KEY, floor_of
from local.data.tokenizer import Tokenizer
from local.decoding.feature_floor import ensure_floor
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from local.training.trainer import Trainer
from tests.speech_tree import make_part
from tests.test_train import RandomData, trainer
from tests.toy_experiment import make_experiment

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = ["data.num_workers=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a prepared corpus with the training part tr of 12 utterances."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "corpus.yaml").write_text("name: t\nsource: librispeech\ntrain: [tr]\ndev: [tr]\ntest: [tr]\n")
    make_part(root / "audio", "tr", utterances=6)
    data = root / "data"
    args = ["--corpus-yaml", str(root / "corpus.yaml"), "--corpus-dir", str(root / "audio"), "--data-dir", str(data)]
    prepare_manifests(args)
    prepare_cuts(["--data-dir", str(data)])
    prepare_lang(["--data-dir", str(data)])
    return data


def module(data: Path, *overrides: str) -> AsrDataModule:
    cfg = load_config(None, [*PLAIN, *overrides])
    return AsrDataModule(cfg, data, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"))


def utterances(dm: AsrDataModule) -> dict[str, torch.Tensor]:
    """Return the features of the training part without augmentation; here it is the dev part too."""
    rows = ((b.ids[i], b.inputs[i, : b.input_lens[i]]) for b in dm.test_dataloader("tr") for i in range(len(b)))
    return dict(rows)


def test_is_a_low_quantile_of_the_minima() -> None:
    found = floor_of(torch.full((3 + n, 2), float(n)) + torch.tensor([0.0, 10.0]) for n in range(101))
    assert torch.equal(found, torch.tensor([5.0, 15.0]))
    assert floor_of([torch.zeros(0, 2)]) is None and floor_of([]) is None


def test_of_training_data_without_copies_padding_and_augmentation(data: Path) -> None:
    plain = utterances(module(data))
    assert len(plain) == 12
    expected = np.quantile(np.stack([x.numpy().min(0) for x in plain.values()]), 0.05, axis=0)
    for overrides in ([], ["data.num_workers=2"], ["augment.speed_perturb=false"], ["augment.silence_prob=1"]):
        state = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        found = module(data, *overrides).feature_floor()
        assert found is not None and found.dtype == torch.float32 and np.allclose(found, expected, atol=1e-5)
        assert torch.equal(state[0], torch.get_rng_state())
        assert state[1:] == (random.getstate(), str(np.random.get_state()))


def test_of_the_first_utterances_of_the_first_epoch(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datamodule, "UTTERANCES", 3)
    dm = module(data)
    order = [i for i in map(dm._train_cuts().id_of, dm._train_cuts().order(1).tolist()) if "_sp" not in i]
    assert torch.allclose(dm.feature_floor(), floor_of(utterances(dm)[i] for i in order[:3]), atol=1e-5)  # type: ignore[arg-type]


def test_what_cannot_be_read_is_left_out(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = utterances(module(data))
    gone = next(iter(plain))
    read = datamodule.AsrDataset._load

    def load(self: Any, cut: Any) -> torch.Tensor:
        if cut.id in lost:
            raise ValueError("gone")
        return read(self, cut)

    monkeypatch.setattr(datamodule.AsrDataset, "_load", load)
    lost = {gone}
    expected = floor_of(x for name, x in plain.items() if name != gone)
    assert torch.allclose(module(data).feature_floor(), expected, atol=1e-5)  # type: ignore[arg-type]
    lost = set(plain)
    assert module(data).feature_floor() is None
    assert capsys.readouterr().err == ""


# ---- checkpoints and training ----

AVERAGE = load_config(None, ["average.mode=plain", "average.unit=step", "average.num=1"]).average
WRONG = [
    torch.zeros(79),
    torch.zeros(80, dtype=torch.int64),
    torch.full((80,), torch.nan),
    torch.full((80,), 1e300, dtype=torch.float64),
    torch.full((80,), 1e30),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make EXP/checkpoints of a training on random data, whose floor is -1."""
    exp = tmp_path_factory.mktemp("trained")
    trainer(exp, "train.max_steps=1").run()
    return exp


def changed(trained: Path, tmp_path: Path, value: object) -> Path:
    """Copy the checkpoint to EXP, with another floor; None: without one."""
    content = load_file(trained / "checkpoints" / "step-1.pt") | {KEY: value}
    save_file({key: v for key, v in content.items() if v is not None}, tmp_path / "checkpoints" / "step-1.pt")
    return tmp_path


def test_stays_from_training_to_decoding(trained: Path, tmp_path: Path) -> None:
    content = make_average(trained / "checkpoints", AVERAGE)
    save_file(content, tmp_path / "averaged.pt")
    for path in (tmp_path / "averaged.pt", trained / "checkpoints" / "step-1.pt"):
        assert torch.equal(load_averaged(path)[0].encoder.feature_floor, torch.full((80,), -1.0))  # type: ignore[arg-type]
        assert load_averaged(path, ["decode.feature_floor=false"])[0].encoder.feature_floor is None


def test_older_checkpoints_have_none(trained: Path, tmp_path: Path) -> None:
    exp = changed(trained, tmp_path, None)
    assert load_averaged(exp / "checkpoints" / "step-1.pt")[0].encoder.feature_floor is None
    assert KEY not in make_average(exp / "checkpoints", AVERAGE)
    trainer(exp, "train.max_steps=2").run()
    assert torch.equal(load_file(exp / "checkpoints" / "step-2.pt")[KEY], torch.full((80,), -1.0))


@pytest.mark.parametrize("value", [*WRONG, [-1.0] * 80, "-1"])
def test_a_damaged_one_is_named(trained: Path, tmp_path: Path, value: object) -> None:
    exp = changed(trained, tmp_path, value)
    readers = (
        lambda: load_averaged(exp / "checkpoints" / "step-1.pt"),
        lambda: make_average(exp / "checkpoints", AVERAGE),
        lambda: trainer(exp, "train.max_steps=2"),
    )
    for read in readers:
        with pytest.raises(UserError, match=rf"{exp}.*'{KEY}'"):
            read()


class Loud(RandomData):
    """Other data, whose floor is above all features: it changes what it is applied to."""

    def feature_floor(self) -> torch.Tensor | None:  # type: ignore[override]
        return torch.full((80,), 9.0)


class Without(RandomData):
    """Data of which no floor can be computed."""

    def feature_floor(self) -> torch.Tensor | None:  # type: ignore[override]
        return None


def curves(exp: Path, kind: type[RandomData], *overrides: str) -> tuple[str, str, str]:
    """Train; return valid.csv, then train.csv without its columns of time, and the weights' sum, which no floor changes."""
    run: Trainer = trainer(exp, "train.max_steps=2", "train.save_every=0", "train.valid_every=1", *overrides)
    run.data = run.validator.data = kind()  # type: ignore[assignment]
    run.run()
    rows = [line.split(",") for line in (exp / "train.csv").read_text().splitlines()]
    timed = [i for i, name in enumerate(rows[0]) if "second" in name or "memory" in name or "share" in name or "wait" in name]
    losses = str([[value for i, value in enumerate(row) if i not in timed] for row in rows])
    total = sum(float(v.double().sum()) for v in load_file(exp / "checkpoints" / "step-2.pt")["model"].values())
    return (exp / "valid.csv").read_text(), losses, str(total)


def test_training_is_the_same_with_it_and_validation_uses_it(tmp_path: Path) -> None:
    valid, *without = curves(tmp_path / "without", Without)
    valid_loud, *loud = curves(tmp_path / "loud", Loud)
    valid_off, *off = curves(tmp_path / "off", Loud, "decode.feature_floor=false")
    assert without == loud == off
    assert valid == valid_off != valid_loud
    assert KEY in load_file(tmp_path / "off" / "checkpoints" / "step-2.pt"), "the key switches off its use alone"


def test_a_resumed_training_keeps_it(trained: Path, tmp_path: Path) -> None:
    exp = changed(trained, tmp_path, torch.full((80,), -1.0))
    run = trainer(exp, "train.max_steps=2")
    run.data = Loud()  # type: ignore[assignment]
    run.run()
    assert float(load_file(exp / "checkpoints" / "step-2.pt")[KEY].max()) == -1.0


# ---- on demand ----


def ensured(data_dir: Path | None, folder: Path, *overrides: str) -> torch.Tensor | None:
    path = folder / "averaged.pt"
    model, cfg, tokenizer = load_averaged(path, overrides)
    model.encoder.feature_floor = None
    ensure_floor(model, cfg, tokenizer, path, data_dir)
    return model.encoder.feature_floor


def test_a_checkpoint_without_one_gets_it_from_the_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_experiment(tmp_path)
    capsys.readouterr()
    found = ensured(data, tmp_path)
    assert torch.equal(found, module(data).feature_floor())  # type: ignore[arg-type]
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "averaged.pt") in line and str(data) in line
    monkeypatch.setattr(AsrDataModule, "feature_floor", lambda self: None)
    for place in (None, tmp_path / "absent", tmp_path / "data", data):
        assert ensured(place, tmp_path) is None
        [line] = capsys.readouterr().err.splitlines()
        assert "--data-dir" in line and "decode.feature_floor" in line
    assert ensured(None, tmp_path, "decode.feature_floor=false") is None
    assert capsys.readouterr().err == ""
