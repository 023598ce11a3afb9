"""The ablation: its report on synthetic runs with known errors, the program on a toy corpus, the stress data."""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

from local.common.cli import program
from local.common.errors import TrainingDiverged, UserError
from local.config import load_config, to_dict
from local.data.datamodule import AsrDataModule
from local.data.feature_store import Float16ArchiveWriter
from local.data.token_counts import counts_file, read_token_counts, write_token_counts
from local.scoring.intervals import REPLICATIONS
from studies import ablation
from studies.ablation import DIVERGED, Marker, Run, Runner, read_marker, runs_of
from studies.ablation_report import curves, pair_table, read_outcome, wer_table, write_report
from studies.stress_data import noise_like, stress_data
from tests.conftest import ROOT
from tests.toy_experiment import SMALL, make_experiment, toy_tokenizer, write_toy_lang

import numpy as np
import pytest
import yaml
from lhotse import CutSet, Features, SupervisionSegment
from lhotse.cut import MonoCut

REFS = {f"u-{i:02}": "ONE TWO THREE FOUR" for i in range(20)}
# Wrong words (of 80) by control and seed, at most one per utterance.
WRONG = {"filter": {1: 2, 2: 4, 3: 3}, "clip": {1: 12, 2: 16, 3: 14}, "none": {1: 12, 2: 16, 3: 14}}


def write_csv(path: Path, columns: dict[str, list[float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([list(columns), *zip(*columns.values(), strict=True)])


def write_run(folder: Path, wrong: int, level: float, last: bool = False) -> None:
    """Write a finished run: utterances, of which the first (or last) `wrong` have one substituted word, and curves."""
    ids = sorted(REFS, reverse=last)
    hyps = {i: REFS[i].replace("TWO", "TEN") if i in ids[:wrong] else REFS[i] for i in REFS}
    decoded = folder / "decode" / "greedy_search"
    decoded.mkdir(parents=True)
    lines = [json.dumps({"id": i, "ref": REFS[i], "hyp": hyps[i]}) + "\n" for i in REFS]
    (decoded / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    norms = {f"gradient_norm{part}": [level, 3 * level] for part in ("", "_encoder_embed", "_layer_0", "_joiner")}
    write_csv(folder / "train.csv", {"epoch": [1, 1], "step": [10, 20], "loss": [2 * level, level], **norms})
    write_csv(folder / "valid.csv", {"epoch": [1, 2], "step": [10, 20], "simple_loss": [1, 1], "pruned_loss": [1, level / 10]})


@pytest.fixture
def outcomes(tmp_path: Path) -> list:  # type: ignore[type-arg]
    found = []
    for control, seeds in WRONG.items():
        for seed, wrong in seeds.items():
            folder = tmp_path / f"{control}-{seed}"
            write_run(folder, wrong, level=seed, last=control == "none")
            found.append(read_outcome(folder, control, seed, "greedy_search", diverged=False))
    return found


def test_characters_count_where_words_have_no_spaces(tmp_path: Path) -> None:
    """Two sentences of 4 and 5 characters, each with one wrong."""
    folder = tmp_path / "filter-1"
    write_run(folder, 0, level=1)
    rows = [
        ("\u4f60\u597d\u5417\u6211", "\u4f60\u597d\u5417\u4ed6"),
        ("\u6211\u5f88\u597d\u8c22\u4f60", "\u6211\u5f88\u4e0d\u8c22\u4f60"),
    ]
    lines = [json.dumps({"id": str(i), "ref": ref, "hyp": hyp}) + "\n" for i, (ref, hyp) in enumerate(rows)]
    (folder / "decode" / "greedy_search" / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    found = [read_outcome(folder, "filter", 1, "greedy_search", diverged=False)]
    head, (row,) = wer_table(found, "test")
    assert "CER" in " ".join(head) and row[1] == f"{200 / 9:.2f}"
    found = [read_outcome(folder, "filter", 1, "greedy_search", diverged=False, wanted="word")]
    assert wer_table(found, "test")[1][0][1] == "100.00"


@pytest.mark.parametrize("override", ["train.num_epochs=20", "gradient.control=clip", "train.seed=9"])
def test_keys_that_the_study_sets_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        runs_of(load_config(None, [override]), [override], tmp_path)


def test_wer_by_control_and_seed(outcomes: list) -> None:  # type: ignore[type-arg]
    head, rows = wer_table(outcomes, "test")
    assert head[1:4] == ["seed 1", "seed 2", "seed 3"]
    for row in rows:
        wers = [100 * wrong / 80 for wrong in WRONG[row[0]].values()]
        assert row[1:4] == [f"{wer:.2f}" for wer in wers]
        assert row[4] == f"{statistics.mean(wers):.2f}" and row[6] == f"{statistics.stdev(wers):.2f}"
        assert row[7] == "0.2000"  # mean of the last dev losses, 0.1, 0.2 and 0.3
        low, high = map(float, row[5].split(" - "))
        # Every utterance has four words and at most one error, so the pooled WER has the binomial standard error.
        p, n = sum(WRONG[row[0]].values()) / 60, 60
        half = 100 / 4 * 1.96 * math.sqrt(p * (1 - p) / n)
        assert (high - low) / 2 == pytest.approx(half, rel=0.05)


def test_pairs_of_controls(outcomes: list) -> None:  # type: ignore[type-arg]
    """Check a pair in which one control is better everywhere, and a pair with equally many errors in other utterances."""
    rows = {row[0]: row[1:] for row in pair_table(outcomes, "test")[1]}
    assert rows["filter, clip"] == ["3.75, 17.50", "3 of 3 seeds", "0 of 3 seeds", "1.000", "0.000"]
    wers, first, second, *better = rows["clip, none"]
    assert wers == "17.50, 17.50" and first == second == "0 of 3 seeds"
    # Of 60 pairs of decodings, equally many have an error in the first only and in the second only; the rest are ties.
    rng = np.random.default_rng(0)
    alone = [sum(min(WRONG["clip"][s], 20 - WRONG["none"][s]) for s in (1, 2, 3))] * 2
    drawn = rng.multinomial(60, [alone[0] / 60, alone[1] / 60, 1 - sum(alone) / 60], size=REPLICATIONS)
    assert float(better[0]) == pytest.approx((drawn[:, 1] > drawn[:, 0]).mean(), abs=0.02)
    assert float(better[1]) == pytest.approx((drawn[:, 0] > drawn[:, 1]).mean(), abs=0.02)


def test_pairs_use_the_seeds_that_both_controls_finished(outcomes: list, tmp_path: Path) -> None:  # type: ignore[type-arg]
    diverged = read_outcome(tmp_path / "clip-2", "clip", 2, "greedy_search", diverged=True)
    found = [o for o in outcomes if (o.control, o.seed) != ("clip", 2)] + [diverged]
    rows = {row[0]: row for row in pair_table(found, "test")[1]}
    assert rows["filter, clip"][1:4] == ["3.12, 16.25", "2 of 2 seeds", "0 of 2 seeds"]
    row = next(row for row in wer_table(found, "test")[1] if row[0] == "clip")
    assert row[1:5] == ["15.00", "diverged", "17.50", "16.25"]


def test_report_files(outcomes: list, tmp_path: Path) -> None:  # type: ignore[type-arg]
    (tmp_path / "filter-1" / "outliers.tsv").write_text("utterance\tsteps_damped\nplanted\t7\nother\t1\n", encoding="utf-8")
    outcomes[0] = read_outcome(tmp_path / "filter-1", "filter", 1, "greedy_search", diverged=False)
    shown = write_report(outcomes, "a setting", tmp_path / "out", ["planted", "missed"])
    assert (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8") == shown
    assert "| filter-1 | 2 | 1 | 7 | 1 | 1 |" in shown
    page = (tmp_path / "out" / "ablation.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 and not (tmp_path / "out" / "filter_masks.png").exists()  # no columns of masks
    with (tmp_path / "out" / "ablation.csv").open(encoding="utf-8") as f:
        rows = {(row["control"], row["seed"]): row for row in csv.DictReader(f)}
    assert len(rows) == 9 and float(rows["clip", "2"]["wer"]) == 20.0 and rows["clip", "2"]["steps"] == "20"


def test_report_if_all_runs_diverged(tmp_path: Path) -> None:
    write_run(tmp_path / "none-1", 0, 1.0)
    shown = write_report([read_outcome(tmp_path / "none-1", "none", 1, "greedy_search", True)], "x", tmp_path / "out")
    assert "| none | diverged | - | - | - | - | 0 |" in shown


def test_curves_of_different_steps(tmp_path: Path) -> None:
    """Interpolate each run at the steps of all runs, but do not extrapolate beyond its end."""
    found = []
    for seed, steps, values in ((1, [10, 20, 30], [1.0, 2.0, math.inf]), (2, [15, 40], [5.0, 10.0])):
        write_csv(tmp_path / "train.csv", {"step": steps, "loss": values})
        found.append(read_outcome(tmp_path, "filter", seed, "greedy_search", True))
    steps, values = curves(found, "train", "loss", "step")
    assert steps.tolist() == [10, 15, 20, 40]
    np.testing.assert_allclose(values, [[1, 1.5, 2, math.nan], [math.nan, 5, 6, 10]])


def toy_corpus(root: Path) -> Path:
    """Make root/data with a training part: the test part's two longest utterances."""
    make_experiment(root)
    data = root / "data"
    for part in ("train", "test"):
        cuts = [cut for cut in CutSet.from_file(data / "cuts" / "test.jsonl.gz") if cut.duration > 0.6]
        CutSet(cuts).to_file(data / "cuts" / f"{part}.jsonl.gz")
    write_toy_lang(data)
    return data


@pytest.mark.slow
def test_runs_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Go from toy data to the table; a diverged training is a row of it, and a second call trains nothing.

    Only clipping survives this rate: the clipped gradient times the rate has norm 0.01.
    """
    data, exp = toy_corpus(tmp_path), tmp_path / "exp"
    arguments = [
        *("--data-dir", str(data), "--exp-dir", str(exp), *SMALL, "ablation.controls=[clip,none]", "ablation.seeds=[3]"),
        *(
            "ablation.num_epochs=2",
            "train.warm_share=0.3",
            "optim.name=sgd",
            "optim.lr=1e25",
            "optim.weight_decay=0",
            "gradient.clip_norm=1e-27",
        ),
        *(
            "train.max_duration=2",
            "train.log_every=1",
            "train.average_period=1",
            "data.num_buckets=1",
            "average.num=1",
            "train.max_bad_steps=0",
        ),
        *("augment.speed_perturb=false", "augment.spec_augment=false"),
    ]
    command = [sys.executable, "-m", "studies.ablation", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clip-3: done, " in done.stdout and "none-3: diverged, " in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert any(line.startswith("| none | diverged |") for line in table)
    run = exp / "ablation" / "clip-3"
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"epoch-1.pt", "epoch-2.pt"}
    assert read_marker(run).status == "done" and (run / "decode" / "greedy_search" / "test.jsonl").is_file()  # type: ignore[union-attr]
    monkeypatch.setattr(sys, "argv", ["ablation", *arguments])
    monkeypatch.setattr(Runner, "_program", None)
    ablation.main()
    again = capsys.readouterr().out.splitlines()
    assert sorted(again[1:3]) == ["clip-3: already done", "none-3: already diverged"]
    assert [line for line in again if line.startswith("| ")] == table


def test_a_diverged_training_has_its_own_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    """Tell divergence apart from other errors, whose exit status is 1, without reading the message."""
    for error, status in ((TrainingDiverged("lost"), 3), (UserError("lost"), 1)):

        @program
        def main(error: UserError = error) -> None:
            raise error

        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == status and capsys.readouterr().err == "error: lost\n"


@pytest.mark.parametrize("exit_status", [1, 3])
def test_divergence_is_read_from_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_status: int) -> None:
    """Ignore the log's text: both logs name train.max_bad_steps, only status 3 is a divergence."""
    run = Run("none", 1, tmp_path, ())

    def training(self: Runner, name: str, arguments: list[str], run: Run) -> int:
        assert name == "train", "a training that failed is not averaged"
        (run.folder / "log.txt").write_text("error: 9 steps (train.max_bad_steps is 8); the last: u-1\n", encoding="utf-8")
        return exit_status

    monkeypatch.setattr(Runner, "_program", training)
    monkeypatch.setattr("studies.ablation.data_hash", lambda data_dir, cfg: "")
    runner = Runner(None, tmp_path)
    if exit_status == 3:
        assert runner.make(run) == DIVERGED and read_marker(tmp_path).status == DIVERGED  # type: ignore[union-attr]
    else:
        with pytest.raises(UserError, match=r"log\.txt"):
            runner.make(run)


def test_folders_of_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a folder of something else or of another configuration alone; resume a stopped run."""
    data = toy_corpus(tmp_path)
    foreign = Run("none", 1, tmp_path / "foreign", ())
    foreign.folder.mkdir()
    (foreign.folder / "thesis.tex").write_text("years", encoding="utf-8")
    with pytest.raises(UserError, match="foreign"):
        Runner(None, data).make(foreign)
    called: list[str] = []

    def recorded(self: Runner, name: str, arguments: list[str], run: Run) -> int:
        called.append(name)
        (run.folder / "log.txt").write_text("error: its message\n\n", encoding="utf-8")
        return int(name == "decode" and "decode.beam=5" not in run.overrides)

    monkeypatch.setattr(Runner, "_program", recorded)
    runner, folder = Runner(None, data), tmp_path / "run"
    with pytest.raises(UserError, match=r"run: local/decode\.py .* 1: error: its message"):
        runner.make(Run("none", 1, folder, ("optim.lr=0.1",)))
    assert read_marker(folder).status == "started"  # type: ignore[union-attr]
    (folder / "checkpoint").touch()
    assert runner.make(Run("none", 1, folder, ("optim.lr=0.1", "decode.beam=5"))) == "done"
    assert (folder / "checkpoint").exists()  # the run was resumed, not restarted
    called.clear()
    assert runner.make(Run("none", 1, folder, ("optim.lr=0.1", "decode.beam=5"))) == "done" and not called
    with pytest.raises(UserError, match="run: section optim"):
        runner.make(Run("none", 1, folder, ("optim.lr=0.2", "decode.beam=5")))
    (data / "lang_bpe_500" / "bpe.model").write_bytes(b"other tokens")
    with pytest.raises(UserError, match="run: the prepared data"):
        runner.make(Run("none", 1, folder, ("optim.lr=0.1", "decode.beam=5")))
    assert not called and (folder / "checkpoint").exists()


def test_new_keys_do_not_undo_finished_runs(tmp_path: Path) -> None:
    """Read a run of an older version, without some key, as one made with that key's default."""
    now = Marker("done", "", to_dict(load_config()))
    old = Marker("done", "", to_dict(load_config()))
    del old.config["train"]["max_bad_steps"], old.config["ablation"]
    assert old.changed(now, ("train", "optim"), Path("x")) == []
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**old.config, "run": {"vocab_size": 20}}), encoding="utf-8")
    assert read_marker(tmp_path) == Marker("started", "", old.config)  # by local/train.py without the ablation
    now.config["train"]["max_bad_steps"] += 1
    assert old.changed(now, ("train", "optim"), Path("x")) == ["train"]


def prepared(root: Path, number: int = 40) -> dict[str, np.ndarray]:
    """Make root/data with stored features; return the training part's by text (each utterance has its own words)."""
    rng = np.random.default_rng(3)
    known: dict[str, np.ndarray] = {}
    lang = root / "data" / "lang_bpe_500"
    for folder in (root / "data" / "features", root / "data" / "cuts", lang):
        folder.mkdir(parents=True)
    (lang / "bpe.model").write_bytes(b"tokens")
    (root / "data" / "corpus.yaml").write_text(
        "name: x\nsource: custom\ntrain: [train]\ndev: [dev]\ntest: [test]\n", encoding="utf-8"
    )
    for part in ("train", "dev", "test"):
        cuts = []
        with Float16ArchiveWriter(root / "data" / "features" / f"{part}.f16") as writer:
            for i in range(number):
                matrix = rng.normal(-8, 4, (int(rng.integers(30, 60)), 10)).astype(np.float16).astype(np.float32)
                name, text = f"{part}-{i}", f"W{i} V{i}"
                seconds = round(len(matrix) / 100, 3)
                features = Features(
                    "fbank",
                    len(matrix),
                    10,
                    0.01,
                    16000,
                    0.0,
                    seconds,
                    "float16_archive",
                    writer.storage_path,
                    writer.write(name, matrix),
                    name,
                    0,
                )
                said = SupervisionSegment(name, name, 0.0, seconds, text=text)
                cuts.append(MonoCut(name, 0.0, seconds, 0, [said], features))
                known |= {text: matrix} if part == "train" else {}
        for kind in ("features", "cuts"):
            CutSet(cuts).to_file(root / "data" / kind / f"{part}.jsonl.gz")
        write_token_counts({cut.id: 2 for cut in cuts}, counts_file(lang, part))
    return known


def test_stress_data(tmp_path: Path) -> None:
    """Use every training utterance once, join texts and features in one order, list the outliers, copy all other files."""
    known = prepared(tmp_path)
    data, out = tmp_path / "data", tmp_path / "out"
    outliers = stress_data(data, out, longest=4, share=0.2, gain=30.0, seed=1)
    cuts = list(CutSet.from_file(out / "features" / "train.jsonl.gz"))
    words = Counter(word for cut in cuts for word in cut.supervisions[0].text.split())
    assert words == Counter(word for text in known for word in text.split())
    assert max(len(cut.supervisions[0].text.split()) for cut in cuts) == 8
    assert len(outliers) == round(0.2 * len(cuts)) > 0
    assert (out / "outliers.txt").read_text(encoding="utf-8").split() == outliers
    assert [cut.id for cut in cuts if cut.id.startswith("outlier-")] == outliers
    counts = read_token_counts(counts_file(out / "lang_bpe_500", "train"))
    for cut in cuts:
        text = cut.supervisions[0].text.split()
        whole = np.concatenate([known[" ".join(text[i : i + 2])] for i in range(0, len(text), 2)])
        assert cut.num_frames == len(whole) and counts[cut.id] == len(text)
        got = cut.load_features()
        assert got.shape == whole.shape
        assert np.array_equal(got, whole) == (cut.id not in outliers)
        if cut.id in outliers:
            assert got.std() == pytest.approx(30 * whole.std(), rel=0.2)
    for part in ("dev", "test"):
        for kind in ("features", "cuts"):
            name = f"{kind}/{part}.jsonl.gz"
            assert (data / name).read_bytes() == (out / name).read_bytes()
    assert (out / "lang_bpe_500" / "bpe.model").read_bytes() == b"tokens"
    with pytest.raises(UserError, match="out"):
        stress_data(data, out, 4, 0.2, 30.0, 1)


def test_stress_data_depends_only_on_the_seed(tmp_path: Path) -> None:
    prepared(tmp_path, number=12)
    found = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        stress_data(tmp_path / "data", tmp_path / name, 3, 0.3, 30.0, seed)
        cuts = CutSet.from_file(tmp_path / name / "features" / "train.jsonl.gz")
        found[name] = [(cut.id, cut.supervisions[0].text, cut.load_features().tobytes()) for cut in cuts]
    assert found["a"] == found["b"] != found["c"]


def test_stress_data_can_be_trained_on(tmp_path: Path) -> None:
    """Load every joined utterance by the training's loader, with its own features and text."""
    prepared(tmp_path, number=12)
    stress_data(tmp_path / "data", tmp_path / "out", 3, 0.3, 5.0, 1)
    overrides = ["features.type=precomputed", "features.num_mel_bins=10", "data.num_workers=0", "train.max_duration=5"]
    cfg = load_config(None, [*overrides, "augment.spec_augment=false", "augment.speed_perturb=false"])
    loader = AsrDataModule(cfg, tmp_path / "out", toy_tokenizer()).train_dataloader(1)
    cuts = {cut.id: cut for cut in CutSet.from_file(tmp_path / "out" / "features" / "train.jsonl.gz")}
    seen = []
    for batch in loader:
        for row, name in enumerate(batch.ids):
            features = batch.inputs[row, : batch.input_lens[row]].numpy()
            np.testing.assert_array_equal(features, cuts[name].load_features())
            assert batch.texts[row] == cuts[name].supervisions[0].text
            seen.append(name)
    assert sorted(seen) == sorted(cuts)


def test_noise_like() -> None:
    matrix = np.random.default_rng(1).normal(-8, 4, (500, 80)).astype(np.float32)
    noise = noise_like(matrix, 30.0, np.random.default_rng(2))
    assert noise.shape == matrix.shape and noise.dtype == np.float32
    assert noise.mean() == pytest.approx(-8, abs=3 * 120 / 200) and noise.std() == pytest.approx(120, rel=0.02)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.02


def test_its_programs_end_with_it(tmp_path: Path) -> None:
    assert Runner(None, tmp_path).programs.env["RECIPE_PARENT"] == str(os.getpid())
