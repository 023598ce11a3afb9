"""Prepared data of four short utterances and an experiment with an untrained model, for tests that decode."""

from __future__ import annotations

from pathlib import Path

from local.artifacts.arpa import write_bigram
from local.artifacts.checkpoint import provenance, save_file
from local.artifacts.language_model import lm_sizes, save_lm
from local.config import load_config
from local.config.schema import Config
from local.data.feature_floor import KEY
from local.data.token_counts import counts_file, write_token_counts
from local.data.tokenizer import Tokenizer, train_tokenizer
from local.prepare_lang import write_lang
from model.build import build_model
from model.lm import LstmLm

import numpy as np
import torch
from lhotse import CutSet, Recording, SupervisionSegment, load_manifest

SMALL = [f"model.encoder.{key}=16" for key in ("d_model", "rnn_hidden_size", "dim_feedforward")]
SMALL += ["model.encoder.num_layers=1", "model.decoder.dim=16", "model.joiner.dim=16", "data.num_workers=0"]
SMALL += ["lm.dim=8", "lm.hidden=8", "lm.num_layers=1"]
HEAD = "loss.ctc_scale=0.1"  # gives a model a CTC head
DURATIONS = {"a-1": 0.8, "b-2": 0.05, "c-3": 1.2, "d-4": 0.5}  # 0.05 s: less than the front end sees at once
TEXTS = ["ONE TWO THREE", "TWO ONE", "THREE"]


def toy_tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 20)


def write_toy_lang(data: Path) -> None:
    """Write the toy tokens to data/lang_bpe_500 with the counts of all cuts that are there."""
    lang, tokenizer = data / "lang_bpe_500", toy_tokenizer()
    write_lang(tokenizer, TEXTS, lang)
    for manifest in (data / "cuts").iterdir():
        counts = {cut.id: len(tokenizer.encode([cut.supervisions[0].text])[0]) for cut in CutSet.from_file(manifest)}
        write_token_counts(counts, counts_file(lang, manifest.name.removesuffix(".jsonl.gz")))


def toy_weights(cfg: Config, tokenizer: Tokenizer, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = build_model(cfg, tokenizer.vocab_size)
    with torch.no_grad():
        model.joiner.output_linear.bias[:3] = -3.0  # few blanks, so that some tokens are recognised
    return model.state_dict()


def save_toy_lm(cfg: Config, tokenizer: Tokenizer, folder: Path) -> None:
    """Write lm.pt, with weights large enough to change results, and bigram.arpa."""
    torch.manual_seed(5)
    lm = LstmLm(**lm_sizes(cfg, tokenizer.vocab_size))
    with torch.no_grad():
        for p in lm.parameters():
            p.normal_(std=0.8)
    save_lm(lm, cfg, tokenizer, folder / "lm.pt")
    (folder / "transcript.txt").write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    write_bigram(folder / "transcript.txt", tokenizer, folder / "bigram.arpa")


def make_experiment(root: Path, *overrides: str) -> None:
    """Write root/data with one part, `test`, which is the dev part too; root/averaged.pt; root/lm. overrides: of `SMALL`."""
    import soundfile

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
    tokenizer, cfg = toy_tokenizer(), load_config(None, [*SMALL, *overrides])
    (root / "lm").mkdir()
    save_toy_lm(cfg, tokenizer, root / "lm")
    content = {"model": toy_weights(cfg, tokenizer, 0), KEY: torch.full((80,), -12.0)}
    save_file({**content, **provenance(cfg, tokenizer)}, root / "averaged.pt")


def make_trainable(root: Path) -> tuple[Path, CutSet]:
    """Do as `make_experiment`; return root/data, and its cuts without those that are too short for training."""
    make_experiment(root)
    cuts = load_manifest(root / "data" / "cuts" / "test.jsonl.gz").filter(lambda cut: cut.duration > 0.1)
    return root / "data", cuts.to_eager()


def levenshtein(a: list[str] | str, b: list[str] | str) -> int:
    """Return the least number of substitutions, deletions and insertions from a to b, by dynamic programming."""
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
        above = row
    return above[-1]
