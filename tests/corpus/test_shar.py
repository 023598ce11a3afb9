"""Shar: shards give the same training audio as files; remote shards are fetched once, into a folder of bounded size."""

from __future__ import annotations

import gzip
import re
import tarfile
from pathlib import Path

from local.common.errors import UserError
from local.compute_features import main as compute_features
from local.config import load_config
from local.corpus import shard_store as shar
from local.corpus.dropped import read_dropped
from local.corpus.shar import read_shar
from local.corpus.shard_store import ShardStore, recordings_in, shards_of
from local.data.datamodule import AsrDataModule
from local.data.tokenizer import Tokenizer
from local.data.training_cuts import ShuffledCuts, shards_of_lines
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from tests.speech_tree import make_part

import numpy as np
import pytest
import torch
from lhotse import CutSet, Recording

PARTS = ("train", "dev", "test")
SIZE = 5  # cuts of a shard
CORPUS = "name: t\nsource: custom\ntrain: [train]\ndev: [dev]\ntest: [test]\noptions: {commands: true}\n"
OPTIONS = ["data.num_workers=0", "data.num_buckets=2", "train.max_duration=12"]


def prepare(root: Path, corpus_dir: Path, *overrides: str) -> Path:
    data = root / "data"
    root.mkdir(parents=True, exist_ok=True)
    (root / "corpus.yaml").write_text(CORPUS)
    folders = ["--corpus-yaml", str(root / "corpus.yaml"), "--corpus-dir", str(corpus_dir), "--data-dir", str(data)]
    prepare_manifests([*folders, *overrides])
    for program in (prepare_cuts, prepare_lang):
        program(["--data-dir", str(data), *overrides])
    return data


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a prepared corpus in single files, which are in `tree` beside it."""
    root = tmp_path_factory.mktemp("files")
    make_part(root / "tree", "train", utterances=10)
    for part in PARTS[1:]:
        make_part(root / "tree", part, utterances=2)
    return prepare(root, root / "tree")


@pytest.fixture(scope="module")
def shards(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same utterances in shards by lhotse: a folder for each part."""
    root = tmp_path_factory.mktemp("shards")
    for part in PARTS:
        (root / part).mkdir()
        CutSet.from_file(files / "cuts" / f"{part}.jsonl.gz").to_shar(root / part, {"recording": "flac"}, shard_size=SIZE)
    return root


def batches(data: Path, *overrides: str, epoch: int = 1, skip: int = 0) -> list[dict]:
    dm = AsrDataModule(
        load_config(None, [*OPTIONS, *overrides]), data, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model")
    )
    return list(dm.train_dataloader(epoch, skip_batches=skip))


def by_id(found: list[dict]) -> dict[str, torch.Tensor]:
    return {i: x[:n] for b in found for i, x, n in zip(b.ids, b.inputs, b.input_lens, strict=True)}


def test_utterances_from_shards_are_those_from_files(files: Path, shards: Path, tmp_path: Path) -> None:
    """Augmented, in three speeds; and stored features."""
    data, keys = prepare(tmp_path, shards), [f"augment.{key}_prob=0.3" for key in ("reverb", "gain", "codec")]
    ours, theirs = by_id(batches(data, *keys)), by_id(batches(files, *keys))
    assert ours.keys() == theirs.keys() and len(ours) == 60
    for name, x in ours.items():
        assert torch.equal(x, theirs[name]), name
    compute_features(["--data-dir", str(data), "features.type=precomputed"])
    stored = by_id(batches(data, "features.type=precomputed", "augment.spec_augment=false"))
    computed = by_id(batches(data, "augment.spec_augment=false"))
    assert stored.keys() == computed.keys()
    assert all(torch.allclose(stored[n], computed[n], atol=0.02) for n in stored)  # float16


def test_an_epoch_takes_the_shards_in_groups_and_can_be_resumed(shards: Path, tmp_path: Path) -> None:
    data = prepare(tmp_path, shards)
    manifest = data / "cuts" / "train.jsonl.gz"
    cuts = ShuffledCuts([manifest], data / "lang_bpe_500", 1, speed_perturb=True, precomputed=False, shuffle_shards=2)
    assert cuts.shards is not None and sorted(np.bincount(cuts.shards)) == [SIZE] * 4
    shard_of = {cut.id: cut.recording.sources[0].source.split("#")[0] for cut in CutSet.from_file(manifest)}
    orders = []
    for epoch in (1, 2):
        ids = [cuts.cut(number).id.partition("_sp")[0] for number in cuts.order(epoch)]
        halves = [{shard_of[i] for i in half} for half in (ids[:30], ids[30:])]
        assert len(ids) == 60 and [len(h) for h in halves] == [2, 2] and not halves[0] & halves[1]
        assert ids[:10] != sorted(ids[:10])
        orders.append(ids)
    assert orders[0] != orders[1]
    whole = batches(data, "data.shuffle_shards=2", epoch=2)
    rest = batches(data, "data.shuffle_shards=2", epoch=2, skip=2)
    assert len(whole) > 4 and [b.ids for b in rest] == [b.ids for b in whole[2:]]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(rest, whole[2:], strict=True))


def test_lines_without_a_shard_are_dealt_over_the_groups() -> None:
    in_shard = [b'{"source": "a.tar#0+9"}', b'{"source": "/x/b.tar#512+70"}']
    assert shards_of_lines([b'{"source": "a.flac"}', b'{"source": "we#1.flac"}']) is None
    assert shards_of_lines([*in_shard, b'{"source": "c.flac"}', b'{"source":"a.tar#7+1"}']).tolist()[::3] == [1, 1]


def test_remote_shards_are_fetched_once_and_the_folder_stays_bounded(shards: Path, tmp_path: Path) -> None:
    """By a command, as lhotse takes it in place of a path; a list names many shards at once."""
    log = tmp_path / "log"
    for part in PARTS:
        last = len(list((shards / part).glob("cuts.*"))) - 1
        command = f"pipe:echo {part} >> {log}; cat {shards / part}/cuts.{{000000..{last:06d}}}.jsonl.gz"
        (tmp_path / f"{part}.shar").write_text(command + "\n")
    assert len(shards_of(tmp_path / "train.shar")) == 4
    data = prepare(tmp_path / "exp", tmp_path)
    assert sorted(log.read_text().split()) == ["dev"] * 2 + ["test"] * 2 + ["train"] * 8  # each file once
    ours = by_id(batches(data))
    assert ours.keys() == by_id(batches(prepare(tmp_path / "local", shards))).keys() and len(ours) == 60
    assert len(log.read_text().split()) == 12
    sizes = [p.stat().st_size for p in (data / "shards").iterdir() if p.suffix == ".tar"]
    store = ShardStore(data / "few", 2.5 * max(sizes) / 1e9, commands=True)
    for _, tar in shards_of(tmp_path / "train.shar"):
        assert store.local(tar).is_file()
        kept = sum(p.stat().st_size for p in (data / "few").iterdir() if p.suffix == ".tar")
        assert 0 < kept <= 2.5 * max(sizes)


def test_what_is_wrong_with_shards_is_named_and_the_rest_is_used(shards: Path, tmp_path: Path) -> None:
    for part in PARTS:
        (tmp_path / part).mkdir()
        for path in (shards / part).iterdir():
            (tmp_path / part / path.name).write_bytes(path.read_bytes())
    cut_short, missing = tmp_path / "train" / "recording.000001.tar", tmp_path / "train" / "recording.000002.tar"
    cut_short.write_bytes(cut_short.read_bytes()[: cut_short.stat().st_size // 2])
    missing.unlink()
    data = prepare(tmp_path / "exp", tmp_path)
    kinds = [d.kind.partition(":")[0] for d in read_dropped(data / "manifests" / "dropped.tsv", "")]
    lost = kinds.count("audio is not in the shard")
    assert kinds.count("shard damaged or missing") == 2 and SIZE < lost < 2 * SIZE
    left = by_id(batches(data))
    assert len(left) == 3 * (20 - lost)
    broken = next((tmp_path / "train").glob("recording.000000.tar"))
    broken.write_bytes(b"")  # after preparation: its utterances are skipped and counted
    dm = AsrDataModule(load_config(None, OPTIONS), data, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"))
    loader = dm.train_dataloader(1)
    assert sum(len(b.ids) for b in loader) + loader.skipped == len(left) and loader.skipped == 3 * SIZE


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", "train.shar: "),
        ("cuts.jsonl.gz", "cuts.jsonl.gz' .*<number>"),
        ("a/recording.000000.tar", "'.*a/recording.000000.tar'"),
    ],
)
def test_a_list_of_no_shards_is_an_error(tmp_path: Path, line: str, error: str) -> None:
    (tmp_path / "train.shar").write_text(line + "\n")
    with pytest.raises(UserError, match=error):
        shards_of(tmp_path / "train.shar")


def test_what_cannot_be_fetched_says_so(tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "s", 1.0, commands=True)
    for location in ("pipe:false cuts.000000.jsonl.gz", "nosuch://host/recording.000000.tar"):
        with pytest.raises(ValueError, match=location):
            store.local(location)
    assert not [p for p in (tmp_path / "s").iterdir() if not p.name.endswith(".lock")]


def test_places_in_a_tar_are_those_of_its_members(shards: Path) -> None:
    tar = shards / "train" / "recording.000000.tar"
    found = list(recordings_in(tar, "x#y.tar"))
    with tarfile.open(tar) as archive:
        for (name, recording), member in zip(found, archive.getmembers()[::2], strict=True):
            assert recording is not None and recording.id == name
            source = recording.sources[0].source
            assert source == f"x#y.tar#{member.offset_data}+{member.size}"
            data = ShardStore(tar.parent, 1.0).read(source.replace("x#y.tar", str(tar)))
            assert isinstance(recording, Recording) and data == archive.extractfile(member).read()  # type: ignore[union-attr]
    assert shar.is_remote("s3://b/x") and shar.is_remote("pipe:cat x") and not shar.is_remote("/a/b.tar")


def test_a_recording_in_a_shard_is_checked(shards: Path, tmp_path: Path) -> None:
    whole = next((shards / "train").glob("recording.000000.tar")).read_bytes()
    (tmp_path / "recording.000000.tar").write_bytes(whole.replace(b'"channels": [0]', b'"channels": "a"'))
    with pytest.raises(ValueError, match="channels"):
        list(recordings_in(tmp_path / "recording.000000.tar", "x"))


def test_shards_without_a_cut_need_no_command(tmp_path: Path) -> None:
    (tmp_path / "cuts.000000.jsonl.gz").write_bytes(gzip.compress(b""))
    tarfile.open(tmp_path / "recording.000000.tar", "w").close()
    with pytest.raises(UserError, match=re.escape(str(tmp_path))) as error:
        read_shar(tmp_path, "train", [], ShardStore(tmp_path, 1.0))
    assert "options.commands" not in str(error.value)
