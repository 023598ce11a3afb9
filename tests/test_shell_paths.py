"""run.sh and prepare.sh: where they are called from, and paths that cannot be: it works, or one line says why not."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

import pytest

PYTHON = shlex.quote(sys.executable)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Make a Python that runs the shell's helpers and notes what else it is to run."""
    path = tmp_path / "python"
    path.write_text(
        f'#!/bin/sh\ncase $2 in local.config|local.lock_folder|local.with_parent) exec {PYTHON} "$@" ;; esac\n'
        f'echo "$@" >> "{tmp_path}/calls"\n'
    )
    path.chmod(0o755)
    return path


def call(script: Path | str, *args: str | bytes, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(script), *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        env={**os.environ, **environment},
    )


def one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1 and done.stdout == "", done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("script", ["run.sh", "prepare.sh", "test.sh"])
def test_a_script_can_be_called_through_a_link_and_by_a_relative_path(script: str, tmp_path: Path) -> None:
    (tmp_path / "link.sh").symlink_to(ROOT / script)
    for path, cwd, cdpath in (
        (tmp_path / "link.sh", tmp_path, ""),
        (os.path.relpath(ROOT / script, tmp_path), tmp_path, ""),
        (f"{ROOT.name}/{script}", ROOT.parent, f"/usr:{ROOT.parent}"),  # cd would print the folder
    ):
        done = call(path, "--help", cwd=cwd, CDPATH=cdpath)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert done.stdout.split()[0] in (f"./{script}", "usage:")


@pytest.mark.parametrize(
    "option", ["--corpus-dir=audio", "--data-dir=d", "--exp-dir=e", "--conf=c.yaml", "--python=./python", "lm.text=audio/text"]
)
def test_a_relative_path_from_another_folder_is_refused(option: str, tmp_path: Path, python: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "text").touch()
    one_line(call(ROOT / "run.sh", option, cwd=tmp_path), option.partition("=")[0], str(ROOT), str(tmp_path))
    assert not (ROOT / "d").exists() and not (tmp_path / "calls").exists()


def test_whole_paths_from_another_folder(tmp_path: Path, python: Path) -> None:
    (tmp_path / "audio").mkdir()
    folders = [f"--{name}-dir={tmp_path}/{name}" for name in ("data", "exp")]
    options = ["--corpus=custom", f"--corpus-dir={tmp_path}/audio", "--stage=audio", "--stop-stage=audio", *folders[:1]]
    done = call(ROOT / "prepare.sh", f"--python={python}", *options, "lang.vocab_size=9", cwd=tmp_path)
    assert done.returncode == 0 and f"--corpus-dir {tmp_path}/audio" in (tmp_path / "calls").read_text(), done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 256, ["File name too long"]),
        ("x\ny", ["--exp-dir", "$'"]),
        ("tab\there", ["--exp-dir", "$'"]),
        (b"caf\xe9", ["--exp-dir", "UTF-8"]),
        ("/proc/new", ["/proc/new"]),
        ("file/below", ["file/below"]),
    ],
)
def test_a_folder_that_cannot_be(name: str | bytes, words: list[str], tmp_path: Path, python: Path) -> None:
    (tmp_path / "file").touch()
    given = name if isinstance(name, bytes) else name.encode()
    option = b"--exp-dir=" + os.path.join(str(tmp_path).encode(), given)
    one_line(call("run.sh", f"--python={python}", f"--data-dir={tmp_path}/d", "--stage=1", option), *words)


def test_a_folder_like_an_option(tmp_path: Path, python: Path) -> None:
    """It is a folder, in the repository."""
    try:
        done = call("run.sh", f"--python={python}", f"--data-dir={tmp_path}/d", "--stage=1", "--exp-dir", "-x")
        assert done.returncode == 1 and "bpe.model is missing" in done.stderr and (ROOT / "-x" / ".lock").is_file()
    finally:
        shutil.rmtree(ROOT / "-x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_one_may_not_write(tmp_path: Path, python: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o555)
    for name in ("mine", "mine/new"):
        options = [f"--python={python}", f"--data-dir={tmp_path}/d", f"--exp-dir={tmp_path}/{name}", "--stage=1"]
        one_line(call("run.sh", *options), str(tmp_path / name))


NAMES = ["-x", "two  blanks", "a*b?[c]", "it's", 'quo"te', "$HOME `id` $(id)", "back\\slash", "a=b", "näme", "(", "!", "~", "#"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}], ids=["C"])
def test_folders_of_any_name(name: str, environment: dict[str, str], tmp_path: Path, python: Path) -> None:
    """The audio's folder, whose name the data's and the experiment's folders take."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for part in ("run.sh", "prepare.sh", "local", "egs", "conf", "model"):
        (repository / part).symlink_to(ROOT / part)
    (repository / "run.sh").unlink()
    (repository / "run.sh").write_text((ROOT / "run.sh").read_text())  # not a link: it would go to the one it names
    (repository / "prepare.sh").unlink()
    (repository / "prepare.sh").write_text((ROOT / "prepare.sh").read_text())
    (repository / "prepare.sh").chmod(0o755)
    audio = repository / name
    audio.mkdir()
    calls = tmp_path / "calls"
    options = [f"--python={python}", "--corpus", "custom", "--corpus-dir", name, "--stop-stage", "audio"]
    for again in (False, True):
        done = call("prepare.sh", *options, cwd=repository, **environment)
        assert done.returncode == 0, done.stderr
        assert ("done before" in done.stdout) == again, done.stdout
    assert len(calls.read_text().splitlines()) == 1
    assert (repository / "data" / name / ".done" / "audio").is_file()
    done = call("run.sh", *options[:5], "--stage=train", "--stop-stage=train", cwd=repository, **environment)
    assert done.returncode == 1 and "bpe.model is missing" in done.stderr
    assert (repository / "exp" / name / ".lock").is_file()
    assert {path.name for path in repository.iterdir()} == {
        *("run.sh", "prepare.sh", "local", "egs", "conf", "model", "data", "exp", name)
    }


def test_variables_of_the_caller_change_nothing(tmp_path: Path, python: Path) -> None:
    """A variable `force` of the environment ran finished stages again."""
    (tmp_path / "audio").mkdir()
    options = [f"--python={python}", "--corpus=custom", f"--corpus-dir={tmp_path}/audio", f"--data-dir={tmp_path}/d"]
    names = ("force", "stopped", "child", "chosen", "conf", "overrides", "config", "first", "last", "made", "found", "call")
    for again in (False, True):
        done = call("prepare.sh", *options, "--stop-stage=audio", **dict.fromkeys(names, "true"))
        assert done.returncode == 0 and ("done before" in done.stdout) == again, done.stderr + done.stdout
