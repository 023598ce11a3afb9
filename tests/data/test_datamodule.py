"""Batches: shapes, determinism with any number of loader processes, skipping, noise, and missing files."""

from __future__ import annotations

import errno
import gc
import gzip
import inspect
import itertools
import json
import math
import multiprocessing.synchronize
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from local.common.errors import UserError
from local.compute_features import main as compute_features
from local.config import load_config
from local.config.schema import Config
from local.data import training_cuts
from local.data.batch import Batch
from local.data.batching import duration_bins, pack_by_length, seeded, train_batches
from local.data.datamodule import AsrDataModule
from local.data.dataset import AsrDataset, make_spec_augment
from local.data.durations import SPEEDS
from local.data.tokenizer import Tokenizer
from local.data.training_cuts import ShuffledCuts
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from local.prepare_noise import main as prepare_noise
from model.encoder.subsampling import subsampled
from tests.conftest import ROOT
from tests.speech_tree import audio_of, make_part, set_text, write_noise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet
from lhotse.dataset import SpecAugment

SMALL = ["train.max_duration=12", "data.num_buckets=3", "data.num_workers=0"]
STORED = [*SMALL, "features.type=precomputed"]
LENGTHS = st.lists(st.floats(0.1, 30.0).map(lambda x: round(x, 2)), min_size=1, max_size=200)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a prepared corpus, parts tr (24 utterances) and te (6), with stored features and noise."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "corpus.yaml").write_text("name: t\nsource: librispeech\ntrain: [tr]\ndev: [te]\ntest: [te]\n")
    make_part(root / "audio", "tr", utterances=12)
    make_part(root / "audio", "te", speakers=1)
    for n in range(3):
        write_noise(root / "musan" / f"{n}.wav", 12.0, seed=n)
    data = root / "data"
    args = ["--corpus-yaml", str(root / "corpus.yaml"), "--corpus-dir", str(root / "audio"), "--data-dir", str(data)]
    prepare_manifests(args)
    for program in (prepare_cuts, prepare_lang, prepare_noise, compute_features):
        program(["--data-dir", str(data), f"augment.musan={root / 'musan'}"])
    return data


def module(data: Path, *overrides: str) -> AsrDataModule:
    return AsrDataModule(load_config(None, overrides), data, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.ids == y.ids and torch.equal(x.inputs, y.inputs) and torch.equal(x.tokens, y.tokens)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("kind", [SMALL, STORED])
def test_a_batch_has_the_documented_contents(data: Path, kind: list[str]) -> None:
    dm = module(data, *kind, "augment.spec_augment=false")
    batches = list(dm.train_dataloader(1))
    ids = [i for batch in batches for i in batch.ids]
    assert len(ids) == len(set(ids)) == dm.train_dataloader(1).num_cuts == 24 * 3
    texts = {c.id: c.supervisions[0].text for c in CutSet.from_file(data / "cuts" / "tr.jsonl.gz")}
    for batch in batches:
        n, t, f = batch.inputs.shape
        lens = batch.input_lens
        assert f == 80 and t == lens.max() and batch.num_frames == lens.sum() and batch.skipped == []
        assert n * t <= 12 * 100 + n and len(batch.ids) == len(batch.texts) == n
        for i in range(n):
            assert torch.all(batch.inputs[i, lens[i] :] == torch.tensor(math.log(1e-10)))
            assert batch.texts[i] == texts[batch.ids[i].partition("_sp")[0]]
            tokens = batch.tokens[i]
            assert dm.tokenizer.decode(tokens[: batch.token_lens[i]].tolist()) == batch.texts[i]
            assert torch.all(tokens[batch.token_lens[i] :] == 0)
            assert subsampled(int(lens[i])) >= batch.token_lens[i]


def test_stored_and_computed_features_agree(data: Path) -> None:
    plain = ["augment.spec_augment=false"]
    rows: list[dict[str, torch.Tensor]] = []
    for kind in (SMALL, STORED):
        batches = list(module(data, *kind, *plain).train_dataloader(1))
        rows.append({i: x[:n] for b in batches for i, x, n in zip(b.ids, b.inputs, b.input_lens, strict=True)})
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
    assert same(alone, list(dm.train_dataloader(3)))  # earlier epochs do not matter
    assert not same(alone, list(module(data, *kind, "train.seed=7").train_dataloader(3)))


class Cycle:
    """A reference cycle, which only the garbage collector destroys; it writes the process that did."""

    def __init__(self, path: Path) -> None:
        self.itself, self.path = self, path

    def __del__(self) -> None:
        with self.path.open("a") as f:
            f.write(f"{os.getpid()}\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on Linux only")
def test_workers_destroy_nothing_that_they_inherit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's tensor destroyed in a forked process aborts it."""
    load = AsrDataset.__getitem__

    def collecting(self: AsrDataset, share: Any) -> Any:
        gc.collect()
        return load(self, share)

    monkeypatch.setattr(AsrDataset, "__getitem__", collecting)
    gc.disable()
    try:
        Cycle(tmp_path / "destroyed")
        assert list(module(data, "data.num_workers=2").train_dataloader(1))
    finally:
        gc.enable()
    assert (tmp_path / "destroyed").read_text() == f"{os.getpid()}\n"


def test_no_room_for_workers_is_one_line(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The iterator that torch could not make is deleted without a traceback."""
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", full)
    with pytest.raises(UserError, match="/dev/shm"):
        next(iter(module(data, *SMALL, "data.num_workers=1").train_dataloader(1)))
    gc.collect()
    assert not ignored


def test_skipped_batches_are_those_at_the_start(data: Path) -> None:
    dm = module(data, *STORED)
    assert same(list(dm.train_dataloader(2))[4:], list(dm.train_dataloader(2, skip_batches=4)))


def test_skipped_batches_make_no_cuts(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A position is found from the lengths alone, which equal those of the cuts to the last digit."""
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
        assert len(parsed) == len(last.ids)
        manifest = data / ("features" if kind is STORED else "cuts") / "tr.jsonl.gz"
        cuts = ShuffledCuts([manifest], data / "lang_bpe_500", 1, True, kind is STORED)
        assert all(cuts.seconds[number] == cuts.cut(number).duration for number in cuts.order(1))
        monkeypatch.undo()


def test_spec_augment_masks_and_leaves_global_generators_alone(data: Path) -> None:
    plain = {b.ids[0]: b for b in module(data, *STORED, "augment.spec_augment=false").train_dataloader(1)}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches = list(module(data, *STORED).train_dataloader(1))
    assert torch.equal(before, torch.get_rng_state())
    changed = [not torch.equal(b.inputs, plain[b.ids[0]].inputs) for b in batches]
    assert all(changed)
    assert all(b.inputs.shape == plain[b.ids[0]].inputs.shape for b in batches)


def test_one_copy_is_warped_and_masked_as_lhotse_does_it() -> None:
    cfg = load_config(None, ["augment.time_warp_factor=20"])
    values = {key: getattr(cfg.augment, key) for key in inspect.signature(SpecAugment).parameters if hasattr(cfg.augment, key)}
    dataset, masks, whole = (
        cast(AsrDataset, SimpleNamespace(cfg=cfg, copies=1)),
        make_spec_augment(cfg.augment),
        torch.randn(200, 80),
    )
    for seed in range(20):
        x = whole[: 60 + 7 * seed]
        with seeded(seed):
            theirs = SpecAugment(**values)(x[None], torch.tensor([[0, 0, len(x)]]))[0]
        with seeded(seed):
            (ours,) = AsrDataset._masked(dataset, x, masks)
        assert torch.equal(ours, theirs)


def test_spec_augment_begins_after_its_share_of_the_epochs(data: Path) -> None:
    later = module(data, *STORED, "augment.spec_augment_after=0.5", "train.num_epochs=4")
    plain = module(data, *STORED, "augment.spec_augment=false")
    masked = module(data, *STORED)
    for epoch, expected in ((1, plain), (2, plain), (3, masked), (4, masked)):
        assert same(list(later.train_dataloader(epoch)), list(expected.train_dataloader(epoch)))


@pytest.mark.parametrize("kind", [SMALL, STORED])
def test_noise_is_mixed_into_a_share_of_the_utterances(data: Path, kind: list[str]) -> None:
    options = [*kind, "augment.spec_augment=false"]
    plain = {b.ids[0]: b for b in module(data, *options).train_dataloader(1)}
    mixed = module(data, *options, "augment.musan=x", "augment.musan_prob=0.5")
    differs = [
        not torch.equal(x[:n], y[:n])
        for b in mixed.train_dataloader(1)
        for x, y, n in zip(b.inputs, plain[b.ids[0]].inputs, b.input_lens, strict=True)
    ]
    assert 0.3 < sum(differs) / len(differs) < 0.7


def test_noise_has_the_levels_of_the_configuration(data: Path) -> None:
    """In dB below the speech, uniform within augment.musan_snr."""
    cfg = load_config(None, ["augment.musan=x", "augment.musan_prob=1"])
    noise = [cut.resample(16000) for cut in CutSet.from_file(data / "cuts" / "musan.jsonl.gz")]
    dataset = cast(AsrDataset, SimpleNamespace(cfg=cfg, noise=noise))
    speech = next(iter(CutSet.from_file(data / "cuts" / "te.jsonl.gz")))
    plain, found = speech.load_audio()[0], []
    for seed in range(40):
        mixed = AsrDataset._mix(dataset, speech, random.Random(seed)).load_audio()[0]
        added = mixed[: len(plain)] - plain
        found.append(10 * math.log10(np.square(plain).mean() / np.square(added).mean()))
    low, high = cfg.augment.musan_snr
    assert low - 0.5 < min(found) < low + 2 and high - 2 < max(found) < high + 0.5


def test_decoding_and_validation_are_not_augmented(data: Path) -> None:
    dm = module(data, *STORED)
    test, valid = list(dm.test_dataloader("te")), list(dm.valid_dataloader())
    assert sorted(i for b in test for i in b.ids) == sorted(i for b in valid for i in b.ids)
    assert len(test[0].ids) == 6 and same(test, list(dm.test_dataloader("te")))
    assert test[0].input_lens.tolist() == sorted(test[0].input_lens.tolist(), reverse=True)


def test_without_speed_perturbation_stored_copies_stay_out(data: Path) -> None:
    for kind in (SMALL, STORED):
        ids = [i for b in module(data, *kind, "augment.speed_perturb=false").train_dataloader(1) for i in b.ids]
        assert len(ids) == 24 and not any("_sp" in i for i in ids)


def test_copies_that_were_not_stored_are_an_error(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    manifest = tmp_path / "data" / "features" / "tr.jsonl.gz"
    with gzip.open(manifest, "rt", encoding="utf-8") as f:
        originals = [line for line in f if "_sp" not in json.loads(line)["id"]]
    with gzip.open(manifest, "wt", encoding="utf-8") as f:
        f.writelines(originals)
    with pytest.raises(UserError, match=r"features/tr\.jsonl\.gz: .*augment\.speed_perturb"):
        module(tmp_path / "data", *STORED).train_dataloader(1)
    assert list(module(tmp_path / "data", *STORED, "augment.speed_perturb=false").train_dataloader(1))


def test_a_missing_file_is_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "corpus.yaml").write_text("name: t\nsource: librispeech\ntrain: [tr]\ndev: [tr]\ntest: [tr]\n")
    make_part(tmp_path, "tr", speakers=1)
    set_text(tmp_path, "tr", "100-1-0001", "E" * 21)  # long enough at speed 0.9, maybe not at 1.1
    write_noise(audio_of(tmp_path, "tr", "100-1-0001"), 0.95)
    data = tmp_path / "data"
    args = ["--corpus-yaml", str(tmp_path / "corpus.yaml"), "--corpus-dir", str(tmp_path), "--data-dir", str(data)]
    prepare_manifests(args)
    for program in (prepare_cuts, prepare_lang):
        program(["--data-dir", str(data)])
    audio_of(tmp_path, "tr", "100-1-0000").unlink()
    capsys.readouterr()
    loader = module(data, *SMALL).train_dataloader(1)
    ids = [i for b in loader for i in b.ids]
    assert loader.skipped == 3 and not any(i.startswith("100-1-0000") for i in ids)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(lines) == 3 and all("100-1-0000" in line and "100-1-0000.flac" in line for line in lines)
    assert len(ids) >= 13


def test_copies_with_more_tokens_than_frames_are_left_out(tmp_path: Path) -> None:
    """1 s has 23 frames, 21 at speed 1.1."""
    cuts = [{"id": i, "duration": 1.0, "recording": {"sampling_rate": 16000}} for i in ("fits", "fast", "never")]
    (tmp_path / "tr.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, cuts)).encode()))
    counts = tmp_path / "lang" / "num_tokens" / "tr.tsv"
    counts.parent.mkdir(parents=True)
    counts.write_text("fits\t21\nfast\t23\nnever\t-1\n")
    found = ShuffledCuts([tmp_path / "tr.jsonl.gz"], tmp_path / "lang", 1, True, False)
    assert SPEEDS == (0.9, 1.1)
    kept = {"fits", "fits_sp0.9", "fits_sp1.1", "fast", "fast_sp0.9"}
    assert {found.id_of(n) for n in found.order(1).tolist()} == kept


def test_the_first_utterances_are_chosen_before_their_features_are_looked_for(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    manifest = tmp_path / "data" / "features" / "te.jsonl.gz"
    with gzip.open(manifest, "rt", encoding="utf-8") as f:
        lines = sorted(f, key=lambda line: json.loads(line)["id"])
    names = [json.loads(line)["id"] for line in lines]
    with gzip.open(manifest, "wt", encoding="utf-8") as f:
        f.writelines([lines[0], *lines[2:-1]])  # the second and the last of six have none
    for most, lacking in ((0, 2), (1, 0), (3, 1)):
        found = module(tmp_path / "data", *STORED, f"decode.max_utterances={most}").test_dataloader("te")
        assert (found.num_cuts, found.skipped) == (most or 6, lacking)
        assert sorted(i for b in found for i in b.ids) == [n for n in names[: most or 6] if n not in (names[1], names[-1])]


def test_missing_preparation_names_the_stage(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus.yaml is missing; stage 1 .*of prepare.sh"):
        module_at = load_config(None, [])
        AsrDataModule(module_at, tmp_path, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"))
    with pytest.raises(UserError, match=r"nix.jsonl.gz is missing; stage 2 .*of prepare.sh"):
        module(data).test_dataloader("nix")
    with pytest.raises(UserError, match=r"nix.jsonl.gz is missing; stage 4 .*of prepare.sh"):
        module(data, *STORED).test_dataloader("nix")


def test_a_damaged_line_is_named_also_by_a_worker(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(line: bytes, kind: Any, where: str) -> Any:
        raise UserError(f"{where}: damaged")

    monkeypatch.setattr(training_cuts, "parse_item", damaged)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^\S+tr\.jsonl\.gz:\d+: damaged$"):
            list(module(data, *STORED, f"data.num_workers={workers}").train_dataloader(1))


@given(LENGTHS, st.floats(1.0, 100.0), st.integers(1, 5))
def test_a_step_has_room_for_its_micro_batches(seconds: list[float], limit: float, width: int) -> None:
    steps = list(pack_by_length(range(len(seconds)), seconds, limit, width))
    assert list(itertools.chain(*steps)) == list(range(len(seconds)))
    assert all(len(s) == 1 or math.ceil(len(s) / width) * max(seconds[i] for i in s) <= limit for s in steps)
    for step, after in itertools.pairwise(steps):
        assert math.ceil((len(step) + 1) / width) * max(seconds[i] for i in (*step, after[0])) > limit


def test_spec_augment_without_masks_is_refused(data: Path) -> None:
    """In the first epoch, also if it would begin later."""
    cfg: Config = load_config(None, ["augment.num_frame_masks=0", "augment.spec_augment_after=0.5"])
    dm = AsrDataModule(cfg, data, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"))
    with pytest.raises(UserError, match=r"augment\.num_frame_masks"):
        dm.train_dataloader(1)


class Corpus:
    """The lengths of cuts and an order per epoch, as `ShuffledCuts` has them."""

    seed = 42

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = np.array(seconds)

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.seconds))


def epoch_of(corpus: Corpus, num_buckets: int, limit: float, epoch: int = 1) -> list[list[int]]:
    return train_batches(cast(ShuffledCuts, corpus), num_buckets, limit, epoch)


@given(LENGTHS, st.integers(1, 40), st.floats(1.0, 300.0))
def test_an_epoch_has_every_cut_once_and_no_batch_is_too_long(seconds: list[float], num_buckets: int, limit: float) -> None:
    batches = epoch_of(Corpus(seconds), num_buckets, limit)
    assert sorted(itertools.chain(*batches)) == list(range(len(seconds)))
    assert all(len(b) == 1 or len(b) * max(seconds[i] for i in b) <= limit for b in batches)


@given(LENGTHS, st.floats(1.0, 100.0))
def test_parts_are_as_long_as_the_limit_allows(seconds: list[float], limit: float) -> None:
    parts = list(pack_by_length(range(len(seconds)), seconds, limit))
    assert list(itertools.chain(*parts)) == list(range(len(seconds)))
    for part, after in itertools.pairwise(parts):
        assert (len(part) + 1) * max(seconds[i] for i in (*part, after[0])) > limit


@given(LENGTHS, st.integers(1, 40))
def test_no_bucket_is_empty(seconds: list[float], num_buckets: int) -> None:
    bins = duration_bins(np.array(seconds), num_buckets)
    assert bins == sorted(bins) and len(bins) < num_buckets
    assert set(np.searchsorted(bins, seconds, side="right")) == set(range(len(bins) + 1))


def speech_lengths(count: int) -> list[float]:
    return np.random.default_rng(0).uniform(1, 17, count).round(3).tolist()


def test_buckets_hold_about_the_same_time() -> None:
    seconds = np.array(speech_lengths(3000))
    bucket = np.searchsorted(duration_bins(seconds, 30), seconds, side="right")
    sums = np.bincount(bucket, weights=seconds)
    assert len(sums) == 30 and sums.max() < 1.1 * sums.min()
    with pytest.raises(UserError, match=r"augment\.speed_perturb"):
        duration_bins(np.array([]), 30)


def test_batches_are_full_and_hold_cuts_of_similar_length() -> None:
    corpus = Corpus(speech_lengths(8000))
    batches = epoch_of(corpus, 30, 200.0)
    padded = [len(b) * corpus.seconds[b].max() for b in batches]
    assert sum(p > 180 for p in padded) > len(batches) - 12 and len(batches) > 300
    assert sum(padded) < 1.06 * corpus.seconds.sum()


@pytest.mark.parametrize("count", [200, 40_000])
def test_batches_come_in_another_order_in_every_epoch(count: int) -> None:
    """Successive lengths are uncorrelated: neither sorted nor in a cycle over the buckets."""
    corpus = Corpus(speech_lengths(count))
    orders = [epoch_of(corpus, 5, 60.0, epoch) for epoch in (1, 2, 1)]
    assert orders[0] == orders[2] != orders[1]
    for order in orders[:2]:
        means = np.array([corpus.seconds[b].mean() for b in order])
        for lag in (1, 5):
            assert abs(np.corrcoef(means[:-lag], means[lag:])[0, 1]) < 4 / np.sqrt(len(means))


def test_batches_of_a_large_corpus_keep_near_their_place() -> None:
    """The first utterances of the order are in the first batches, so that few shards are needed at a time."""
    corpus = Corpus(speech_lengths(40_000))
    rank = np.empty(40_000)
    rank[corpus.order(1)] = np.arange(40_000)
    batches = epoch_of(corpus, 30, 200.0)
    apart = [abs(rank[b] / 40_000 - i / len(batches)).max() for i, b in enumerate(batches)]
    assert max(apart) < 1.5 * 500 / len(batches)


def test_seeded_repeats_and_restores() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(3):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(3):
        assert torch.equal(torch.rand(2), inside)


def test_stored_features_are_readable_wherever_batches_are_made() -> None:
    """The reader is registered with lhotse by the module that reads features, for programs without a data module."""
    code = "import local.data.dataset; from lhotse.features.io import get_reader; print(get_reader('float16_archive').__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Float16ArchiveReader"
