"""What all programs share: files beside keys on the command line, and a standard output that its reader has closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from local.common.cli import add_files_and_config, make_parser
from tests.conftest import ROOT

PROGRAM = """
from local.common.cli import program
@program
def main():
    while True:
        print("a line")
main()
"""


def test_files_and_keys_may_be_mixed() -> None:
    parser = make_parser("", conf=False)
    add_files_and_config(parser, "files")
    parser.add_argument("--chunk")
    words = ["a.wav", "decode.beam=8", "--chunk", "1", "-", "b=c.wav", "./decode.x=1.wav", "decode.by_method.x.beam=2"]
    args = parser.parse_intermixed_args(words)
    assert args.files == [Path(name) for name in ("a.wav", "-", "b=c.wav", "decode.x=1.wav")]
    assert args.overrides == ["decode.beam=8", "decode.by_method.x.beam=2"] and args.chunk == "1"
    assert parser.parse_intermixed_args([]).files == []


def test_a_reader_that_has_closed_standard_output() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == "a line\n"
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(60) == 1
    assert said.startswith("error: ") and said.count("\n") == 1 and "standard output" in said
