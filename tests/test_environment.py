"""local/environment.sh: .venv is made once, by one run at a time, and made again if that was interrupted."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT

import pytest

SCRIPT = f"""
set -euo pipefail
cd {shlex.quote(str(ROOT))}
source local/stages.sh
cd "$1"
call='./run.sh --one' python='' dry=${{2:-false}}
usage() {{ printf 'Stages\n 0 prepare\n\nOptions\n'; }}
ensure_python
echo "ready $python"
"""
PYTHON = f"""#!/bin/bash
case "$1 $2" in
  "-c import pip") [[ -e .venv/has-pip ]]; exit ;;
  "-m ensurepip") [[ -e ensurepip ]] && touch .venv/has-pip ;;
  "-m venv") echo venv >> calls; mkdir -p .venv/bin .venv/lib/python3.11/site-packages; cp python3 .venv/bin/python
             [[ ! -e slow-venv ]] || sleep 60
             touch .venv/has-pip ;;
  "-m pip") echo pip >> calls; [[ ! -e slow-pip ]] || sleep "$(cat slow-pip)"
            cat pip-says; exit "$(cat pip-ends)" ;;
  *) exec {shlex.quote(sys.executable)} "$@" ;;
esac
"""
NO_NETWORK = """WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None)) after connection broken by \
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a new connection')'
ERROR: Could not find a version that satisfies the requirement lhotse==1.33 (from versions: none)
ERROR: No matching distribution found for lhotse==1.33
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make a folder with a python3 that only notes what it is to make."""
    (tmp_path / "requirements.txt").write_text("lhotse\n")
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "pip-says").write_text("Collecting lhotse\n")
    (tmp_path / "pip-ends").write_text("0")
    return tmp_path


def start(place: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", "-c", SCRIPT, "test", str(place), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def made(place: Path) -> list[str]:
    """Return what is called for an environment that is then ready."""
    (place / "calls").write_text("")
    process = start(place)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith("ready .venv/bin/python\n"), err
    return (place / "calls").read_text().split()


def test_it_is_made_once_and_updated(place: Path) -> None:
    assert made(place) == ["venv", "pip"] and made(place) == []
    (place / "requirements.txt").write_text("lhotse\nnumba\n")
    assert made(place) == ["pip"] and made(place) == []


def test_a_half_made_environment_is_made_again(place: Path) -> None:
    """One without pip, as ensurepip leaves it that was killed, stopped every later run."""
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "python").write_text(PYTHON)
    (place / ".venv" / "bin" / "python").chmod(0o755)
    (place / ".venv" / "left").touch()
    assert made(place) == ["venv", "pip"] and not (place / ".venv" / "left").exists()


def test_pip_is_added_to_an_environment_without_it(place: Path) -> None:
    """`uv venv` makes such ones; the packages in it stay."""
    (place / "ensurepip").touch()
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (place / ".venv" / "bin" / "python").write_text(PYTHON)
    (place / ".venv" / "bin" / "python").chmod(0o755)
    (place / ".venv" / "left").touch()
    assert made(place) == ["pip"] and (place / ".venv" / "left").exists()


@pytest.mark.parametrize("slow", ["slow-venv", "slow-pip"])
def test_a_killed_installation_is_begun_again(place: Path, slow: str) -> None:
    """Of half a package, pip says that it is there."""
    (place / slow).write_text("60")
    process = start(place)
    while not (place / "calls").is_file() or slow.removeprefix("slow-") not in (place / "calls").read_text():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (place / slow).unlink()
    assert made(place) == ["venv", "pip"] and made(place) == []


def test_without_network_the_message_says_so(place: Path) -> None:
    (place / "pip-says").write_text(NO_NETWORK)
    (place / "pip-ends").write_text("1")
    process = start(place)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert "requirements.txt" in err and "network" in err and "PIP_INDEX_URL" in err and "--python" in err
    (place / "pip-ends").write_text("0")
    assert made(place) == ["pip"]  # what is there is not thrown away


def test_another_error_is_told(place: Path) -> None:
    (place / "pip-says").write_text(
        "Collecting lhotse\nERROR: Could not install packages: [Errno 28] No space left on device\n"
    )
    (place / "pip-ends").write_text("1")
    process = start(place)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.count("\n") == 1 and "[Errno 28]" in err and "network" not in err


def test_two_at_once_make_one(place: Path) -> None:
    (place / "slow-pip").write_text("2")
    (place / "calls").write_text("")
    first = start(place)
    while "pip" not in (place / "calls").read_text():
        time.sleep(0.02)
    second = start(place)
    (_, _), (out, err) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert first.returncode == second.returncode == 0, err
    assert f"process {first.pid}" in err and "run.sh --one" in err
    assert (place / "calls").read_text().split() == ["venv", "pip"] and out == "ready .venv/bin/python\n"


def test_a_dry_run_makes_none(place: Path) -> None:
    """It takes a python3 that can read the configuration, or names the stages alone."""
    before = sorted(place.rglob("*"))
    out, err = start(place, "true").communicate(timeout=60)
    assert "would make .venv" in out and out.endswith("ready python3\n") and err == ""
    (place / "python3").write_text("#!/bin/bash\nexit 1\n")
    process = start(place, "true")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "0 prepare" in out and "Options" not in out
    assert err.startswith("error: --dry-run") and err.count("\n") == 1
    assert sorted(place.rglob("*")) == before
    (place / "python3").write_text(PYTHON)
    assert made(place) == ["venv", "pip"]
    (place / "requirements.txt").write_text("lhotse\nnumba\n")
    out, err = start(place, "true").communicate(timeout=60)
    assert "would install requirements.txt" in out and out.endswith("ready .venv/bin/python\n") and err == ""
    assert (place / "calls").read_text().split() == ["venv", "pip"]


def test_ctrl_c_ends_it(place: Path) -> None:
    (place / "slow-pip").write_text("60")
    process = start(place)
    while not (place / "calls").is_file() or "pip" not in (place / "calls").read_text():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "failed" not in err
