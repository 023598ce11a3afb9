"""run.sh and prepare.sh: what each stage calls, and when; programs started by hand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.test_readme import parsed

import pytest

PYTHON = shlex.quote(sys.executable)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Make a folder with what run.sh's later stages read, and a Python that only notes what it is to run."""
    for folder in ("data/lang_bpe_500/num_tokens", "data/manifests", "exp/lm"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("bpe.model", "transcript.txt"):
        (tmp_path / "data" / "lang_bpe_500" / name).touch()
    for name in ("averaged.pt", "lm/lm.pt", "lm/bigram.arpa"):
        (tmp_path / "exp" / name).touch()
    python, exp, graph = tmp_path / "python", tmp_path / "exp", tmp_path / "data" / "lang_bpe_500" / "graph"
    python.write_text(
        f'#!/bin/sh\ncase $2 in local.config|local.lock_folder|local.with_parent) exec {PYTHON} "$@" ;; esac\n'
        f'echo "$@" >> {tmp_path}/calls\nmkdir -p {exp}/decode\n'
        f"case $2 in local.tune) touch {exp}/tuned.yaml ;; local.wer) touch {exp}/wer.json; echo WER > {exp}/wer.md ;;\n"
        f"local.prepare_graph) mkdir -p {graph}; touch {graph}/LG.npz ;;\n"
        f"local.report) touch {exp}/report.html; exit $(cat {tmp_path}/fails 2>/dev/null || echo 0) ;; esac\n"
    )
    python.chmod(0o755)
    return tmp_path


def run_sh(folder: Path, stage: int | str, last: int | str, *overrides: str) -> subprocess.CompletedProcess:
    """Run run.sh; last: "" for its default."""
    command = ["bash", "run.sh", f"--stage={stage}", f"--python={folder}/python"]
    command += [f"--stop-stage={last}"] if last != "" else []
    command += [f"--data-dir={folder}/data", f"--exp-dir={folder}/exp", "--conf=conf/base.yaml", *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def calls(folder: Path, stage: int | str, last: int | str, *overrides: str) -> list[str]:
    """Return what Python is called with, without -m and the folders; an error if a program is not given all overrides."""
    (folder / "calls").write_text("")
    done = run_sh(folder, stage, last, *overrides)
    assert done.returncode == 0, done.stderr
    lines = (folder / "calls").read_text().splitlines()
    end = " ".join(["--conf conf/base.yaml", *(o for o in overrides if not o.startswith("--"))])
    assert all(line.endswith(end) or line.startswith(("-m local.wer ", "-m local.report ")) for line in lines), lines
    for line in lines:  # printed, so that it can be copied
        assert line.split()[1] in done.stderr
    folders = f"--data-dir {folder}/data", f"--exp-dir {folder}/exp", f"--checkpoint {folder}/exp/averaged.pt"
    for words in (*folders, end, "-m", "--unit auto"):
        lines = [" ".join(line.replace(words, "", 1).split()) for line in lines]
    return lines


@pytest.mark.parametrize("yes", ["true", "yes", "on", "1", "TRUE", "True"])
def test_the_language_model_is_trained_if_the_configuration_says_so(experiment: Path, yes: str) -> None:
    assert calls(experiment, 3, 3, f"lm.train={yes}") == ["local.train_lm"]


def test_the_language_model_runs_again_if_its_inputs_change(experiment: Path) -> None:
    assert "lm.train" in run_sh(experiment, "lm", 3).stdout and calls(experiment, 3, 3) == []
    (experiment / "data" / "lang_bpe_500").rename(experiment / "away")
    early = run_sh(experiment, 3, 3, "lm.train=true")
    assert early.returncode == 1 and f"{experiment}/data/lang_bpe_500" in early.stderr and "prepare" in early.stderr
    (experiment / "away").rename(experiment / "data" / "lang_bpe_500")
    assert calls(experiment, 3, 3, "lm.train=true") == ["local.train_lm"]
    own = experiment / "own.txt"
    for text in ("ONE", "TWO"):
        own.write_text(text)
        assert calls(experiment, 3, 3, "lm.train=true", f"lm.text={own}") == ["local.train_lm"]
        assert calls(experiment, 3, 3, "lm.train=true", f"lm.text={own}") == []
    (experiment / "exp" / "lm" / "bigram.arpa").unlink()
    assert calls(experiment, 3, 3, "lm.train=true", f"lm.text={own}") == ["local.train_lm"]


def test_the_graph_is_made_if_a_method_needs_it_unless_it_was_made_by_hand(experiment: Path) -> None:
    methods, own = "decode.methods=[greedy_search,fast_beam_search_LG]", experiment / "own.txt"
    graph = experiment / "data" / "lang_bpe_500" / "graph" / "LG.npz"
    graph.parent.mkdir()
    graph.touch()
    assert calls(experiment, 3, 3, methods) == []
    graph.unlink()
    assert calls(experiment, 3, 3) == []
    assert calls(experiment, 3, 3, methods) == ["local.prepare_graph"]
    assert calls(experiment, 3, 3, methods) == []
    own.write_text("ONE")
    other = f"--exp-dir={experiment}/other"
    assert calls(experiment, 3, 3, methods, f"lm.text={own}", other) == ["local.prepare_graph"], "they share the graph"
    assert calls(experiment, 3, 3, methods, f"lm.text={own}") == []
    assert calls(experiment, 3, 3, methods) == ["local.prepare_graph"]
    graph.write_text("another order")
    for options in ([], [f"lm.text={own}"], ["--force"]):
        done = run_sh(experiment, 3, 3, methods, *options)
        assert would_run(done.stdout) == [] and str(graph) in done.stdout
    graph.unlink()
    assert calls(experiment, 3, 3, methods, f"lm.text={own}") == ["local.prepare_graph"]


def test_several_machines_run_the_training_alone(experiment: Path) -> None:
    (experiment / "data" / "cuts").mkdir()
    (experiment / "exp" / "checkpoints").mkdir()
    assert calls(experiment, 0, 6, "--nnodes=2", "--rdzv=here:1", "--nproc=3") == [
        "local.train --nproc 3 --nnodes 2 --rdzv here:1"
    ]
    for options, words in (
        (["--nnodes=2"], "--rdzv"),
        (["--nnodes=2", "--rdzv=here:1", "--force"], "--force"),
        (["--nnodes=0"], "--nnodes"),
        (["--nproc=x"], "--nproc"),
    ):
        wrong = run_sh(experiment, 0, 6, *options)
        assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and words in wrong.stderr
    command = ["bash", "run.sh", "--nnodes=2", "--rdzv=here:1", "--force"]  # the folder has its default name
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 1 and "exp/tiny" in wrong.stderr


def test_tuning_and_decoding_run_if_something_changed(experiment: Path) -> None:
    exp = experiment / "exp"
    assert calls(experiment, 4, 6) == ["local.decode", "local.wer"]
    assert calls(experiment, 4, 6) == []
    assert "tune" in run_sh(experiment, 4, 4).stdout
    lists = "tune.lm_scale=[0.1,0.2]"
    decode, both = f"local.decode --tuned {exp}/tuned.yaml", ["local.tune", f"local.decode --tuned {exp}/tuned.yaml"]
    assert calls(experiment, 4, 6, lists) == both
    assert calls(experiment, 4, 6, lists) == []
    (exp / "tuned.yaml").write_text("decode: {}")
    assert calls(experiment, 4, 6, lists) == [decode]
    (exp / "lm" / "lm.pt").write_text("another")
    assert calls(experiment, 4, 6, lists) == both
    (exp / "lm" / "bigram.arpa").unlink()
    assert calls(experiment, 4, 6, lists) == both
    (experiment / "data" / "cuts").mkdir()
    (experiment / "data" / "cuts" / "test.jsonl.gz").write_text("corrected transcripts")
    assert calls(experiment, 4, 6, lists) == both
    assert calls(experiment, 4, 6, lists) == []
    # The configuration's own value, but given: it is not tuned, and decoding must take it.
    given = "decode.lm_scale=0.3"
    assert calls(experiment, 4, 6, lists, given) == both
    assert calls(experiment, 4, 6, lists, given) == []
    hot = experiment / "hot.txt"
    assert calls(experiment, 4, 6, lists, f"decode.hotwords={hot}") == both
    hot.write_text("ONE")
    assert calls(experiment, 4, 6, lists, f"decode.hotwords={hot}") == both
    (exp / "tuned.yaml").unlink()
    alone = run_sh(experiment, 5, 5, lists)
    assert alone.returncode == 1 and f"{exp}/tuned.yaml" in alone.stderr and "tune" in alone.stderr


def test_other_audio_is_decoded_again(experiment: Path) -> None:
    """Cuts do not tell it. A graph that is as before is not written: the data may be of others."""
    methods = "decode.methods=[greedy_search,fast_beam_search_LG]"
    (done := experiment / "data" / ".done").mkdir()
    for content in ("1234 5", "1234 6"):
        (done / "source").write_text(content)
        assert calls(experiment, 5, 5) == ["local.decode"] and calls(experiment, 5, 5) == []
    calls(experiment, 3, 3, methods)
    written = (made := experiment / "data" / "lang_bpe_500" / "graph" / "LG.npz.stage").stat().st_mtime_ns
    calls(experiment, 3, 5, methods)
    assert made.stat().st_mtime_ns == written


def test_an_override_of_any_section_reaches_decoding(experiment: Path) -> None:
    """`calls` checks that every program gets it."""
    assert calls(experiment, 5, 5) == ["local.decode"]
    assert calls(experiment, "decode", 5, "data.test_parts=[dev]") == ["local.decode"]
    assert calls(experiment, 5, 5, "data.test_parts=[dev]") == []


def test_every_program_understands_its_call(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages of run.sh and prepare.sh, each call read by its program's own parser."""
    for folder in ("data/audio", "data/cuts", "data/features", "exp/checkpoints"):
        (experiment / folder).mkdir()
    options = [
        "lm.train=true",
        "tune.lm_scale=[0.1]",
        "features.type=precomputed",
        "augment.musan=musan",
        "lang.vocab_size=500",
    ]
    found = calls(experiment, 0, 8, "--nproc=1", *options)
    assert len(found) == 14
    for line in (experiment / "calls").read_text().splitlines():
        _, module, *words = line.split(" ")  # an empty argument leaves two blanks
        parsed(monkeypatch, module, words)


def test_earlier_decodings_are_not_deleted(experiment: Path) -> None:
    by_hand = experiment / "exp" / "decode" / "greedy_search" / "mine.jsonl"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_text("{}\n")
    calls(experiment, 5, 6)
    calls(experiment, 5, 6, "decode.beam=8")
    assert by_hand.read_text() == "{}\n"


def test_decoding_takes_the_tuned_average(experiment: Path) -> None:
    lists = "tune.average_num=[1]"
    calls(experiment, 4, 6, lists)
    (experiment / "exp" / "tuned.pt").touch()
    (found,) = calls(experiment, 5, 5, lists)
    assert f"--checkpoint {experiment}/exp/tuned.pt" in found
    assert calls(experiment, 5, 5) == ["local.decode"]


def test_export_runs_on_demand_alone(experiment: Path) -> None:
    exp = experiment / "exp"
    assert calls(experiment, 5, "") == ["local.decode", "local.wer", "local.report"]  # up to the default last stage
    (exp / "export").mkdir()
    ours = f"local.export --out {exp}/export"
    for stage in ("export", 8):
        calls(experiment, stage, "", f"decode.beam={4 + len(str(stage))}")
        (found,) = (experiment / "calls").read_text().splitlines()
        assert f"--lm {exp}/lm/lm.pt" in found and "--int8" in found and ours.split()[2] in found
        assert f"--checkpoint {exp}/averaged.pt" in found and f"--data-dir {experiment}/data" in found
    assert calls(experiment, "export", "", "decode.beam=5") == []  # done
    again = run_sh(experiment, "export", "", "decode.beam=6")
    assert "runs again" in again.stdout and "decode.beam" in again.stdout and "WER" not in again.stdout


def test_export_takes_the_tuned_average(experiment: Path) -> None:
    lists = "tune.average_num=[1]"
    calls(experiment, 4, 4, lists)
    (experiment / "exp" / "tuned.pt").touch()
    (found,) = calls(experiment, 8, 8, lists)
    assert f"--checkpoint {experiment}/exp/tuned.pt" in found and f"--tuned {experiment}/exp/tuned.yaml" in found


def test_the_table_ends_the_output_also_if_all_is_done(experiment: Path) -> None:
    for _ in range(2):
        assert run_sh(experiment, 5, 6).stdout.splitlines()[-1] == "WER"


def test_the_report_follows_the_table(experiment: Path) -> None:
    exp = experiment / "exp"
    (experiment / "fails").write_text("1")
    failed = run_sh(experiment, 5, "")
    assert failed.returncode == 1 and "WER" in failed.stdout.splitlines()  # the table is not lost
    assert "stage report" in failed.stderr and f"{exp}/log/report.log" in failed.stderr
    (experiment / "fails").write_text("0")
    assert calls(experiment, "report", "") == ["local.report"]
    assert calls(experiment, 5, "") == []
    assert run_sh(experiment, 5, "").stdout.splitlines()[-1].endswith(f"{exp}/report.html")
    for name in ("exp/train.csv", "exp/decode/more.jsonl", "data/cuts"):
        (experiment / name).write_text("1")
        assert calls(experiment, "report", "") == ["local.report"], name


@pytest.mark.parametrize("options", [("9", ""), ("0", "9"), ("reports", ""), ("-1", "0"), ("5", "4"), ("010", "")])
def test_a_stage_that_is_none_is_an_error(experiment: Path, options: tuple[str, str]) -> None:
    wrong = run_sh(experiment, *options)
    assert wrong.returncode == 1 and wrong.stdout == "" and wrong.stderr.count("\n") == 1
    assert "stage" in wrong.stderr and (("0 to 8" in wrong.stderr) or options == ("5", "4"))


def test_sets_are_decoded_beside_each_other(experiment: Path) -> None:
    assert calls(experiment, 5, "") == ["local.decode", "local.wer", "local.report"]
    assert calls(experiment, 5, 5, "--sets=dev") == ["local.decode --sets dev"]
    for sets in ("dev,test-other", "dev, test-other", " dev test-other "):
        found = calls(experiment, "decode", 5, f"--sets={sets}")
        assert found == (["local.decode --sets dev test-other"] if sets == "dev,test-other" else []), "done before"
    assert calls(experiment, 5, 5, "--sets=dev") == [] and calls(experiment, 5, 5) == []
    assert calls(experiment, 5, 5, "--sets=dev", "decode.beam=9") == ["local.decode --sets dev"]
    for sets in ("../dev", "dev --force", "-x"):
        wrong = run_sh(experiment, 5, 5, f"--sets={sets}")
        assert wrong.returncode == 1 and "--sets" in wrong.stderr and wrong.stderr.count("\n") == 1
    assert run_sh(experiment, 5, 5, "--sets=").returncode == 0
    for stage, last in ((6, 7), (2, 4)):
        wrong = run_sh(experiment, stage, last, "--sets=dev")
        assert wrong.returncode == 1 and "--sets" in wrong.stderr and "decode" in wrong.stderr and wrong.stdout == ""


# ---- --dry-run ----


def dry_run(folder: Path, stage: int | str, last: int | str, *overrides: str) -> str:
    """Return what run.sh --dry-run prints; an error if it changes a file or runs a program of a stage."""

    def files() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_size, p.stat().st_mtime_ns) for root in (folder, ROOT / "exp") for p in root.rglob("*")}

    before = files()
    done = run_sh(folder, stage, last, "--dry-run", *overrides)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert files() == before
    return done.stdout


def would_run(text: str) -> list[str]:
    """Return the stages of a dry run that would run."""
    return re.findall(r"^ *stage \d, (\w+): would run", text, flags=re.MULTILINE)


def test_a_dry_run_shows_stages_and_commands(experiment: Path) -> None:
    """Of the stages of prepare.sh too; what an earlier stage would make is not missing."""
    shutil.rmtree(experiment / "data")
    shutil.rmtree(experiment / "exp")
    (experiment / "calls").touch()
    options = ["lm.train=true", "tune.lm_scale=[0.1]", "features.type=precomputed", "augment.musan=musan"]
    said = dry_run(experiment, 0, 8, *options)
    preparing = ["audio", "manifests", "cuts", "cuts", "lang", "features"]
    running = ["train", "average", "lm", "tune", "decode", "score", "report", "export"]
    assert would_run(said) == preparing + running
    programs = [words.split()[2:] for words in re.findall(r"^ *\+ (.*)$", said, flags=re.MULTILINE)]
    assert [words[0] for words in programs if words] == [  # of ./prepare.sh too
        *("tiny", "local.get_audio", "local.prepare_manifests", "local.prepare_cuts", "local.prepare_noise"),
        *("local.prepare_lang", "local.compute_features", "local.train", "local.average", "local.train_lm", "local.tune"),
        *("local.decode", "local.wer", "local.report", "local.export"),
    ]
    lines = (experiment / "calls").read_text().splitlines()
    assert lines == [], "only what reads the configuration may run"
    said = dry_run(experiment, 0, "")
    assert said.count("skipped") == 3 and would_run(said)[-3:] == ["decode", "score", "report"]


def test_a_dry_run_says_what_was_done_and_what_follows_from_it(experiment: Path) -> None:
    calls(experiment, 4, 7)
    assert would_run(dry_run(experiment, 4, 7)) == [] and dry_run(experiment, 4, 7).count("done before") == 3
    said = dry_run(experiment, 4, 7, "decode.beam=9")
    assert would_run(said) == ["decode", "score", "report"]
    assert "decode.beam was 4, is 9" in said and f"input {experiment}/exp/decode would be made again" in said
    for folder in ("exp/checkpoints", "data/cuts"):
        (experiment / folder).mkdir()
    calls(experiment, 2, 2)
    assert would_run(dry_run(experiment, 2, 7, "average.num=1")) == ["average", "decode", "score", "report"]
    said = dry_run(experiment, 1, 1, "--force")
    assert would_run(said) == ["train"] and f"removes {experiment}/exp/checkpoints" in said
    (experiment / "exp" / "averaged.pt").unlink()
    missing = run_sh(experiment, "decode", 5, "--dry-run")
    assert missing.returncode == 1 and f"{experiment}/exp/averaged.pt" in missing.stderr and "average" in missing.stderr


@pytest.mark.parametrize("command, module", [("diagnose", "local"), ("ablation", "studies"), ("study", "studies")])
def test_other_commands(experiment: Path, command: str, module: str) -> None:
    def other() -> subprocess.CompletedProcess:
        options = [f"--data-dir={experiment}/data", f"--exp-dir={experiment}/exp", "--conf=conf/base.yaml", "train.seed=5"]
        line = ["bash", "run.sh", command, f"--python={experiment}/python", *options]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)

    (experiment / "data" / "lang_bpe_500" / "bpe.model").unlink()
    missing = other()
    assert missing.returncode == 1 and f"{experiment}/data/lang_bpe_500/bpe.model" in missing.stderr
    (experiment / "data" / "lang_bpe_500" / "bpe.model").touch()
    done = other()
    assert done.returncode == 0, done.stderr
    where = f"--data-dir {experiment}/data --exp-dir {experiment}/exp --conf conf/base.yaml train.seed=5"
    assert (experiment / "calls").read_text() == f"-m {module}.{command} {where}\n"
    assert (experiment / "exp" / "log" / f"{command}.log").is_file()
    assert "'studies'" in run_sh(experiment, "studies", 6).stderr


# ---- programs started by hand ----


@pytest.mark.parametrize("program", ["local/decode.py", "local/stream.py", "local/train.py", "benchmarks/bench_step.py"])
def test_threads_spin_equally_long_however_a_program_is_started(program: str) -> None:
    """OpenMP reads GOMP_SPINCOUNT when torch is loaded: it must be set by then."""
    code = (
        "import os, runpy, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            print('torch', os.environ.get('GOMP_SPINCOUNT'))\n"
        "            sys.meta_path.remove(self)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"sys.argv = ['x', '--help']\nrunpy.run_path('{program}', run_name='__main__')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)
    assert "torch 10000" in result.stdout.splitlines(), result.stderr
