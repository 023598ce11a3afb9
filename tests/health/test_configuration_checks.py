"""The doctor's checks of the configuration against the data and the machine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from local.config import load_config
from local.config.presets import PRESETS
from local.data.tokenizer import train_tokenizer
from local.health import configuration
from local.health.configuration import (
    check_audio_folder,
    check_average,
    check_batch,
    check_batch_seconds,
    check_corpus,
    check_files,
    check_learning_rate,
    check_logging,
    check_methods,
    check_model_size,
    check_precision,
    check_processes,
    check_vocabulary,
    check_warm_up,
)
from tests.conftest import ROOT
from tests.health.examined import found, healthy, one

import pytest
import torch

Patch = pytest.MonkeyPatch
CONFS = [*sorted(ROOT.glob("conf/preset/*.yaml")), *sorted(ROOT.glob("egs/*/conf/*.yaml"))]
LARGE = ["model.encoder.num_layers=12", "model.encoder.d_model=512", "model.encoder.rnn_hidden_size=1024"]
LARGE += ["model.encoder.dim_feedforward=2048", "model.decoder.dim=512", "model.joiner.dim=512"]


def corpus_yaml(folder: Path, name: str, corpus_dir: Path) -> None:
    folder.mkdir(parents=True)
    text = f"name: {name}\nsource: tiny\ntrain: [train]\ndev: []\ntest: []\ncorpus_dir: {corpus_dir}\n"
    (folder / "corpus.yaml").write_text(text, encoding="utf-8")


def test_corpus_fires(tmp_path: Path) -> None:
    corpus_yaml(tmp_path / "data", "tiny", tmp_path / "a")
    one(check_corpus, healthy(tmp_path, corpus="yesno"), "error", "'tiny'", "'yesno'", "--data-dir")
    one(check_corpus, healthy(tmp_path, corpus_dir=tmp_path / "b"), "error", str(tmp_path / "a"), str(tmp_path / "b"))


def test_corpus_is_quiet(tmp_path: Path) -> None:
    assert found(check_corpus, healthy(tmp_path)) == []
    corpus_yaml(tmp_path / "data", "tiny", tmp_path / "a")
    assert found(check_corpus, healthy(tmp_path)) == []
    assert found(check_corpus, healthy(tmp_path, corpus_dir=tmp_path / "b" / ".." / "a")) == []


def test_audio_folder_fires(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.odt").touch()
    run = healthy(tmp_path, corpus="custom", corpus_dir=tmp_path / "mine")
    one(check_audio_folder, run, "error", "'train'", str(tmp_path / "mine"))
    (tmp_path / "mine" / "notes.odt").rename(tmp_path / "file")
    one(check_audio_folder, healthy(tmp_path, corpus="custom", corpus_dir=tmp_path / "file"), "error", "--corpus-dir")


def test_audio_folder_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table is found; prepared data need no folder; downloads have none."""
    (tmp_path / "mine").mkdir()
    run = healthy(tmp_path, corpus="custom", corpus_dir=tmp_path / "mine")
    (tmp_path / "mine" / "train.tsv").write_text("path\tsentence\na.wav\tONE\n", encoding="utf-8")
    assert found(check_audio_folder, run) == [] and capsys.readouterr().out == ""
    (tmp_path / "mine" / "train.tsv").unlink()
    (tmp_path / "data" / "manifests").mkdir(parents=True)
    assert found(check_audio_folder, run) == [] == found(check_audio_folder, healthy(tmp_path / "new"))


@pytest.mark.parametrize("key", ["decode.hotwords", "decode.by_method.modified_beam_search.hotwords", "lm.text"])
def test_files_fires(tmp_path: Path, key: str) -> None:
    one(check_files, healthy(tmp_path, f"{key}={tmp_path}/none.txt"), "error", key, "none.txt")


def test_files_is_quiet(tmp_path: Path) -> None:
    """MUSAN is downloaded; what `check_methods` looks at is told once."""
    (tmp_path / "words.txt").write_text("HELLO\n", encoding="utf-8")
    overrides = [f"decode.hotwords={tmp_path}/words.txt", "augment.musan=none/musan", "decode.lm=none/lm.pt"]
    assert found(check_files, healthy(tmp_path, *overrides)) == []


@pytest.mark.parametrize(
    "keys", [["decode.methods=[ctc_greedy_search]"], ["decode.methods=[greedy_search]", "decode.blank_skip=0.9"]]
)
def test_methods_need_a_ctc_head(tmp_path: Path, keys: list[str]) -> None:
    one(check_methods, healthy(tmp_path, *keys), "error", keys[-1].partition("=")[0], "loss.ctc_scale")
    assert found(check_methods, healthy(tmp_path, *keys, "loss.ctc_scale=0.1")) == []


FUSION = "decode.methods=[greedy_search,modified_beam_search_lm_shallow_fusion]"


def test_methods_fires(tmp_path: Path) -> None:
    one(check_methods, healthy(tmp_path, FUSION, "lm.train=false"), "error", "lm_shallow_fusion", f"{tmp_path}/exp/lm/lm.pt")
    one(check_methods, healthy(tmp_path, FUSION, f"decode.lm={tmp_path}/other.pt"), "error", "other.pt")


def test_methods_is_quiet(tmp_path: Path) -> None:
    """Stage lm will make the file, or it is there."""
    assert found(check_methods, healthy(tmp_path)) == []
    assert found(check_methods, healthy(tmp_path, "decode.methods=[fast_beam_search_LG]")) == []
    (tmp_path / "exp" / "lm").mkdir(parents=True)
    (tmp_path / "exp" / "lm" / "lm.pt").touch()
    assert found(check_methods, healthy(tmp_path, FUSION, "lm.train=false")) == []


def test_precision_fires(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one(check_precision, healthy(tmp_path, "train.precision=fp16"), "error", "train.precision")


def test_precision_is_quiet(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found(check_precision, healthy(tmp_path, "train.precision=bf16")) == []


def test_logging_fires(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import fails then
    one(check_logging, healthy(tmp_path, "train.logger=wandb"), "error", "train.logger", "wandb")


@pytest.mark.parametrize("name", ["none", "tensorboard", "wandb"])
def test_logging_is_quiet(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    assert found(check_logging, healthy(tmp_path, f"train.logger={name}")) == []


def test_processes_fires(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    one(check_processes, healthy(tmp_path, nproc=4), "error", "--nproc 4", "2 GPUs")


def test_processes_is_quiet(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for cuda, processes in ((True, 2), (False, 4)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert found(check_processes, healthy(tmp_path, nproc=processes)) == []


def test_warm_up_fires(tmp_path: Path) -> None:
    one(check_warm_up, healthy(tmp_path, "train.warm_step=1000"), "error", "train.warm_step", "1064", "train.warm_share")
    limited = healthy(tmp_path, "train.warm_step=1000", "train.max_steps=500")
    one(check_warm_up, limited, "warning", "train.max_steps 500")


def test_warm_up_fires_for_the_true_number_of_batches(tmp_path: Path, monkeypatch: Patch) -> None:
    """If the estimate is near the limit, the training cuts are read, as the trainer does."""
    run = healthy(tmp_path, "train.warm_step=360")
    (run.data_dir / "lang_bpe_80").mkdir(parents=True)
    (run.data_dir / "lang_bpe_80" / "bpe.model").write_bytes(train_tokenizer(["ONE TWO"], 20).model)
    corpus = "name: tiny\nsource: tiny\ntrain: [train]\ndev: []\ntest: []\n"
    (run.data_dir / "corpus.yaml").write_text(corpus, encoding="utf-8")
    for batches, level in ((150, ["error"]), (182, [])):
        monkeypatch.setattr(configuration.AsrDataModule, "batches_per_epoch", lambda self, n=batches: n)
        assert [finding.level for finding in found(check_warm_up, run)] == level


@pytest.mark.parametrize("overrides", [[], ["train.warm_share=0.3", "train.warm_step=5000"], ["train.warm_step=300"]])
def test_warm_up_is_quiet(tmp_path: Path, overrides: list[str]) -> None:
    assert found(check_warm_up, healthy(tmp_path, *overrides)) == []
    assert found(check_warm_up, healthy(tmp_path, "train.warm_step=5000", hours=0.0)) == []


def test_batch_fires(tmp_path: Path) -> None:
    one(check_batch, healthy(tmp_path, "train.max_duration=6000"), "warning", "6000 s", "1 steps", "train.max_duration")
    one(check_batch, healthy(tmp_path, "train.batch_seconds=3000"), "warning", "2 steps", "train.batch_seconds")
    one(check_batch, healthy(tmp_path, "train.max_duration=2000", nproc=4), "warning", "8000 s")


def test_batch_is_quiet(tmp_path: Path) -> None:
    for run in (healthy(tmp_path), healthy(tmp_path, "train.max_duration=auto"), healthy(tmp_path, hours=0.0)):
        assert found(check_batch, run) == []


@pytest.mark.parametrize(("overrides", "nproc"), [(["train.max_duration=4"], 1), (["train.max_duration=4000"], 8)])
def test_batch_seconds_fires(tmp_path: Path, overrides: list[str], nproc: int) -> None:
    one(check_batch_seconds, healthy(tmp_path, *overrides, nproc=nproc), "warning", "train.batch_seconds", "20 to 6000")


def test_batch_seconds_is_quiet(tmp_path: Path) -> None:
    """Eight processes share train.batch_seconds, and each takes train.max_duration."""
    assert found(check_batch_seconds, healthy(tmp_path, "train.max_duration=750", nproc=8)) == []
    assert found(check_batch_seconds, healthy(tmp_path, "train.batch_seconds=600", "train.max_duration=9999", nproc=8)) == []
    assert found(check_batch_seconds, healthy(tmp_path, "train.max_duration=auto")) == []


@pytest.mark.parametrize(("name", "rate"), [("eve", 0.02), ("eve", 0.00005), ("sgd", 0.1), ("adam", 0.05), ("scaled_adam", 1)])
def test_learning_rate_fires(tmp_path: Path, name: str, rate: float) -> None:
    run = healthy(tmp_path, f"optim.name={name}", f"optim.lr={rate}")
    one(check_learning_rate, run, "warning", name, f"optim.lr={rate:g}")


@pytest.mark.parametrize("name", configuration.RATES)
def test_learning_rate_is_quiet(tmp_path: Path, name: str) -> None:
    known = configuration.RATES[name]
    for rate in (known.least, known.most, 0.5 * known.least, 2 * known.most):
        assert found(check_learning_rate, healthy(tmp_path, f"optim.name={name}", f"optim.lr={rate}")) == []


def test_average_fires(tmp_path: Path) -> None:
    one(check_average, healthy(tmp_path, "average.num=9"), "warning", "average.num", "7 epochs", "average.num=2")
    one(check_average, healthy(tmp_path, "average.last=8"), "error", "average.last", "train.num_epochs 7")
    one(check_average, healthy(tmp_path, "average.last=2"), "warning", "average.num", "2 epochs")


@pytest.mark.parametrize("overrides", [[], ["average.last=7"], ["average.num=7"], ["average.num=99", "average.unit=step"]])
def test_average_is_quiet(tmp_path: Path, overrides: list[str]) -> None:
    assert found(check_average, healthy(tmp_path, *overrides)) == []


def transcripts(folder: Path, lines: list[str], tokens: int) -> None:
    folder.mkdir(parents=True)
    (folder / "transcript.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


LETTERS = ["ABCDEFGHIJ KLMNOPQRST UVWXYZ"]
MANY_WORDS = LETTERS + [f"{a}{b}{c}" for a in "ABCDEF" for b in "GHIJKL" for c in "MNOPQR"]


@pytest.mark.parametrize(("lines", "fitting"), [(LETTERS, 30), (MANY_WORDS, 65)])
def test_vocabulary_fires(tmp_path: Path, lines: list[str], fitting: int) -> None:
    """500 tokens for an hour of speech; if there are few words, as many tokens as characters fit."""
    transcripts(tmp_path / "data" / "lang_bpe_500", lines, 500)
    one(check_vocabulary, healthy(tmp_path, "lang.vocab_size=500", hours=1.0), "warning", "500", f"lang.vocab_size={fitting}")


def test_vocabulary_is_quiet(tmp_path: Path) -> None:
    transcripts(tmp_path / "data" / "lang_bpe_500", MANY_WORDS, 500)
    assert found(check_vocabulary, healthy(tmp_path, "lang.vocab_size=500", hours=100.0)) == []
    transcripts(tmp_path / "data" / "lang_bpe_80", MANY_WORDS, 80)
    assert found(check_vocabulary, healthy(tmp_path)) == []
    assert found(check_vocabulary, healthy(tmp_path / "none")) == []


def test_model_size_fires(tmp_path: Path) -> None:
    one(check_model_size, healthy(tmp_path, *LARGE), "warning", "83", "1.69 h", "preset/hours.yaml")
    one(check_model_size, healthy(tmp_path, *LARGE, "model.encoder.num_layers=20", hours=100.0), "warning", "hundred_hours")


def test_model_size_is_quiet(tmp_path: Path) -> None:
    """Published trainings: 84.7 M parameters for 100 and 960 h; a larger one is nobody's mistake with thousands of hours."""
    for hours in (100.0, 960.0):
        assert found(check_model_size, healthy(tmp_path, *LARGE, "lang.vocab_size=500", hours=hours)) == []
    assert found(check_model_size, healthy(tmp_path, *LARGE, "model.encoder.num_layers=20", hours=10_000.0)) == []
    assert found(check_model_size, healthy(tmp_path)) == [] == found(check_model_size, healthy(tmp_path, *LARGE, hours=0.0))


@pytest.mark.parametrize("conf", CONFS, ids=lambda path: path.stem)
def test_our_own_configurations_are_healthy(tmp_path: Path, conf: Path) -> None:
    """With the hours that they are for."""
    five = dict.fromkeys(("mini_librispeech", "baseline", "short"), 5.4)
    hours = {"librispeech": 960.0, **five, "digits": 1.0, "tiny": 1.69, "stress": 1.69}
    hours |= {preset.name: min(preset.most_hours * 0.9, 1000.0) for preset in PRESETS}
    run = healthy(tmp_path, cfg=load_config(conf), hours=hours[conf.stem])
    epochs = 300 if conf.stem == "minutes" else 0  # local/choose_conf.py raises them
    run.config.train.num_epochs = max(epochs, run.config.train.num_epochs)
    assert [finding for check in configuration.CHECKS for finding in found(check, run) if check not in EXPECTED] == []


EXPECTED = {check_methods}  # egs/tiny's language model is not trained yet
