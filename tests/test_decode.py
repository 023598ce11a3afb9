"""Decoding from one file and prepared data: what is written, short utterances, little memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lhotse")

from lhotse import CutSet, Recording, SupervisionSegment

from local import decode
from local.checkpoint import provenance, save_file
from local.config import load_config
from local.errors import UserError
from local.tokens import train_tokenizer
from model.build import build_model
from model.search import SEARCHES

SMALL = {"num_layers": 1, "d_model": 16, "rnn_hidden_size": 16, "dim_feedforward": 16}
DURATIONS = {"a-1": 0.8, "b-2": 0.05, "c-3": 1.2, "d-4": 0.5}  # 0.05 s: less than the front end sees at once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ with one part of four utterances, and averaged.pt of an untrained model."""
    soundfile = pytest.importorskip("soundfile")
    root = tmp_path_factory.mktemp("decode")
    generator = np.random.default_rng(0)
    cuts = []
    for name, seconds in DURATIONS.items():
        path = root / f"{name}.flac"
        soundfile.write(path, 0.1 * generator.standard_normal(int(16000 * seconds)), 16000)
        cut = Recording.from_file(path, recording_id=name).to_cut()
        cut.id = name
        cut.supervisions = [SupervisionSegment(name, name, 0.0, cut.duration, text="ONE TWO")]
        cuts.append(cut)
    (root / "data" / "cuts").mkdir(parents=True)
    CutSet.from_cuts(cuts).to_file(root / "data" / "cuts" / "test.jsonl.gz")
    parts = "name: toy\nsource: custom\ntrain: [train]\ndev: [test]\ntest: [test]\n"
    (root / "data" / "corpus.yaml").write_text(parts, encoding="utf-8")
    tokenizer = train_tokenizer(["ONE TWO THREE", "TWO ONE", "THREE"], 20)
    overrides = [f"model.encoder.{key}={value}" for key, value in SMALL.items()]
    cfg = load_config(None, [*overrides, "model.decoder.dim=16", "model.joiner.dim=16", "data.num_workers=0"])
    torch.manual_seed(0)
    model = build_model(cfg, tokenizer.vocab_size)
    with torch.no_grad():
        model.joiner.output_linear.bias[:3] = -3.0  # little blank and unknown, so that something is recognised
    save_file({"model": model.state_dict(), **provenance(cfg, tokenizer)}, root / "averaged.pt")
    return root


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, exp_dir: Path, *arguments: str) -> None:
    paths = ["--checkpoint", folder / "averaged.pt", "--data-dir", folder / "data", "--exp-dir", exp_dir]
    monkeypatch.setattr(sys, "argv", ["decode.py", *map(str, paths), *arguments])
    decode.main()


def test_files(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    run(monkeypatch, folder, tmp_path)
    for method in SEARCHES:
        lines = (tmp_path / "decode" / method / "test.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert [r["id"] for r in records] == sorted(DURATIONS)
        assert all(set(r) == {"id", "ref", "hyp", "tokens", "times", "score"} for r in records)
        assert all(r["ref"] == "ONE TWO" and len(r["tokens"]) == len(r["times"]) for r in records)
        assert records[1]["tokens"] == [] and records[1]["hyp"] == ""
        assert records[0]["tokens"], "a model without blanks says something"
        stats = json.loads((tmp_path / "decode" / method / "test.stats.json").read_text(encoding="utf-8"))
        assert stats["seconds"] == pytest.approx(stats["encoder_seconds"] + stats["search_seconds"])
        assert stats["audio_seconds"] == pytest.approx(sum(DURATIONS.values()), abs=0.1)
        assert (stats["utterances"], stats["threads"]) == (4, torch.get_num_threads())
    assert not list(tmp_path.rglob(".tmp*"))


def test_overrides_and_sets(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    run(monkeypatch, folder, tmp_path, "--sets", "test", "decode.methods=[modified_beam_search]", "decode.beam=2")
    assert [p.name for p in (tmp_path / "decode").iterdir()] == ["modified_beam_search"]
    stats = json.loads((tmp_path / "decode" / "modified_beam_search" / "test.stats.json").read_text(encoding="utf-8"))
    assert stats["options"]["beam"] == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--sets", "dev"], "dev.jsonl.gz"), (["decode.bem=3"], "bem"), (["decode.methods=[viterbi]"], "viterbi")],
)
def test_errors_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    arguments: list[str],
    named: str,
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, folder, tmp_path, *arguments)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and named in error and "\n" not in error


def make_decoder(monkeypatch: pytest.MonkeyPatch, folder: Path, at_most: int, message: str) -> decode.Decoder:
    """A decoder whose encoder raises when it gets more than `at_most` utterances."""
    model, cfg, _ = decode.load_averaged(folder / "averaged.pt")
    decoder = decode.Decoder(model, cfg.decode, torch.device("cpu"))
    encode = model.encoder.forward

    def forward(x: torch.Tensor, x_lens: torch.Tensor) -> object:
        if len(x) > at_most:
            raise RuntimeError(message)
        return encode(x, x_lens)

    monkeypatch.setattr(model.encoder, "forward", forward)
    return decoder


def test_little_memory_halves_the_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    lens = torch.tensor([90, 12, 60, 40, 33])
    x, ids = torch.randn(5, 90, 80), list("vwxyz")
    enough = make_decoder(monkeypatch, folder, 5, "").run_fitting(x, lens, ids)
    little = make_decoder(monkeypatch, folder, 2, "CUDA out of memory. Tried to allocate 2 GiB")
    for method, hypotheses in little.run_fitting(x, lens, ids).items():
        assert [h.tokens for h in hypotheses] == [h.tokens for h in enough[method]]
    assert "halved" in capsys.readouterr().err
    none = make_decoder(monkeypatch, folder, 0, "DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(UserError, match="utterance v: not enough memory"):
        none.run_fitting(x, lens, ids)
    with pytest.raises(RuntimeError, match="another fault"):
        make_decoder(monkeypatch, folder, 0, "another fault").run_fitting(x, lens, ids)


def test_tail_is_the_quiet_of_each_utterance() -> None:
    x, lens = torch.randn(3, 20, 4), torch.tensor([20, 7, 1])
    longer, new_lens = decode.with_tail(x, lens, 5)
    assert longer.shape == (3, 25, 4) and new_lens.tolist() == [25, 12, 6]
    for before, after, length in zip(x, longer, lens.tolist(), strict=True):
        assert torch.equal(after[:length], before[:length])
        assert torch.equal(after[length:], before[:length].amin(0).expand(25 - length, -1))
    assert decode.with_tail(x, lens, 0)[0] is x
