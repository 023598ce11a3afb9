"""The table of real speech: its plan, the smaller data, and the report on fabricated results."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

from local.common.errors import UserError
from local.prepare_manifests import main as prepare_manifests
from studies import real_speech
from studies.programs import Programs
from studies.real_speech import Run, command, link_speakers, read_plan, speakers_of
from studies.real_speech_report import write_report
from tests.conftest import ROOT
from tests.speech_tree import make_part

import pytest

PLAN = ROOT / "studies" / "real_speech.yaml"
WRONG = [
    ("a: {keys: [x.y=1]}", "'a'"),
    ("b: {conf: c, seed: 1}", "'b'"),
    ("c: {conf: c, against: d}", "'c': against 'd'"),
]
REFS = {f"u-{i:02}": "ONE TWO THREE FOUR" for i in range(20)}


def write_experiment(folder: Path, wrong: int, method: str = "greedy_search") -> Path:
    """Write an experiment whose first `wrong` utterances have one substituted word."""
    decoded = folder / "decode" / method
    decoded.mkdir(parents=True)
    hyps = {i: ref.replace("TWO", "TEN") if n < wrong else ref for n, (i, ref) in enumerate(REFS.items())}
    lines = [json.dumps({"id": i, "ref": REFS[i], "hyp": hyps[i]}) + "\n" for i in REFS]
    (decoded / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "train.csv").write_text("epoch,step\n")
    return folder


def test_the_plan_has_three_seeds_of_baseline_and_best_and_its_configurations_load() -> None:
    runs = read_plan(PLAN)
    assert len({run.folder for run in runs}) == len(runs)
    for name in ("baseline", "best"):
        assert [run.seed for run in runs if run.name == name] == [1, 2, 3]
    assert all((ROOT / real_speech.CONF / f"{run.conf}.yaml").is_file() for run in runs)
    folders = {run.name: run.data for run in runs}  # other tokens or copies need other data
    assert folders["baseline"] == folders["ctc"] == "mini_librispeech"
    assert len({folders[name] for name in ("baseline", "speeds", "tokens-200", "best-1.2h", "best-2.4h")}) == 5


@pytest.mark.parametrize(("text", "named"), WRONG)
def test_a_wrong_plan_names_the_run(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"plan.yaml: run {named}"):
        read_plan(tmp_path / "plan.yaml")


def test_run_sh_takes_the_commands(tmp_path: Path) -> None:
    for run in (Run("a", "baseline", ("loss.ctc_scale=0.2",), None, 1, "a"), Run("b", "mini_librispeech", (), 1.2, 1, "a")):
        call = command(run, tmp_path / "exp", tmp_path, ["--stop-stage", "score", "--dry-run"])
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert str(tmp_path / "exp" / run.folder) in done.stdout


def test_each_configuration_prepares_the_folder_that_it_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`best` computes features in training and `ctc` needs them stored; smaller data need the manifests of the whole."""
    calls: list[list[str]] = []

    class Recorded(Programs):
        def run(self, command: Sequence[str], log: Path, cwd: Path | None = None) -> int:
            calls.append(list(command))
            return 0

    monkeypatch.setattr(real_speech, "find_tree", lambda tree: tree)
    monkeypatch.setattr(real_speech, "link_speakers", lambda *_: tmp_path / "few")
    runs = {run.name: run for run in read_plan(PLAN) if run.seed == 1}
    real_speech.prepare([runs["best"], runs["ctc"]], tmp_path, tmp_path, Recorded())
    assert [call[call.index("--conf") + 1] for call in calls] == [
        f"{real_speech.CONF}/{c}.yaml" for c in ("mini_librispeech", "baseline")
    ]
    calls.clear()
    audio = real_speech.prepare([runs["tokens-200"], runs["best-1.2h"]], tmp_path, tmp_path, Recorded())
    assert [Path(call[call.index("--data-dir") + 1]).name for call in calls] == list(audio)
    assert list(audio) == [real_speech.CORPUS, "mini_librispeech-tokens-200", "mini_librispeech-1.2h"]
    assert "lang.vocab_size=200" not in calls[0] and audio["mini_librispeech-1.2h"] == tmp_path / "few"


def test_fewer_hours_are_some_of_the_same_speakers(tmp_path: Path) -> None:
    tree, data = tmp_path / "LibriSpeech", tmp_path / "data"
    make_part(tree, "train-clean-5", speakers=12, utterances=3)
    make_part(tree, "dev-clean-2", speakers=2, utterances=1)
    corpus = str(ROOT / "egs" / "mini_librispeech" / "corpus.yaml")
    prepare_manifests(["--corpus-yaml", corpus, "--corpus-dir", str(tree), "--data-dir", str(data)])
    hours = 2.0 * 3 * 9 / 3600  # of the nine training speakers, three utterances each, two seconds long on average
    few, many, all_ = (speakers_of(data, share * hours) for share in (0.25, 0.5, 2))
    assert 1 <= len(few) < len(many) < len(all_) == 9 and few == many[: len(few)] and many == all_[: len(many)]
    out = link_speakers(tree, data, 0.25 * hours, tmp_path / "few")
    assert sorted(p.name for p in (out / "train-clean-5").iterdir()) == few
    dev = {segment.speaker for segment in real_speech.supervisions(data, "dev")}
    assert {p.name for p in (out / "dev").iterdir()} == dev and not dev & set(all_)
    prepare_manifests(["--corpus-yaml", corpus, "--corpus-dir", str(out), "--data-dir", str(tmp_path / "less")])
    assert {s.speaker for s in real_speech.supervisions(tmp_path / "less", "dev")} == dev
    assert {s.speaker for s in real_speech.supervisions(tmp_path / "less", "train-clean-5")} == set(few)


def test_the_table_has_the_mean_of_the_seeds_and_compares_those_that_both_runs_have(tmp_path: Path) -> None:
    """80 words each: the first run has 16 and 8 errors, the second 4 with seed 1 alone."""
    first = {seed: write_experiment(tmp_path / f"a-{seed}", wrong) for seed, wrong in ((1, 16), (2, 8))}
    second = {2: tmp_path / "b-2", 1: write_experiment(tmp_path / "b-1", 4)}
    (tmp_path / "b-2").mkdir()  # its training has begun
    text = write_report(tmp_path, {"a": first, "b": second, "c": {1: tmp_path / "c-1"}}, dict.fromkeys("abc", "a"), "test")
    assert text == (tmp_path / "table.md").read_text()
    a, b = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(("| a ", "| b "))]
    assert a[1:5] == ["2", "greedy_search", "15.00", "20.00 10.00"] and a[6] == "-"
    assert b[1:5] == ["1", "greedy_search", "5.00", "5.00"]
    assert b[6].startswith("a: -75.0 %, significant")
    low, high = map(float, a[5].split(" - "))
    assert low < 15.0 < high
    # 24 of 40 utterances have one error in four words
    assert (high - low) / 2 == pytest.approx(100 / 4 * 1.96 * math.sqrt(0.6 * 0.4 / 40), rel=0.1)
    head, *rows = [line.split("\t") for line in (tmp_path / "errors.tsv").read_text().splitlines()]
    assert head == ["utterance", "words", "a-1 greedy_search", "a-2 greedy_search", "b-1 greedy_search"]
    assert [sum(int(row[i]) for row in rows) for i in range(1, 5)] == [80, 16, 8, 4]
