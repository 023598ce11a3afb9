"""local/stages.sh: options, stages that are skipped when done, what makes them run again, logs."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

from tests.conftest import ROOT

import pytest

SCRIPT = f"""
set -euo pipefail
cd {shlex.quote(str(ROOT))}
source local/stages.sh
cd "$1"; shift
usage() {{ echo help; }}
options="corpus corpus_dir data_dir conf stage stop_stage nj python"
stages="zero first second"
corpus=c corpus_dir='' data_dir='' conf='' stage=0 stop_stage=2 nj='' python={shlex.quote(sys.executable)}
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


def test_force_alone_removes_what_a_stage_made(place: Path) -> None:
    script = "work() { echo working a; mkdir -p out; touch new; ls out; }\n"
    script += "stage first --config lang --output out --clear out --clear new -- work"
    run(place, script=script)
    (place / "out" / "kept").touch()
    again = run(place, "lang.vocab_size=6", script=script)
    assert ran(again) == ["a"] and "kept" in again.stdout.splitlines()
    again = run(place, "lang.vocab_size=6", "--force", script=script)
    assert ran(again) == ["a"] and "kept" not in again.stdout.splitlines()


def test_a_value_may_be_empty(place: Path) -> None:
    assert ran(run(place, "decode.hotwords=")) == ["a", "b"] and ran(run(place, "decode.hotwords=null")) == []


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


@pytest.mark.parametrize("name", ["-my audio", "my audio"])
def test_a_folder_of_any_name_gives_its_name_to_the_data(place: Path, name: str) -> None:
    """A name that begins with a dash was taken for an option by realpath, basename and cd."""
    (place / name).mkdir()
    script = 'corpus=custom; name_corpus; (cd "$corpus_dir"); echo "$name"; echo "$(fingerprint "$corpus_dir")"'
    done = run(place, "--corpus-dir", name, script=script)
    assert not done.stderr
    before = done.stdout.splitlines()
    assert before[0] == name
    (place / name / "a.wav").write_text("x")
    assert run(place, "--corpus-dir", name, script=script).stdout.splitlines()[1] != before[1]


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
        (["--stop-stage", "3"], ["--stop-stage", "0 to 2", "'3'"]),
        (["--stage", "99999999999999999999"], ["--stage", "0 to 2"]),
        (["--stage", "2", "--stop-stage", "first"], ["--stage 2", "--stop-stage first"]),
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
    scripts = [*ROOT.glob("*.sh"), *(ROOT / "local").glob("*.sh")]
    assert len(scripts) >= 6
    for name in scripts:
        text = name.read_text()
        assert "include" not in text and not any(word in text for word in ("config_values", "conf_files", "of_groups")), name


def test_of_the_downloads_a_corpus_counts_its_own_parts(place: Path) -> None:
    """Other corpora lie beside them."""
    for folder in ("LibriSpeech/dev-clean", "LibriSpeech/dev-clean-2", "LibriSpeech/train-clean-5", "musan/noise"):
        (place / "download" / folder).mkdir(parents=True)
    corpus = place / "egs" / "c" / "corpus.yaml"
    corpus.write_text("# speech\ntrain: [train-clean-5]  # musan/noise\ndev: [dev-clean-2]\n")
    function = subprocess.run(
        ["sed", "-n", "/^name_source()/,/^}/p", str(ROOT / "prepare.sh")], capture_output=True, text=True, check=True
    ).stdout
    script = function + 'parts="data.dev_parts data.test_parts" audio=download source=()\nname_source\n'
    script += 'printf "%s\\n" "${source[@]}"\n'

    def inputs(*overrides: str) -> list[str]:
        said = run(place, *overrides, script=script)
        assert said.returncode == 0, said.stderr
        return [line for line in said.stdout.splitlines() if line.startswith("download")]

    assert inputs() == ["download/LibriSpeech/dev-clean-2", "download/LibriSpeech/train-clean-5"]
    assert "download/LibriSpeech/dev-clean" in inputs("data.test_parts=[dev-clean]")
    corpus.write_text("train: [other]\n")
    assert inputs() == ["download"]
