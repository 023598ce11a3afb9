"""The shell's part: options, stages that are skipped when done, and how configuration is compared."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.conftest import ROOT

import pytest

STAGES = ROOT / "local" / "stages.sh"
SCRIPT = f"""
set -euo pipefail
cd "$1"; shift
source {STAGES}
usage() {{ echo help; }}
options="corpus corpus_dir data_dir conf stage stop_stage nj python"
corpus=c corpus_dir='' data_dir='' conf='' stage=0 stop_stage=9 nj='' python=true
parse_options "$@"
resolve_options
ensure_python
work() {{ echo "working $*"; mkdir -p out; }}
"""
RUN = """
run_stage 1 "first" .done/1 --config "data.parts lang" --input in --made-by "stage 0" --output out -- work a
run_stage 2 "second" .done/2 --input out --made-by "stage 1" -- work b
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a corpus, a configuration and an input."""
    (tmp_path / "egs" / "c").mkdir(parents=True)
    (tmp_path / "egs" / "c" / "corpus.yaml").touch()
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text("data:\n  parts: null  # a comment\n  other: 1\nlang:\n  size: 5\n")
    (tmp_path / "in").write_text("one")
    return tmp_path


def run(place: Path, *args: str, script: str = RUN) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", SCRIPT + script, "test", str(place), *args], capture_output=True, text=True, timeout=60
    )


def ran(result: subprocess.CompletedProcess) -> list[str]:
    assert result.returncode == 0, result.stderr
    return [line.removeprefix("working ") for line in result.stdout.splitlines() if line.startswith("working")]


def test_finished_stages_are_skipped(place: Path) -> None:
    assert ran(run(place)) == ["a", "b"]
    again = run(place)
    assert ran(again) == []
    assert again.stdout.count("done before, skipped") == 2
    assert ran(run(place, "--nj", "7")) == []


def test_what_makes_a_stage_run_again(place: Path) -> None:
    run(place)
    changed = run(place, "lang.size=6")
    assert ran(changed) == ["a"] and "now: config lang.size 6" in changed.stdout
    assert ran(run(place)) == ["a"]
    assert ran(run(place, "data.other=3")) == []
    (place / "in").write_text("two")
    assert ran(run(place)) == ["a"]
    (place / "out").rmdir()
    assert ran(run(place)) == ["a"]
    (place / "out" / "file").write_text("x")
    assert ran(run(place)) == ["b"]
    assert ran(run(place, "--force")) == ["a", "b"]


def test_the_same_values_in_another_form_are_the_same(place: Path) -> None:
    run(place, "data.parts=[a, b]", "lang.size=6")
    for text in (
        "data: {parts: [a, b], x: {y: 1}}\nlang: {size: 6}\n",
        "data:\n  parts: ['a', \"b\"]\nlang:\n    size:  6\n",
        "include: [more.yaml]\nlang:\n  size: 6  # six\n",
    ):
        (place / "conf" / "more.yaml").write_text("data:\n  parts: [a, b]\n")
        (place / "own.yaml").write_text(text)
        assert ran(run(place, "--conf", "own.yaml")) == []
    (place / "own.yaml").write_text("data:\n  parts:\n    - a\n    - c\nlang: {size: 6}\n")
    assert ran(run(place, "--conf", "own.yaml")) == ["a"]


def test_range_of_stages_and_missing_input(place: Path) -> None:
    early = run(place, "--stage", "2")
    assert early.returncode == 1 and early.stderr == "error: stage 2 (second): out is missing; stage 1 makes it\n"
    assert ran(run(place, "--stop-stage=1")) == ["a"]
    assert ran(run(place, "--stage", "2")) == ["b"]


def test_a_failed_stage_is_not_done(place: Path) -> None:
    failed = run(place, script="work() { return 3; }\n" + RUN)
    assert failed.returncode == 1 and "stage 1 (first) failed" in failed.stderr
    assert ran(run(place)) == ["a", "b"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--nope"], "unknown option '--nope'"),
        (["--nope", "3"], "unknown option '--nope'"),
        (["--corpus_dir", "x"], "unknown option '--corpus_dir'"),
        (["word"], "unknown argument 'word'"),
        (["--stage"], "option --stage needs a value"),
        (["--stage", "one"], "option --stage needs a whole number"),
        (["--nj", "0"], "option --nj needs a whole number above 0"),
        (["--corpus", "nix"], "no corpus 'nix': egs/ has c"),
        (["--conf", "none.yaml"], "--conf none.yaml: no such file"),
        (["--corpus-dir", "/none"], "--corpus-dir /none: no such folder"),
        (["--python", "no-such-python"], "--python no-such-python: no such program"),
    ],
)
def test_wrong_options_stop_with_one_line(place: Path, args: list[str], message: str) -> None:
    result = run(place, *args)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: " + message) and result.stderr.count("\n") == 1


@pytest.mark.parametrize("program", ["prepare.sh", "run.sh"])
def test_help_lists_stages_and_options(program: str) -> None:
    if not (ROOT / program).exists():
        pytest.skip(f"needs {program}")
    text = subprocess.run(["bash", program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in ("Stages", "--stage", "--stop-stage", "--corpus", "--corpus-dir", "--force", "--python", "--nj"):
        assert word in text


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A folder with what run.sh's later stages read, and a Python that notes what it is to run and writes next to nothing."""
    for folder in ("data/lang", "data/manifests", "exp/lm"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("averaged.pt", "lm/lm.pt", "lm/bigram.arpa"):
        (tmp_path / "exp" / name).touch()
    python = tmp_path / "python"
    exp = tmp_path / "exp"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nmkdir -p {exp}/decode\n'
        f"case $1 in local/tune.py) touch {exp}/tuned.yaml ;; local/wer.py) touch {exp}/wer.json {exp}/wer.md ;; esac\n"
    )
    python.chmod(0o755)
    return tmp_path


def run_sh(folder: Path, stage: int | str, last: int, *overrides: str) -> subprocess.CompletedProcess:
    command = ["bash", "run.sh", f"--stage={stage}", f"--stop-stage={last}", f"--python={folder}/python"]
    command += [f"--data-dir={folder}/data", f"--exp-dir={folder}/exp", "--conf=conf/base.yaml", *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_language_model_is_trained_where_it_is_asked_for(experiment: Path) -> None:
    assert run_sh(experiment, 3, 3).stdout.splitlines()[-1].startswith("stage 3: lm: no language model is asked for")
    (experiment / "data" / "lang").rename(experiment / "away")
    early = run_sh(experiment, 3, 3, "lm.train=true")
    assert early.returncode == 1
    assert early.stderr == f"error: stage 3 (lm): {experiment}/data/lang is missing; stage 0 (prepare) makes it\n"
    (experiment / "away").rename(experiment / "data" / "lang")
    assert "stage 3: lm: done in" in run_sh(experiment, 3, 3, "lm.train=true").stdout
    own = experiment / "own.txt"
    for text in ("ONE", "TWO"):
        own.write_text(text)
        assert "stage 3: lm: done in" in run_sh(experiment, 3, 3, "lm.train=true", f"lm.text={own}").stdout
        assert "stage 3: lm: done before" in run_sh(experiment, 3, 3, "lm.train=true", f"lm.text={own}").stdout
    (experiment / "exp" / "lm" / "bigram.arpa").unlink()
    assert "stage 3: lm: done in" in run_sh(experiment, 3, 3, "lm.train=true", f"lm.text={own}").stdout


def test_several_machines_run_the_training_alone(experiment: Path) -> None:
    (experiment / "data" / "cuts").mkdir()
    (experiment / "data" / "lang" / "bpe.model").touch()
    (experiment / "exp" / "checkpoints").mkdir()
    done = run_sh(experiment, 0, 6, "--nnodes=2", "--rdzv=here:1", "--nproc=3")
    assert done.returncode == 0, done.stderr
    (call,) = (experiment / "calls").read_text().splitlines()
    assert call.startswith("local/train.py") and call.endswith("--nproc 3 --nnodes 2 --rdzv here:1")
    for options, message in (
        (["--nnodes=2"], "--nnodes needs --rdzv HOST:PORT"),
        (["--nnodes=2", "--rdzv=here:1", "--force"], "--force with --nnodes"),
        (["--nnodes=0"], "option --nnodes needs a whole number above 0"),
        (["--nproc=x"], "option --nproc needs a whole number"),
    ):
        wrong = run_sh(experiment, 0, 6, *options)
        assert wrong.returncode == 1 and wrong.stderr.startswith("error: " + message)


def programs(folder: Path, *overrides: str) -> list[str]:
    """The programs that stages 4 to 6 run, and what they are given after the configuration."""
    (folder / "calls").write_text("")
    done = run_sh(folder, 4, 6, *overrides)
    assert done.returncode == 0, done.stderr
    lines = (folder / "calls").read_text().splitlines()
    return [" ".join([line.split()[0][6:], *line.partition("conf/base.yaml")[2].split()]) for line in lines]


def test_tuning_and_decoding_run_when_something_changed(experiment: Path) -> None:
    exp = experiment / "exp"
    assert programs(experiment) == ["decode.py", "wer.py"]
    assert programs(experiment) == []
    assert "stage 4: tune: nothing is to be tuned" in run_sh(experiment, 4, 4).stdout
    lists = "tune.lm_scale=[0.1, 0.2]"
    with_tuned = f"decode.py --tuned {exp}/tuned.yaml"
    assert programs(experiment, lists) == [f"tune.py {lists}", with_tuned]
    assert programs(experiment, lists) == []
    (exp / "tuned.yaml").write_text("decode: {}")
    assert programs(experiment, lists) == [with_tuned]
    (exp / "lm" / "lm.pt").write_text("another")
    assert programs(experiment, lists) == [f"tune.py {lists}", with_tuned]
    (exp / "lm" / "bigram.arpa").unlink()
    assert programs(experiment, lists) == [f"tune.py {lists}", with_tuned]
    # The configuration's own value, but given: it is not tuned, and decoding must take it.
    given = "decode.lm_scale=0.3"
    assert programs(experiment, lists, given) == [f"tune.py {lists} {given}", f"{with_tuned} {given}"]
    assert programs(experiment, lists, given) == []
    hot = experiment / "hot.txt"
    assert len(programs(experiment, lists, f"decode.hotwords={hot}")) == 2
    hot.write_text("ONE")
    assert len(programs(experiment, lists, f"decode.hotwords={hot}")) == 2
    assert programs(experiment) == ["decode.py"]
    (exp / "tuned.yaml").unlink()
    alone = run_sh(experiment, 5, 5, lists)
    assert alone.stderr == f"error: stage 5 (decode): {exp}/tuned.yaml is missing; stage 4 (tune) makes it\n"


def test_decoding_takes_the_tuned_average(experiment: Path) -> None:
    lists = "tune.average_num=[1]"
    programs(experiment, lists)
    (experiment / "exp" / "tuned.pt").touch()
    (experiment / "calls").write_text("")
    run_sh(experiment, 5, 5, lists)
    assert f"--checkpoint {experiment}/exp/tuned.pt" in (experiment / "calls").read_text()
    (experiment / "calls").write_text("")
    run_sh(experiment, 5, 5)
    assert f"--checkpoint {experiment}/exp/averaged.pt" in (experiment / "calls").read_text()


def test_stages_with_a_name(experiment: Path) -> None:
    def looked(stage: str) -> list[str]:
        (experiment / "calls").write_text("")
        done = run_sh(experiment, stage, 6, "train.seed=5")
        assert done.returncode == 0, done.stderr
        return (experiment / "calls").read_text().splitlines()

    data = experiment / "data"
    where = f"--data-dir {data} --exp-dir {experiment}/exp --conf conf/base.yaml train.seed=5"
    missing = run_sh(experiment, "study", 6)
    assert missing.stderr == f"error: stage study: {data}/lang/bpe.model is missing; stage 0 (prepare) makes it\n"
    (data / "lang").mkdir(exist_ok=True)
    (data / "lang" / "bpe.model").touch()
    assert looked("diagnose") == [f"local/diagnose.py {where}"]
    assert looked("ablation") == [f"studies/ablation.py {where}"]
    assert looked("study") == [f"studies/study.py {where}"]
    assert "needs a whole number, not 'studies'" in run_sh(experiment, "studies", 6).stderr
