"""The shell's part: options, stages that are skipped when done, what makes them run again, logs."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

from tests.conftest import ROOT
from tests.test_readme import parsed

import pytest

SCRIPT = f"""
set -euo pipefail
cd {ROOT}
source local/stages.sh
cd "$1"; shift
usage() {{ echo help; }}
options="corpus corpus_dir data_dir conf stage stop_stage nj python"
stages="zero first second"
corpus=c corpus_dir='' data_dir='' conf='' stage=0 stop_stage=9 nj='' python={sys.executable}
parse_options "$@"
resolve_options
ensure_python
read_config
done_dir=.done log_dir=log
work() {{ echo "working $*"; echo "warning $*" >&2; mkdir -p out; }}
"""
RUN = """
stage first --config "decode lang" --input in --made-by zero --watch "$(value_of decode.hotwords)" --output out -- work a
stage second --input out --made-by first -- work b
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make a folder with a corpus, a configuration and an input."""
    (tmp_path / "egs" / "c").mkdir(parents=True)
    (tmp_path / "egs" / "c" / "corpus.yaml").touch()
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text("lang: {vocab_size: 5}\n")
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
    assert ran(again) == [] and again.stdout.count("skipped") == 2
    assert ran(run(place, "--nj", "7")) == []


def test_what_makes_a_stage_run_again_is_said_in_words(place: Path) -> None:
    run(place)
    changed = run(place, "lang.vocab_size=6", "decode.methods=[greedy_search]")
    assert ran(changed) == ["a"]
    assert "  lang.vocab_size was 5, is 6\n" in changed.stdout and '"], is ["greedy_search"]\n' in changed.stdout
    assert ran(run(place)) == ["a"]
    assert ran(run(place, "train.seed=3")) == []
    (place / "in").write_text("two")
    changed = run(place)
    assert ran(changed) == ["a"] and "  input in has changed\n" in changed.stdout
    (place / "out").rmdir()
    assert ran(run(place)) == ["a"]
    (place / "out" / "file").write_text("x")
    assert ran(run(place)) == ["b"]
    assert ran(run(place, "--force")) == ["a", "b"]


def test_the_same_values_in_another_form_are_the_same(place: Path) -> None:
    run(place, "decode.methods=[greedy_search, fast_beam_search]", "lang.vocab_size=6")
    for text in (
        "decode: {methods: [greedy_search, fast_beam_search]}\nlang: {vocab_size: 6}\n",
        "decode:\n  methods: ['greedy_search',\n    \"fast_beam_search\"]\nlang:\n    vocab_size:  6\n",
        "include: [more.yaml]\nlang:\n  vocab_size: 6  # six\n",
    ):
        (place / "more.yaml").write_text("decode:\n  methods:\n    - greedy_search\n    - fast_beam_search\n")
        (place / "own.yaml").write_text(text)
        assert ran(run(place, "--conf", "own.yaml")) == []


@pytest.mark.parametrize(
    "before, after",
    [
        ("methods: [greedy_search,\n    fast_beam_search]", "methods: [modified_beam_search,\n    fast_beam_search]"),
        ('hotwords: "words #1.txt"', 'hotwords: "words #2.txt"'),
        ("hotwords: >-\n    one", "hotwords: >-\n    two"),
    ],
)
def test_every_form_of_yaml_is_watched(place: Path, before: str, after: str) -> None:
    for text in (before, after):
        (place / "own.yaml").write_text(f"decode:\n  {text}\n")
        assert ran(run(place, "--conf", "own.yaml"))[:1] == ["a"]
        assert ran(run(place, "--conf", "own.yaml")) == []


@pytest.mark.parametrize("name", ["words #1.txt", "my words.txt", 'a "quoted" name', "back\\slash", "naïve.txt"])
def test_a_file_of_any_name_is_watched(place: Path, name: str) -> None:
    quoted = name.replace("'", "''")
    (place / "own.yaml").write_text(f"decode:\n  hotwords: '{quoted}'\n")
    for text in ("ONE", "TWO"):
        (place / name).write_text(text)
        assert "a" in ran(run(place, "--conf", "own.yaml"))
        assert ran(run(place, "--conf", "own.yaml")) == []


def test_links_are_followed(place: Path) -> None:
    (place / "target").mkdir()
    (place / "target" / "a.txt").write_text("1")
    (place / "in").unlink()
    (place / "in").symlink_to("target")
    assert ran(run(place)) == ["a", "b"]
    (place / "target" / "a.txt").write_text("2")
    assert ran(run(place)) == ["a"]
    (place / "target" / "b.flac").symlink_to(place / "audio")
    (place / "audio").write_text("1")
    assert ran(run(place)) == ["a"]
    (place / "audio").write_text("22")
    assert ran(run(place)) == ["a"]
    assert ran(run(place)) == []


def test_only_content_counts_so_that_copies_are_finished_too(place: Path) -> None:
    (place / "in").unlink()
    (place / "in").mkdir()
    for name, size in (("small.tsv", 10), ("model.pt", 17_000_000), ("sound.flac", 100)):
        (place / "in" / name).write_bytes(b"x" * size)
    assert ran(run(place)) == ["a", "b"]
    (place / "in" / "small.tsv").touch()
    assert ran(run(place)) == []
    copy = place / "copy"
    shutil.copytree(place, copy, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("copy"))
    os.utime(copy / "in" / "model.pt", (1, 1))
    assert ran(run(copy)) == []
    with (place / "in" / "model.pt").open("r+b") as file:  # the end of a checkpoint has its check sums
        file.seek(-1, 2)
        file.write(b"y")
    assert ran(run(place)) == ["a"]


def test_range_of_stages_and_missing_input(place: Path) -> None:
    early = run(place, "--stage", "2")
    assert early.returncode == 1 and "second" in early.stderr and "out" in early.stderr
    assert ran(run(place, "--stop-stage=1")) == ["a"]
    assert ran(run(place, "--stage", "second")) == ["b"]
    assert ran(run(place, "--stage=first", "--stop-stage", "first", "--force")) == ["a"]


def test_a_failed_stage_is_not_done_and_keeps_its_log(place: Path) -> None:
    failed = run(place, script="work() { echo so far; echo why >&2; return 3; }\n" + RUN)
    assert failed.returncode == 1 and "so far" in failed.stdout
    assert failed.stderr.splitlines()[0] == "why" and "log/first.log" in failed.stderr.splitlines()[1]
    assert {"so far", "why"} < set((place / "log" / "first.log").read_text().splitlines())
    assert ran(run(place)) == ["a", "b"]


def test_logs_hold_what_the_screen_shows_and_a_journal_tells_the_calls(place: Path) -> None:
    result = run(place, "lang.vocab_size=7")
    run(place, "--force", "lang.vocab_size=7")
    assert "working a" in result.stdout and "warning a" in result.stderr
    log = (place / "log" / "first.log").read_text().splitlines()
    assert log.count("working a") == log.count("warning a") == 2 and sum(line.startswith("== 20") for line in log) == 2
    rows = [line.split("\t") for line in (place / "log" / "journal.tsv").read_text().splitlines()]
    assert [row[2] for row in rows] == ["first", "second"] * 2
    assert all(len(row) == 6 and row[4] == "0" and row[5].endswith(" lang.vocab_size=7") for row in rows)


def test_bars_stay_on_the_terminal(place: Path) -> None:
    """With a terminal as standard error: tqdm's bar goes there, the log has lines alone."""
    program = "from local.common.progress import Progress\nwith Progress(3, 'bar') as p:\n    p.update(3)\nprint('after')"
    script = SCRIPT + f'PYTHONPATH={ROOT} stage first -- "$python" -c "{program}"\n'
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        result = subprocess.run(["bash", "-c", script, "test", str(place)], stdout=subprocess.PIPE, stderr=theirs, timeout=60)
        assert select.select([ours], [], [], 1)[0]
        shown = os.read(ours, 10000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == 0 and "bar:   0%" in shown
    log = (place / "log" / "first.log").read_text()
    assert "after" in log and "bar" not in log


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--nope"], ["--nope"]),
        (["--nope", "3"], ["--nope"]),
        (["--corpus_dir", "x"], ["--corpus_dir"]),
        (["word"], ["'word'"]),
        (["--stage"], ["--stage"]),
        (["--stage", "one"], ["--stage", "zero first second", "'one'"]),
        (["--stop-stage", "1.5"], ["--stop-stage", "'1.5'"]),
        (["--nj", "0"], ["--nj", "'0'"]),
        (["--corpus", "nix"], ["'nix'", "egs/ has c"]),
        (["--conf", "none.yaml"], ["--conf none.yaml"]),
        (["--corpus-dir", "/none"], ["--corpus-dir /none"]),
        (["--python", "no-such-python"], ["--python no-such-python"]),
        (["nonsense.key=3"], ["nonsense"]),
        (["train.num_epoch=3"], ["train.num_epoch=3", "num_epochs"]),
    ],
)
def test_wrong_options_and_keys_stop_with_one_line_also_if_all_is_done(place: Path, args: list[str], words: list[str]) -> None:
    ran(run(place))
    before = {path: path.read_bytes() for path in (place / ".done").iterdir()}
    result = run(place, *args)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert before == {path: path.read_bytes() for path in (place / ".done").iterdir()}


@pytest.mark.parametrize("program", ["prepare.sh", "run.sh"])
def test_help_lists_stages_and_options(program: str) -> None:
    text = subprocess.run(["bash", program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in ("Stages", "--stage", "--stop-stage", "--corpus", "--corpus-dir", "--force", "--python", "--nj"):
        assert word in text


def test_no_yaml_is_read_by_the_shell() -> None:
    for name in ("run.sh", "prepare.sh", "local/stages.sh", "test.sh"):
        text = (ROOT / name).read_text()
        assert "include" not in text and not any(word in text for word in ("config_values", "conf_files", "of_groups")), name


# ---- run.sh ----


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Make a folder with what run.sh's later stages read, and a Python that only notes what it is to run."""
    for folder in ("data/lang_bpe_500/num_tokens", "data/manifests", "exp/lm"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("bpe.model", "transcript.txt"):
        (tmp_path / "data" / "lang_bpe_500" / name).touch()
    for name in ("averaged.pt", "lm/lm.pt", "lm/bigram.arpa"):
        (tmp_path / "exp" / name).touch()
    python, exp = tmp_path / "python", tmp_path / "exp"
    python.write_text(
        f'#!/bin/sh\n[ "$2" != local.config ] || exec {sys.executable} "$@"\n'
        f'echo "$@" >> {tmp_path}/calls\nmkdir -p {exp}/decode\n'
        f"case $2 in local.tune) touch {exp}/tuned.yaml ;; local.wer) touch {exp}/wer.json; echo WER > {exp}/wer.md ;; esac\n"
    )
    python.chmod(0o755)
    return tmp_path


def run_sh(folder: Path, stage: int | str, last: int, *overrides: str) -> subprocess.CompletedProcess:
    command = ["bash", "run.sh", f"--stage={stage}", f"--stop-stage={last}", f"--python={folder}/python"]
    command += [f"--data-dir={folder}/data", f"--exp-dir={folder}/exp", "--conf=conf/base.yaml", *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def calls(folder: Path, stage: int | str, last: int, *overrides: str) -> list[str]:
    """Return what Python is called with, without -m and the folders; an error if a program is not given all overrides."""
    (folder / "calls").write_text("")
    done = run_sh(folder, stage, last, *overrides)
    assert done.returncode == 0, done.stderr
    lines = (folder / "calls").read_text().splitlines()
    end = " ".join(["--conf conf/base.yaml", *(o for o in overrides if not o.startswith("--"))])
    assert all(line.endswith(end) or line.startswith("-m local.wer ") for line in lines), lines
    for line in lines:  # printed, so that it can be copied
        assert line.split()[1] in done.stderr
    gone = (f"--data-dir {folder}/data", f"--exp-dir {folder}/exp", f"--checkpoint {folder}/exp/averaged.pt", end, "-m")
    for words in gone:
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
    found = calls(experiment, 0, 6, "--nproc=1", *options)
    assert len(found) == 12
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


def test_the_table_ends_the_output_also_if_all_is_done(experiment: Path) -> None:
    for _ in range(2):
        assert run_sh(experiment, 5, 6).stdout.splitlines()[-1] == "WER"


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
