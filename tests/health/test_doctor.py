"""local/doctor.py and ./run.sh doctor: a healthy corpus gives a summary alone, nothing is changed, exit status for scripts."""

from __future__ import annotations

import hashlib
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from local import doctor
from local.data.summary import Summary
from local.health import environment, hardware
from local.health.finding import error, warning
from tests.conftest import ROOT
from tests.health.prepared_data import Spoken, speech, write_data

import numpy as np
import pytest

Doctor = Callable[..., tuple[int, list[str]]]
SUMMARY = re.compile(r"doctor: (\d+) checks, (.*)")


def snapshot(folder: Path) -> dict[str, str]:
    """Return every path below a folder, with its kind, size, time of change and content."""

    def of(path: Path) -> str:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        return f"{status.st_mode} {status.st_size} {status.st_mtime_ns} {content}"

    return {str(path): of(path) for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the checks whose answer depends on this machine."""
    monkeypatch.setattr(environment, "PACKAGE_CHECKS", (environment.check_torch_pair,))
    monkeypatch.setattr(hardware, "CHECKS", (hardware.check_folders, hardware.check_busy))
    monkeypatch.setattr(hardware, "RUN_CHECKS", ())


@pytest.fixture
def call(tmp_path: Path, here: None, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Return a function that calls the doctor for tmp_path/data and tmp_path/exp: exit status and lines."""

    def run(*arguments: str) -> tuple[int, list[str]]:
        folders = ["--corpus=custom", f"--data-dir={tmp_path}/data", f"--exp-dir={tmp_path}/exp"]
        with pytest.raises(SystemExit) as ended:
            doctor.main([*folders, *arguments])
        said = capsys.readouterr()
        assert said.err == ""
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out.splitlines()

    return run


WORDS = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN")


def spoken(part: str, count: int) -> list[Spoken]:
    """Return utterances of one to six words, each as long as its text, by ten speakers."""
    rng = np.random.default_rng(len(part))
    texts = [" ".join(rng.choice(WORDS, 1 + n % 6)) for n in range(count)]
    seeds = rng.integers(0, 2**31, count)
    named = [(f"{part}-{n:03d}", text, f"{part}-speaker-{n % 10}") for n, text in enumerate(texts)]
    return [
        Spoken(name, text, speech(int(seed), 0.3 + 0.09 * len(text)), speaker=speaker)
        for (name, text, speaker), seed in zip(named, seeds, strict=True)
    ]


def prepared(root: Path) -> list[str]:
    """Write prepared data, which say of themselves that they are 0.3 h, and return the options for them."""
    (root / "mine.yaml").write_text("include: [preset/minutes.yaml]\nlang:\n  vocab_size: 30\ntrain:\n  num_epochs: 300\n")
    folder = write_data(root, {"train": spoken("train", 60), "held-out": spoken("held-out", 40)})
    text = (folder.path / "corpus.yaml").read_text().replace("name: made", "name: custom")
    (folder.path / "corpus.yaml").write_text(text)
    (folder.path / "lang_bpe_40").rename(folder.path / "lang_bpe_30")
    Summary(folder.path, {"tokens": {"30": {"train": {"per second": 2.0, "hours": 0.3}}}}).write()
    return ["--conf", str(root / "mine.yaml")]


def test_a_healthy_corpus_gives_a_summary_alone(tmp_path: Path, call: Doctor) -> None:
    """And nothing is changed."""
    options = prepared(tmp_path)
    before = snapshot(tmp_path)
    status, lines = call(*options)
    found = SUMMARY.match(lines[0])
    assert len(lines) == 1 and found and int(found[1]) > 30 and found[2].startswith("nothing found"), lines
    assert status == 0 and snapshot(tmp_path) == before


def test_an_error_gives_status_1(tmp_path: Path, call: Doctor) -> None:
    options = prepared(tmp_path)
    status, lines = call(*options, "decode.hotwords=none.txt")
    assert status == 1 and lines[0].startswith("error: ") and "decode.hotwords" in lines[0] and "1 error" in lines[-1]
    assert call(*options, "decode.hotwords=none.txt", "optim.lr=1")[1][-1].count("1 error and 1 warning") == 1


def test_what_two_checks_find_is_told_once(tmp_path: Path, call: Doctor) -> None:
    options = prepared(tmp_path)
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "train.csv").write_bytes(b"\xff\n")
    lines = call(*options)[1]
    assert sum("train.csv" in line for line in lines) == 1 and "1 error" in lines[-1]


def test_a_warning_is_an_error_with_strict(tmp_path: Path, call: Doctor) -> None:
    options = prepared(tmp_path)
    assert call(*options, "optim.lr=1")[0] == 0 and call(*options, "optim.lr=1", "--strict")[0] == 1
    assert call(*options, "--strict")[0] == 0


@pytest.mark.parametrize("wrong", ["train.nonsense=1", "optim.lr=fast", "optim.lr=-1"])
def test_a_wrong_key_is_an_error(tmp_path: Path, call: Doctor, wrong: str) -> None:
    """What needs no configuration is still checked."""
    status, lines = call(*prepared(tmp_path), wrong)
    assert status == 1 and lines[0].startswith("error: ") and wrong.split("=")[0] in lines[0]
    assert len(lines) == 2 and "not checked" in lines[1]


def test_what_is_not_there_is_named(tmp_path: Path, call: Doctor) -> None:
    status, lines = call()
    assert status == 0 and len(lines) == 1 and f"{tmp_path}/data is not prepared" in lines[0] and "configuration" in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("problem", [ImportError("no module lhotse"), RuntimeError("CUDA error"), OSError("libgomp.so.1")])
def test_a_library_that_fails_is_an_error(call: Doctor, monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    """A package that is missing is named once."""

    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr(doctor, "examine_run", fail)
    status, lines = call()
    assert status == 1 and len(lines) == 2 and str(problem) in lines[0] and "not checked" in lines[1]
    monkeypatch.setattr(environment, "PACKAGE_CHECKS", (lambda run: iter([error("package lhotse is missing")]),))
    assert len(call()[1]) == (2 if isinstance(problem, ImportError) else 3)


def test_damaged_files_are_findings(tmp_path: Path, call: Doctor) -> None:
    options = prepared(tmp_path)
    (tmp_path / "data" / "lang_bpe_30" / "bpe.model").write_bytes(b"x")
    (tmp_path / "exp" / "checkpoints").mkdir(parents=True)
    (tmp_path / "exp" / "valid.csv").write_bytes(b"\xff")
    (tmp_path / "exp" / "averaged.pt").write_bytes(b"PK")
    status, lines = call(*options)
    assert status == 1 and {line.split(" ")[0] for line in lines[:-1]} <= {"error:", "warning:"}
    for name in ("bpe.model", "valid.csv", "averaged.pt"):
        assert any(name in line for line in lines), lines


def test_a_finding_is_one_visible_line() -> None:
    assert str(error("line\nbreak \x1b[31m", "fix it")) == r"error: line break \x1b[31m; fix it"
    assert str(warning("all said")) == "warning: all said"


@pytest.mark.slow
def test_a_healthy_tiny_gives_a_summary_alone() -> None:
    """If this machine has trained tiny: by run.sh, in 10 s of processor time; other programs take time, so several tries."""
    if not (ROOT / "exp" / "tiny" / "averaged.pt").is_file():
        pytest.skip("needs exp/tiny, which ./run.sh makes")
    before, seconds = snapshot(ROOT / "data" / "tiny") | snapshot(ROOT / "exp" / "tiny"), [math.inf]
    while seconds[-1] >= 10 and len(seconds) < 4:
        began = processor_time()
        done = shell(ROOT, f"--python={sys.executable}", OMP_NUM_THREADS="1")
        seconds.append(processor_time() - began)
    assert seconds[-1] < 10, seconds
    *findings, summary = done.stdout.splitlines()
    of_the_machine = [line for line in findings if line.startswith("warning: ") and "tiny" not in line]
    assert done.returncode == 0 and findings == of_the_machine and summary.startswith("doctor: "), done.stdout
    assert snapshot(ROOT / "data" / "tiny") | snapshot(ROOT / "exp" / "tiny") == before


def processor_time() -> float:
    """Return the seconds that the ended child processes have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- run.sh ----


def shell(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", "run.sh", "doctor", *arguments]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, env={**variables, **environment})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the recipe, without .venv, and a python3 on the PATH without packages."""
    root = tmp_path / "recipe"
    for name in ("local", "model", "egs", "conf"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.sh"), *ROOT.glob("requirements*.txt")):
        shutil.copy2(path, root)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    return root


def test_without_venv_the_standard_library_is_enough(checkout: Path) -> None:
    """Python, disk, memory and threads are checked; .venv is not made, and no file of Python's is left."""
    before = snapshot(checkout)
    done = shell(checkout, PATH=f"{checkout.parent}/bin:{os.environ['PATH']}")
    lines = done.stdout.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert [line for line in errors if "GB of disk" not in line and "memory" not in line] == []  # of this machine
    assert done.returncode == bool(errors) and done.stderr == "" and "Traceback" not in done.stdout
    assert any(line.startswith("warning: .venv is missing") and "./run.sh makes it" in line for line in lines[:-1])
    assert SUMMARY.match(lines[-1]) and snapshot(checkout) == before
    assert not list(checkout.rglob("__pycache__")) and not (checkout / ".venv").exists()


@pytest.mark.slow
def test_run_sh_passes_options_on(checkout: Path) -> None:
    """Exit status 0 and 1; nothing is written, and no folder is made."""
    before = snapshot(checkout)
    options = [f"--python={sys.executable}", "--exp-dir=exp/mine", "--nproc=1"]
    good = shell(checkout, *options, "optim.lr=0.004", "--all", OMP_NUM_THREADS="1")
    assert good.returncode == 0 and "data/tiny is not prepared" in good.stdout, good.stdout + good.stderr
    bad = shell(checkout, "--strict", *options, "optim.lr=7", OMP_NUM_THREADS="1")
    assert bad.returncode == 1 and "optim.lr=7" in bad.stdout
    for wrong in ("--no-such-option=1", "--nproc=x", "--corpus=none", "--python=/none/python", "--conf=none.yaml"):
        done = shell(checkout, wrong)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert snapshot(checkout) == before and not list(checkout.rglob("__pycache__"))
