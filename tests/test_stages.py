"""The shell's part: options, stages that are skipped when done, and how configuration is compared."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ROOT / "local" / "stages.sh"
SCRIPT = f"""
set -euo pipefail
cd "$1"; shift
source {STAGES}
usage() {{ echo help; }}
options="corpus corpus_dir data_dir conf stage stop_stage nproc python"
corpus=c corpus_dir='' data_dir='' conf='' stage=0 stop_stage=9 nproc='' python=true
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
    assert ran(run(place, "--nproc", "7")) == []


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
        (["--nproc", "0"], "option --nproc needs a whole number above 0"),
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
    for word in ("Stages", "--stage", "--stop-stage", "--corpus", "--corpus-dir", "--force", "--python", "--nproc"):
        assert word in text


def test_the_language_model_is_trained_where_it_is_asked_for(tmp_path: Path) -> None:
    def stage_3(*overrides: str) -> subprocess.CompletedProcess:
        command = ["bash", "run.sh", "--stage=3", "--stop-stage=3", "--python=true", f"--data-dir={tmp_path}/data"]
        command += [f"--exp-dir={tmp_path}/exp", *overrides]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert stage_3().stdout.splitlines()[-1].startswith("stage 3: lm: no language model is asked for")
    early = stage_3("lm.train=true")
    assert early.returncode == 1
    assert early.stderr == f"error: stage 3 (lm): {tmp_path}/data/lang is missing; stage 0 (prepare) makes it\n"
    for folder in ("data/lang", "data/manifests", "exp/lm"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "exp" / "lm" / "lm.pt").touch()
    assert "stage 3: lm: done in" in stage_3("lm.train=true").stdout
    own = tmp_path / "own.txt"
    for text in ("ONE", "TWO"):
        own.write_text(text)
        assert "stage 3: lm: done in" in stage_3("lm.train=true", f"lm.text={own}").stdout
        assert "stage 3: lm: done before" in stage_3("lm.train=true", f"lm.text={own}").stdout
