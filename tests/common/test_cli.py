"""What all programs share: files beside keys on the command line, and a standard output that its reader has closed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from local.common.cli import add_files_and_config, make_parser
from tests.conftest import ROOT

import pytest

PROGRAM = """
import sys
from local.common.cli import program
@program
def main():
    print("a line", flush=True)
    sys.stdin.read()
    {body}
main()
"""
BODIES = {"much": "while True: print('more')", "little": "print('more')"}


def test_files_and_keys_may_be_mixed() -> None:
    parser = make_parser("", conf=False)
    add_files_and_config(parser, "files")
    parser.add_argument("--chunk")
    words = ["a.wav", "decode.beam=8", "--chunk", "1", "-", "b=c.wav", "./decode.x=1.wav", "decode.by_method.x.beam=2"]
    args = parser.parse_intermixed_args(words)
    assert args.files == [Path(name) for name in ("a.wav", "-", "b=c.wav", "decode.x=1.wav")]
    assert args.overrides == ["decode.beam=8", "decode.by_method.x.beam=2"] and args.chunk == "1"
    assert parser.parse_intermixed_args([]).files == []


@pytest.mark.parametrize("amount", BODIES)
def test_a_reader_that_has_closed_standard_output(amount: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(body=BODIES[amount])]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdin is not None and run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == "a line\n"
        run.stdout.close()
        run.stdin.close()
        said = run.stderr.read()
        assert run.wait(60) == 1
    assert said.startswith("error: ") and said.count("\n") == 1 and "standard output" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_below_standard_output() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", PROGRAM.replace(", flush=True", "").format(body="pass")]
        run = subprocess.run(command, cwd=ROOT, input="", stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 1 and run.stderr.startswith("error: ") and run.stderr.count("\n") == 1


def test_a_program_may_have_no_standard_output() -> None:
    code = "from local.common.cli import program\nprogram(lambda: None)()\nprogram(lambda: print(1))()"
    run = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
