"""Batches: shapes, determinism however many processes load them, skipping, noise, and files that vanish."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet

from local import training_cuts
from local.compute_features import main as compute_features
from local.config import load_config
from local.datamodule import AsrDataModule, Batch
from local.errors import UserError
from local.lengths import SPEEDS
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from local.prepare_noise import main as prepare_noise
from local.sampling import SHUFFLE_WINDOW, ShuffledBatches, duration_bins, seeded
from local.schema import Config
from local.tokens import Tokenizer
from local.training_cuts import ShuffledCuts
from model.encoder.subsampling import subsampled
from tests.speech_tree import audio_of, make_part, set_text, write_noise

SMALL = ["train.max_duration=12", "data.num_buckets=3", "data.num_workers=0"]
STORED = [*SMALL, "features.type=precomputed"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus, parts tr (24 utterances) and te (6), with stored features and noise."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "corpus.yaml").write_text("name: t\nsource: librispeech\ntrain: [tr]\ndev: [te]\ntest: [te]\n")
    make_part(root / "audio", "tr", utterances=12)
    make_part(root / "audio", "te", speakers=1)
    for n in range(3):
        write_noise(root / "musan" / f"{n}.wav", 12.0, seed=n)
    data = root / "data"
    args = ["--corpus-yaml", str(root / "corpus.yaml"), "--corpus-dir", str(root / "audio"), "--data-dir", str(data)]
    prepare_manifests(args)
    for program in (prepare_lang, prepare_cuts, prepare_noise, compute_features):
        program(["--data-dir", str(data), f"augment.musan={root / 'musan'}"])
    return data


def module(data: Path, *overrides: str) -> AsrDataModule:
    return AsrDataModule(load_config(None, overrides), data, Tokenizer.from_file(data / "lang" / "bpe.model"))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x["ids"] == y["ids"] and torch.equal(x["inputs"], y["inputs"]) and torch.equal(x["tokens"], y["tokens"])
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("kind", [SMALL, STORED])
def test_a_batch_is_what_it_says(data: Path, kind: list[str]) -> None:
    dm = module(data, *kind, "augment.spec_augment=false")
    batches = list(dm.train_dataloader(1))
    ids = [i for batch in batches for i in batch["ids"]]
    assert len(ids) == len(set(ids)) == dm.train_dataloader(1).num_cuts == 24 * 3
    texts = {c.id: c.supervisions[0].text for c in CutSet.from_file(data / "cuts" / "tr.jsonl.gz")}
    for batch in batches:
        n, t, f = batch["inputs"].shape
        lens = batch["input_lens"]
        assert f == 80 and t == lens.max() and batch["num_frames"] == lens.sum() and batch["skipped"] == []
        assert n * t < (12 + 3.4) * 100 and len(batch["ids"]) == len(batch["texts"]) == n
        for i in range(n):
            assert torch.all(batch["inputs"][i, lens[i] :] == torch.tensor(math.log(1e-10)))
            assert batch["texts"][i] == texts[batch["ids"][i].partition("_sp")[0]]
            tokens = batch["tokens"][i]
            assert dm.tokenizer.decode(tokens[: batch["token_lens"][i]].tolist()) == batch["texts"][i]
            assert torch.all(tokens[batch["token_lens"][i] :] == 0)
            assert subsampled(int(lens[i])) >= batch["token_lens"][i]


def test_stored_and_computed_features_agree(data: Path) -> None:
    plain = ["augment.spec_augment=false"]
    rows: list[dict[str, torch.Tensor]] = []
    for kind in (SMALL, STORED):
        batches = list(module(data, *kind, *plain).train_dataloader(1))
        rows.append({i: x[:n] for b in batches for i, x, n in zip(b["ids"], b["inputs"], b["input_lens"], strict=True)})
    assert rows[0].keys() == rows[1].keys()
    assert all((rows[0][i] - rows[1][i]).abs().max() < 0.01 for i in rows[0])


@pytest.mark.parametrize("kind", [SMALL, [*STORED, "augment.musan=x"]])
def test_batches_depend_on_seed_and_epoch_alone(data: Path, kind: list[str]) -> None:
    alone = list(module(data, *kind).train_dataloader(3))
    assert same(alone, list(module(data, *kind).train_dataloader(3)))
    assert same(alone, list(module(data, *kind, "data.num_workers=2").train_dataloader(3)))
    dm = module(data, *kind)
    first = list(dm.train_dataloader(1))
    assert not same(first, alone)
    assert same(alone, list(dm.train_dataloader(3)))  # whatever epoch came before
    assert not same(alone, list(module(data, *kind, "train.seed=7").train_dataloader(3)))


def test_skipped_batches_are_those_at_the_start(data: Path) -> None:
    dm = module(data, *STORED)
    assert same(list(dm.train_dataloader(2))[4:], list(dm.train_dataloader(2, skip_batches=4)))


def test_left_out_batches_cost_no_cuts(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way back to a position is made from lengths, which agree with the cuts' own to the last digit."""
    for kind in (SMALL, STORED):
        parsed: list[bytes] = []
        plain = training_cuts.parse_item

        def counted(line: bytes, *args: Any, plain: Any = plain, parsed: list[bytes] = parsed) -> Any:
            parsed.append(line)
            return plain(line, *args)

        monkeypatch.setattr(training_cuts, "parse_item", counted)
        dm = module(data, *kind)
        batches = len(list(dm.train_dataloader(1)))
        assert batches > 5 and len(parsed) == 24 * 3
        parsed.clear()
        (last,) = dm.train_dataloader(1, skip_batches=batches - 1)
        assert len(parsed) == len(last["ids"])
        cuts = ShuffledCuts([data / ("features" if kind is STORED else "cuts") / "tr.jsonl.gz"], 1, True, kind is STORED)
        assert all(entry.duration == cuts.cut(entry).duration for entry in cuts.entries())
        monkeypatch.undo()


def test_spec_augment_masks_and_leaves_global_generators_alone(data: Path) -> None:
    plain = {b["ids"][0]: b for b in module(data, *STORED, "augment.spec_augment=false").train_dataloader(1)}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches = list(module(data, *STORED).train_dataloader(1))
    assert torch.equal(before, torch.get_rng_state())
    changed = [not torch.equal(b["inputs"], plain[b["ids"][0]]["inputs"]) for b in batches]
    assert all(changed)
    assert all(b["inputs"].shape == plain[b["ids"][0]]["inputs"].shape for b in batches)


@pytest.mark.parametrize("kind", [SMALL, STORED])
def test_noise_is_mixed_into_its_share(data: Path, kind: list[str]) -> None:
    options = [*kind, "augment.spec_augment=false"]
    plain = {b["ids"][0]: b for b in module(data, *options).train_dataloader(1)}
    mixed = module(data, *options, "augment.musan=x", "augment.musan_prob=0.5")
    differs = [
        not torch.equal(x[:n], y[:n])
        for b in mixed.train_dataloader(1)
        for x, y, n in zip(b["inputs"], plain[b["ids"][0]]["inputs"], b["input_lens"], strict=True)
    ]
    assert 0.3 < sum(differs) / len(differs) < 0.7


def test_decoding_and_validation_are_not_augmented(data: Path) -> None:
    dm = module(data, *STORED)
    test, valid = list(dm.test_dataloader("te")), list(dm.valid_dataloader())
    assert sorted(i for b in test for i in b["ids"]) == sorted(i for b in valid for i in b["ids"])
    assert len(test[0]["ids"]) == 6 and same(test, list(dm.test_dataloader("te")))
    assert test[0]["input_lens"].tolist() == sorted(test[0]["input_lens"].tolist(), reverse=True)


def test_without_speed_perturbation_stored_copies_stay_out(data: Path) -> None:
    for kind in (SMALL, STORED):
        ids = [i for b in module(data, *kind, "augment.speed_perturb=false").train_dataloader(1) for i in b["ids"]]
        assert len(ids) == 24 and not any("_sp" in i for i in ids)


def test_a_file_that_vanished_is_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "corpus.yaml").write_text("name: t\nsource: librispeech\ntrain: [tr]\ndev: [tr]\ntest: [tr]\n")
    make_part(tmp_path, "tr", speakers=1)
    set_text(tmp_path, "tr", "100-1-0001", "E" * 21)  # fits at 0.9 of the speed, perhaps not at 1.1
    write_noise(audio_of(tmp_path, "tr", "100-1-0001"), 0.95)
    data = tmp_path / "data"
    args = ["--corpus-yaml", str(tmp_path / "corpus.yaml"), "--corpus-dir", str(tmp_path), "--data-dir", str(data)]
    prepare_manifests(args)
    for program in (prepare_lang, prepare_cuts):
        program(["--data-dir", str(data)])
    audio_of(tmp_path, "tr", "100-1-0000").unlink()
    capsys.readouterr()
    loader = module(data, *SMALL).train_dataloader(1)
    ids = [i for b in loader for i in b["ids"]]
    assert loader.skipped == 3 and not any(i.startswith("100-1-0000") for i in ids)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(lines) == 3 and all("100-1-0000" in line and "100-1-0000.flac" in line for line in lines)
    assert len(ids) >= 13


def test_copies_with_more_tokens_than_frames_are_left_out(data: Path) -> None:
    for kind in (SMALL, STORED):
        for batch in module(data, *kind).train_dataloader(1):
            assert all(
                subsampled(int(t)) >= u for t, u in zip(batch["input_lens"], batch["token_lens"], strict=True)
            )
    assert SPEEDS == (0.9, 1.1)


def test_missing_preparation_names_the_stage(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage 1 of prepare.sh"):
        module_at = load_config(None, [])
        AsrDataModule(module_at, tmp_path, Tokenizer.from_file(data / "lang" / "bpe.model"))
    with pytest.raises(UserError, match="stage 3 of prepare.sh"):
        module(data).test_dataloader("nix")
    with pytest.raises(UserError, match="stage 4 .* of prepare.sh"):
        module(data, *STORED).test_dataloader("nix")


def test_spec_augment_without_masks_is_refused(data: Path) -> None:
    cfg: Config = load_config(None, ["augment.num_frame_masks=0"])
    dm = AsrDataModule(cfg, data, Tokenizer.from_file(data / "lang" / "bpe.model"))
    with pytest.raises(UserError, match="num_frame_masks"):
        dm.train_dataloader(1)


def test_buckets_hold_about_the_same_time(data: Path) -> None:
    cuts = list(CutSet.from_file(data / "cuts" / "tr.jsonl.gz"))
    bins = duration_bins(cuts, 3)
    assert bins == sorted(bins) and len(bins) == 2
    sums = [
        sum(c.duration for c in cuts if low <= c.duration < high)
        for low, high in zip([0.0, *bins], [*bins, math.inf], strict=True)
    ]
    assert max(sums) < 1.5 * min(sums)
    assert duration_bins(cuts[:1], 30) == []


@pytest.mark.parametrize("count", [5, SHUFFLE_WINDOW + 5])
def test_batches_are_shuffled_anew_in_every_epoch(count: int) -> None:
    drawn = list(range(count))
    orders = [list(ShuffledBatches(drawn, 42, epoch)) for epoch in (1, 2, 1)]
    assert orders[0] == orders[2] != orders[1] and all(sorted(o) == drawn for o in orders)
    assert orders[0] != drawn != orders[1]
    for skip in (0, 1, count - 3, count, count + 1):
        assert list(ShuffledBatches(drawn, 42, 1, skip)) == orders[0][skip:]


def test_seeded_repeats_and_restores() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(3):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(3):
        assert torch.equal(torch.rand(2), inside)
