"""Several corpora in one training (data.mix): shares, order, resuming, processes, checks, dev losses and WER by corpus."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from local.artifacts.decoded_sets import write_set
from local.common.errors import UserError
from local.config.mix import problem_of_mix, shares_of
from local.data.batching import train_batches
from local.data.datamodule import AsrDataModule
from local.data.mixed_cuts import MixedCuts
from local.data.prepared_corpus import check_first
from local.data.training_cuts import ShuffledCuts
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from local.reporting.data import mix_text
from local.reporting.experiment import Experiment
from local.wer import main as score
from tests.common import test_processes
from tests.common.test_processes import EXACT, assert_same_training, in_processes, module, one_after_another, trained
from tests.conftest import ROOT
from tests.speech_tree import make_part

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")
data = test_processes.data  # its fixture: 20 utterances for training, 6 for validation


def prepare(root: Path, utterances: int) -> Path:
    """Prepare a corpus without tokens of its own in root/mine, with the ids of `data`."""
    (root / "corpus.yaml").write_text("name: t\nsource: librispeech\ntrain: [tr]\ndev: [te]\ntest: [te]\n")
    make_part(root / "audio", "tr", speakers=1, utterances=utterances)
    make_part(root / "audio", "te", speakers=1, utterances=3)
    args = ["--corpus-yaml", str(root / "corpus.yaml"), "--corpus-dir", str(root / "audio")]
    prepare_manifests([*args, "--data-dir", str(root / "mine")])
    prepare_cuts(["--data-dir", str(root / "mine")])
    return root / "mine"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("second"), utterances=4)


def mix(first: Path, second: Path, share: float = 0.25) -> str:
    return f"data.mix={{{first}: {1 - share if share else 0}, {second}: {share}}}"


def corpus(folder: Path, name: str, count: int, seed: int = 3) -> ShuffledCuts:
    """Write manifest and token counts of `count` cuts of 1 to 9 s whose ids begin with `name`, and read them."""
    rng = np.random.default_rng(count)
    ids = [f"{name}-{i}" for i in range(count)]
    cuts = ({"id": i, "duration": s, "recording": {}} for i, s in zip(ids, rng.uniform(1, 9, count).round(2), strict=True))
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, cuts)).encode(), 1))
    counts = folder / "lang" / "num_tokens" / f"{name}.tsv"
    counts.parent.mkdir(parents=True, exist_ok=True)
    counts.write_text("".join(f"{i}\t5\n" for i in ids))
    return ShuffledCuts([folder / f"{name}.jsonl.gz"], folder / "lang", seed, False, False)


def test_shares_of_2000_batches(tmp_path: Path) -> None:
    """Within one percent of what was asked, although one corpus is small, and the first comes once in each epoch."""
    sizes = {"a": 2000, "b": 300, "c": 900}
    asked = {"a": 0.6, "b": 0.3, "c": 0.1}
    mixed = MixedCuts([corpus(tmp_path, name, count) for name, count in sizes.items()], list(asked.values()))
    found, batches = Counter[str](), 0
    for epoch in itertools.count(1):
        cuts = mixed.of_epoch(epoch)
        steps = train_batches(cuts, 30, 30.0, epoch)
        names = [[cuts.id_of(number) for number in step] for step in steps]
        own = [name for step in names for name in step if name.startswith("a-")]
        assert len(own) == len(set(own)) == 2000
        left = 2000 - batches
        found.update(name[0] for step in names[:left] for name in step)
        batches += min(left, len(steps))
        if batches == 2000:
            break
    for name, share in asked.items():
        assert found[name] / found.total() == pytest.approx(share, rel=0.01), name
    assert epoch >= 2  # the last one is cut off


def test_each_cut_comes_once_before_any_comes_again(tmp_path: Path) -> None:
    first, second = corpus(tmp_path, "a", 20), corpus(tmp_path, "b", 7)
    mixed = MixedCuts([first, second], [0.8, 0.2])
    stream: list[tuple[str, int]] = []
    for epoch in range(1, 8):
        cuts = mixed.of_epoch(epoch)
        part = [cuts.corpus[n] for n in cuts.order(epoch)]
        stream += [(cuts.id_of(n), int(cuts.turns[n])) for n in cuts.order(epoch) if part[n] == 1]
        assert part.count(0) == 20 and part.count(1) == 5  # 20 x 0.2 / 0.8
        assert part != sorted(part)
        own = [cuts.id_of(n) for n in cuts.order(epoch) if part[n] == 0]
        assert own == [first.id_of(n) for n in first.order(epoch).tolist()]  # in the order of a training without the mix
        assert all(cuts.seconds[n] == mixed.corpora[part[n]].seconds[cuts.numbers[n]] for n in cuts.order(epoch))
    passes = [stream[i : i + 7] for i in range(0, 35, 7)]
    for turn, found in enumerate(passes, 1):
        assert len({name for name, _ in found}) == 7 and {t for _, t in found} == {turn}
    assert [name for name, _ in passes[0]] != [name for name, _ in passes[1]]


def test_an_epoch_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    def epoch(number: int, seed: int) -> list[str]:
        cuts = MixedCuts([corpus(tmp_path, "a", 30, seed), corpus(tmp_path, "b", 9, seed)], [0.5, 0.5]).of_epoch(number)
        return [cuts.id_of(n) for step in train_batches(cuts, 3, 20.0, number) for n in step]

    once = epoch(3, 1)
    assert once == epoch(3, 1) and once != epoch(4, 1) and once != epoch(3, 2) and len(once) == 60


def test_shares_by_size() -> None:
    sizes = {"a": 30, "b": 10, "c": 5}
    assert shares_of({"a": 0, "b": 0}, sizes) == {"a": 0.75, "b": 0.25}
    assert shares_of({"a": 0, "b": 0, "c": 0.2}, sizes) == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2})
    assert shares_of({"a": 0.7, "b": 0.3}, sizes) == {"a": 0.7, "b": 0.3}


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"data/a": 1.0}, "two"),
        ({"data/a": 0.5, "data/b": 0.6}, "1.1"),
        ({"data/a": 0.5, "data/b": 0.4}, "0.9"),
        ({"data/a": 0.0, "data/b": 1.0}, "0"),
        ({"data/a": 0.5, "other/a/": 0.5}, "other/a/"),
        ({"data/a": 0.5, "data/b@c": 0.5}, "data/b@c"),
        ({"/": 0.5, "data/b": 0.5}, "'/'"),
    ],
)
def test_impossible_mixes_are_named(asked: dict[str, float], named: str) -> None:
    assert named in problem_of_mix(asked)


def test_fine_mixes_are_fine() -> None:
    for asked in ({"data/a": 0.7, "data/b": 0.3}, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.4}, {"a.b c": 1 / 3, "b": 2 / 3}):
        assert problem_of_mix(asked) == ""


def test_resumed_within_an_epoch_bit_for_bit(data: Path, mine: Path, tmp_path: Path) -> None:
    """Weights and dev losses; also with other numbers of processes that load data."""
    whole = trained(data, tmp_path / "whole", mix(data, mine), "data.num_workers=0")
    trained(data, tmp_path / "parts", mix(data, mine), "data.num_workers=2", "train.max_steps=5")
    parts = trained(data, tmp_path / "parts", mix(data, mine), "data.num_workers=2")
    assert whole.step == parts.step > 5 and "5 batches done, now in epoch 1" in parts.text
    assert all(torch.equal(value, parts.weights[name]) for name, value in whole.weights.items())
    tables = [(tmp_path / name / "valid.csv").read_text() for name in ("whole", "parts")]
    assert tables[0] == tables[1] and "pruned_loss@mine" in tables[0].splitlines()[0].split(",")


def test_two_processes_train_as_one(data: Path, mine: Path, tmp_path: Path) -> None:
    options = [*EXACT, mix(data, mine), "gradient.threshold=1"]
    alone = trained(data, tmp_path / "alone", *options, module_of=one_after_another(2))
    for run in in_processes(2, lambda p: trained(data, tmp_path / "runs", *options, processes=p)):
        assert_same_training(alone, run)
    rows = [list(csv.DictReader((tmp_path / name / "valid.csv").open())) for name in ("alone", "runs")]
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys() >= {"simple_loss", "simple_loss@mine", "pruned_loss@mine"}
        assert list(map(float, one.values())) == pytest.approx(list(map(float, two.values())), rel=1e-4)


def test_a_batch_has_what_both_folders_hold(data: Path, mine: Path) -> None:
    """The tokens of the first; augmentation by the pass through the own corpus; audio of the own folder."""
    dm = module(data, mix(data, mine, 0.5), "augment.speed_perturb=false")
    cuts = dm._train_cuts().of_epoch(2)
    turns = {int(cuts.turns[n]) for n in cuts.order(2) if cuts.corpus[n] == 1}  # type: ignore[union-attr]
    assert turns == {6, 7, 8, 9, 10}  # 20 of 4 utterances per epoch
    batches = list(dm.train_dataloader(2))
    texts = {t for b in batches for t in b.texts}
    assert {cut.supervisions[0].text for c in dm.corpora for cut in c.cuts("tr")} == texts
    assert sum(map(len, batches)) == 40 and dm.batches_per_epoch() > 0
    for b in batches:
        assert [dm.tokenizer.decode(row[:n].tolist()) for row, n in zip(b.tokens, b.token_lens, strict=True)] == b.texts
    assert [length for length, _ in dm.train_lengths(100)] == pytest.approx(
        [length for c in dm._train_cuts().corpora for length, _ in c.lengths(100)]  # type: ignore[union-attr]
    )


def test_only_the_first_folder_mixes(data: Path, mine: Path, tmp_path: Path) -> None:
    """Another folder, such as the test set of `evaluate`, is read as without a mix; training refuses it."""
    other = Path(shutil.copytree(data, tmp_path / "other"))
    dm = module(other, mix(data, mine))
    assert [c.data_dir for c in dm.corpora] == [other] and dm.test_sets() == ["te"]
    with pytest.raises(UserError, match=rf"data\.mix.*{data}.*{other}"):
        check_first(dm.cfg.data, other)
    check_first(dm.cfg.data, data / ".")


def test_sets_of_another_corpus(data: Path, mine: Path) -> None:
    dm = module(data, mix(data, mine))
    assert dm.test_sets() == ["te", "te@mine"] and dm.test_sets(["tr@mine", "dev@mine", "te"]) == ["tr@mine", "te@mine", "te"]
    ids = [sorted(i for b in dm.test_dataloader(name) for i in b.ids) for name in ("te", "te@mine")]
    assert [len(found) for found in ids] == [6, 3]
    assert len(dm.references(["te@mine"])) == 3 and len(dm.speakers("te")) == 6
    with pytest.raises(UserError, match=r"nowhere.*mine"):
        dm.test_sets(["nowhere@mine"])
    with pytest.raises(UserError, match="te@elsewhere"):
        dm.test_sets(["te@elsewhere"])


def test_the_table_has_the_sets_of_each_corpus(data: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dm = module(data, mix(data, mine))
    for name in dm.test_sets():
        corpus, part = dm.place(name)
        texts = {cut.id: cut.supervisions[0].text for cut in corpus.cuts(part)}
        lines = [{"id": i, "ref": text, "hyp": text if corpus.mark else ""} for i, text in texts.items()]
        stats: dict[str, Any] = {"seconds": 1.0, "audio_seconds": 2.0}
        stats |= {"prepared": [str(corpus.data_dir), part]} if corpus.mark else {}
        write_set(tmp_path / "exp" / "decode" / "greedy_search" / f"{name}.jsonl", lines, stats)
    score(["--exp-dir", str(tmp_path / "exp"), "--data-dir", str(data)])
    results = json.loads((tmp_path / "exp" / "wer.json").read_text())
    wers = {name: (found["greedy_search"]["wer"], found["greedy_search"]["utterances"]) for name, found in results.items()}
    assert wers == {"te": (100.0, 6), "te@mine": (0.0, 3)}
    assert "not decoded" not in capsys.readouterr().err and (tmp_path / "exp/errors/te@mine.greedy_search.txt").is_file()


def test_the_report_names_the_shares() -> None:
    def text(config: dict[str, Any]) -> str:
        return mix_text(cast(Experiment, SimpleNamespace(config=config)))

    found = text({"data": {"mix": {"data/a": 0.0, "data/b": 0.3}}})
    assert "data/a: by size" in found and "data/b: 0.3" in found
    assert text({}) == text({"data": {"mix": None}}) == text({"data": 3}) == ""


def edited(folder: Path, to: Path, edit: Any) -> Path:
    """Copy a prepared folder with other training cuts."""
    copy = Path(shutil.copytree(folder, to))
    path = copy / "cuts" / "tr.jsonl.gz"
    cuts = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    for cut in cuts:
        edit(cut)
    path.write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in cuts).encode()))
    return copy


def spelled(cut: dict[str, Any]) -> None:
    cut["supervisions"][0]["text"] = cut["supervisions"][0]["text"].lower()


def test_what_does_not_fit_is_named(data: Path, mine: Path, tmp_path: Path) -> None:
    def read(folder: Path) -> AsrDataModule:
        dm = module(data, mix(data, folder))
        dm.identity()
        return dm

    with pytest.raises(UserError, match=r"data\.mix.*nowhere.*corpus\.yaml"):
        read(tmp_path / "nowhere")
    slow = edited(mine, tmp_path / "slow", lambda cut: cut["recording"].update(sampling_rate=8000))
    with pytest.raises(UserError, match=rf"data\.mix.*{slow}.*features\.sampling_rate=8000.*16000"):
        read(slow)
    lower = edited(mine, tmp_path / "lower", spelled)
    with pytest.raises(UserError, match=rf"data\.mix.*{lower}.*4 of 4.*lang\.normalise"):
        read(lower)

    def one(cut: dict[str, Any]) -> None:
        if cut["id"].endswith("1"):
            spelled(cut)

    dm = read(edited(mine, tmp_path / "mostly", one))
    assert dm._train_cuts().corpora[1].usable == 3 * 3  # type: ignore[union-attr]
    assert "1 of 4" in dm.notes[0] and len(dm.notes) == 2
    (slow / "corpus.yaml").write_text(
        (slow / "corpus.yaml").read_text().replace("- tr\n", "", 1).replace("train:", "train: []")
    )
    with pytest.raises(UserError, match=r"data\.mix.*slow.*'train'"):
        read(slow)


def test_shares_are_part_of_the_data(data: Path, mine: Path, tmp_path: Path) -> None:
    """Within an epoch, other shares cannot continue: what is left would not be what was left."""
    trained(data, tmp_path / "exp", mix(data, mine), "train.max_steps=3")
    with pytest.raises(UserError, match=r"step-3\.pt.*epoch 1"):
        trained(data, tmp_path / "exp", mix(data, mine, 0.3))
    plain, mixed = (module(data, *o).identity() for o in ([], [mix(data, mine)]))
    assert (plain["cuts"], mixed["cuts"]) == (20, 24) and plain["hash"] != mixed["hash"]


def test_tokens_of_all_texts(data: Path, mine: Path, tmp_path: Path) -> None:
    first = Path(shutil.copytree(data, tmp_path / "first"))
    transcript = first / "lang_bpe_500" / "transcript.txt"
    alone = transcript.read_text().splitlines()
    for tokens, more in (("first", 0), ("all", 4)):
        prepare_lang(["--data-dir", str(first), mix(first, mine), f"data.mix_tokens={tokens}"])
        found = transcript.read_text().splitlines()
        assert found[:20] == alone and len(found) == 20 + more
    assert not (mine / "lang_bpe_500").exists()


@pytest.mark.parametrize(
    ("data_dir", "expected"),
    [("one", ["two v1.0", "three"]), ("./one", ["two v1.0", "three"]), ("three", []), ("elsewhere", [])],
)
def test_the_scripts_find_the_other_folders(tmp_path: Path, data_dir: str, expected: list[str]) -> None:
    (tmp_path / "one").mkdir()
    script = f"""set -euo pipefail; cd {ROOT}; source local/stages.sh; cd {tmp_path}
        config=$'data.mix.one 0.5\\ndata.mix.two v1.0 0.2\\ndata.mix.three 0.3\\ndata.mix_tokens "first"'
        data_dir=$1; other_corpora; printf '%s\\n' "$others"; config=$'data.mix null'; other_corpora; printf '%s.' "$others" """
    done = subprocess.run(["bash", "-c", script, "test", data_dir], capture_output=True, text=True, check=True)
    assert done.stdout.removesuffix(".").splitlines() == (expected or [""])
