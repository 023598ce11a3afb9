"""local/stages.sh: a finished stage runs again if what it made is gone, or what it read has changed behind its time."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT
from tests.test_stages import place, ran, run

import pytest

assert place  # the fixture
HERE, PYTHON = shlex.quote(str(ROOT)), shlex.quote(sys.executable)
MAKES = """
work() { echo "working $*"; mkdir -p out/deep; echo 1234 > out/one; echo 12 > out/deep/two; }
stage first --config "decode lang" --input in --made-by zero --output out --also extra --not out/others -- work a
"""


def again(place: Path) -> tuple[list[str], str]:
    result = run(place, script=MAKES)
    return ran(result), result.stdout


def test_a_stage_runs_again_if_a_file_that_it_made_is_gone_or_cut(place: Path) -> None:
    assert again(place)[0] == ["a"] and again(place)[0] == []
    (place / "out" / "deep" / "two").unlink()
    found, said = again(place)
    assert found == ["a"] and "\n  output out/deep/two is gone\n" in said
    (place / "out" / "one").write_text("12")
    found, said = again(place)
    assert found == ["a"] and "\n  output out/one has changed\n" in said
    (place / "out").rename(place / "away")
    found, said = again(place)
    assert found == ["a"] and "\n  output out is gone\n" in said
    assert again(place)[0] == []


def test_many_files_that_are_gone_are_made_again(place: Path) -> None:
    script = "work() { echo working a; mkdir -p out; touch out/$(printf %0100d 1){0000..1999}; }\n"
    script += "stage first --input in --made-by zero --output out -- work"
    assert ran(run(place, script=script)) == ["a"]
    for path in (place / "out").iterdir():
        path.unlink()
    result = run(place, script=script)
    assert ran(result) == ["a"] and result.stdout.count(" is gone\n") == 5


def test_what_others_put_beside_an_output_does_not_count(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "others").write_text("1")
    again(place)
    (place / "out" / "others").write_text("22")
    (place / "out" / "more").touch()
    (place / "out" / ".lock").touch()
    assert again(place)[0] == []
    (place / "out" / ".tmp-1-one").touch()  # of a killed program
    assert again(place)[0] == []
    (place / "out" / "others").unlink()
    assert again(place)[0] == []
    (place / "extra").touch()
    assert again(place)[0] == []


def test_an_output_that_may_be_missing_counts_once_it_was_made(place: Path) -> None:
    (place / "extra").write_text("x")
    assert again(place)[0] == ["a"]
    (place / "extra").unlink()
    assert again(place)[0] == ["a"] and again(place)[0] == []


def test_a_marker_without_files_counts_too(place: Path) -> None:
    """As older versions wrote it."""
    again(place)
    marker = place / ".done" / "first"
    marker.write_text("".join(line for line in marker.read_text().splitlines(True) if not line.startswith("made ")))
    assert again(place)[0] == []


@pytest.mark.parametrize("name", ["a=b", "b (1) [x]*?", "c'd\"e", "back\\slash", "-dash", "two  blanks "])
def test_names_of_outputs_and_folders(place: Path, name: str) -> None:
    """Awk takes an argument with `=` for an assignment; the shell expands others."""
    folder = place / name
    folder.mkdir()
    script = """
    done_dir="./$dir/.done" log_dir="./$dir/log"
    work() { echo "working $*"; mkdir -p "./$dir/out"; echo 1234 > "./$dir/out/$dir"; }
    stage first --config lang --input in --made-by zero --output "./$dir/out" --not "./$dir/out/x" -- work a
    """
    script = "dir=$(cat name)\n" + script
    (place / "name").write_text(name)
    (place / "in").write_text("1")
    assert ran(run(place, script=script)) == ["a"]
    assert ran(run(place, script=script)) == []
    changed = run(place, "lang.vocab_size=6", script=script)
    assert ran(changed) == ["a"] and "  lang.vocab_size was 5, is 6\n" in changed.stdout
    (folder / "out" / name).unlink()
    assert ran(run(place, "lang.vocab_size=6", script=script)) == ["a"]


def replaced(path: Path, at: int) -> None:
    """Change one byte of a file; its size and its time, to the nanosecond, stay."""
    before = os.stat(path)
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ["table.tsv", "sound.wav", "sound.flac"])
def test_other_content_of_the_same_size_and_time_is_seen(place: Path, name: str) -> None:
    (place / "in").unlink()
    (place / "in").mkdir()
    size = 20_000_000 if name == "table.tsv" else 50_000
    (place / "in" / name).write_bytes(b"x" * size)
    assert again(place)[0] == ["a"] and again(place)[0] == []
    replaced(place / "in" / name, size // 2)
    found, said = again(place)
    assert found == ["a"] and "  input in has changed\n" in said


def test_of_much_audio_the_time_is_seen(place: Path) -> None:
    (place / "in").unlink()
    (place / "in").mkdir()
    with (place / "in" / "sound.wav").open("wb") as file:
        file.truncate(2**27 + 1)  # a hole, which takes no room
    again(place)
    assert again(place)[0] == []
    os.utime(place / "in" / "sound.wav", ns=(5, 5))
    assert again(place)[0] == ["a"]


# ---- what the stages of run.sh and prepare.sh make ----

MADE = {  # module: what it makes, in the folders of `pipeline`
    "local.prepare_manifests": ["data/corpus.yaml", "data/manifests/train.jsonl.gz"],
    "local.prepare_cuts": ["data/cuts/train.jsonl.gz"],
    "local.prepare_lang": [
        "data/lang_bpe_500/bpe.model",
        "data/lang_bpe_500/num_tokens/train.tsv",
        "data/lang_bpe_500/transcript.txt",
    ],
    "local.compute_features": ["data/features/train.jsonl.gz", "data/features/train/1.f16"],
    "local.train": ["exp/checkpoints/epoch-1.pt"],
    "local.average": ["exp/averaged.pt"],
    "local.train_lm": ["exp/lm/lm.pt", "exp/lm/bigram.arpa", "exp/lm/perplexity.json"],
    "local.tune": ["exp/tuned.yaml", "exp/tuned.pt", "exp/tune.tsv"],
    "local.decode": ["exp/decode/greedy_search/test.jsonl", "exp/decode/greedy_search/test.stats.json"],
    "local.wer": ["exp/wer.json", "exp/wer.md", "exp/wer.png", "exp/errors/test.greedy_search.txt"],
    "local.report": ["exp/report.html"],
}
KEYS = ("features.type=precomputed", "lm.train=true", "tune.lm_scale=[0.1]")


@pytest.fixture
def pipeline(tmp_path: Path) -> Callable[[], list[str]]:
    """Return a function that runs run.sh over programs that only make their files; it returns what it ran."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    lines = [f'#!/bin/sh\ncd {HERE}; case $2 in local.config|local.lock_folder|local.with_parent) exec {PYTHON} "$@" ;; esac']
    lines += [f"echo $2 >> {calls}; case $2 in"]
    for module, files in MADE.items():
        making = [f'mkdir -p {(tmp_path / file).parent}; echo made > "{tmp_path / file}"' for file in files]
        lines.append(f"{module}) {'; '.join(making)} ;;")
    python.write_text("\n".join([*lines, "esac\n"]))
    python.chmod(0o755)
    (tmp_path / "audio").mkdir()

    def go() -> list[str]:
        calls.write_text("")
        command = ["bash", "run.sh", f"--python={python}", "--corpus=custom", f"--corpus-dir={tmp_path}/audio"]
        command += [f"--data-dir={tmp_path}/data", f"--exp-dir={tmp_path}/exp", "--conf=conf/base.yaml", *KEYS]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return [line for line in calls.read_text().split() if line != "local.check_data"]

    return go


@pytest.mark.slow
def test_every_file_that_a_stage_makes_is_made_again(pipeline: Callable[[], list[str]], tmp_path: Path) -> None:
    """Only the stages that made them run: what they make is as before. Each round loses a file of every stage."""
    assert pipeline() == ["local.get_audio", *MADE]
    for number in range(max(map(len, MADE.values()))):
        for files in MADE.values():
            (tmp_path / files[number % len(files)]).unlink()
        assert pipeline() == list(MADE)
    (tmp_path / "exp" / "wer.md").unlink()
    assert pipeline() == ["local.wer"]  # what it makes is as before, so the report stays
    (tmp_path / "exp" / "decode" / "greedy_search" / "test.jsonl").unlink()
    assert pipeline() == ["local.decode"]
    assert pipeline() == []


def test_links_in_a_circle_are_left_out(place: Path) -> None:
    """As is a file that vanishes, or that one may not read: find then fails."""
    (place / "in").unlink()
    (place / "in").mkdir()
    (place / "in" / "one").write_text("1")
    (place / "in" / "self").symlink_to(".")
    (place / "out").mkdir()
    (place / "out" / "self").symlink_to(".")
    assert again(place)[0] == ["a"] and again(place)[0] == []
    (place / "in" / "one").write_text("2")
    assert again(place)[0] == ["a"]
    (place / "out" / "one").unlink()
    assert again(place)[0] == ["a"]
