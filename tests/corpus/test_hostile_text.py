"""A corpus whose names and texts hold escape characters, formulas and markup: they are shown, and the tables stay tables."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from local.common.visible import UNSAFE
from tests.corpus.stage_one import stage_1, tone

import pytest

NAMES = ["=1+1", "a\x1b[2J", "b\u202ec", "-2+3", "e|f`<script>", "é音", "$\\frac{$"]


def test_foreign_names_and_texts_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Good utterances, a missing file of each name, a line that is not JSON, a file that nobody names."""
    corpus, rows = tmp_path / "my", []
    for i, name in enumerate(NAMES):
        tone(corpus / f"{name}.wav", 200 + 20 * i)
        rows += [{"audio_filepath": f"{name}.wav", "text": f"one {name}"}, {"audio_filepath": f"no{name}.wav", "text": name}]
    rows += [{"audio_filepath": f"no{name}.wav", "text": "x", "id": f"{name}\nforged: line"} for name in NAMES]
    (corpus / "train.json").write_text("\n".join(map(json.dumps, rows)) + "\n\x1b[2J\n", encoding="utf-8")
    with contextlib.suppress(OSError):  # macOS has no such names
        os.rename(tone(corpus / "unnamed.wav", 400), bytes(corpus) + b"/\xff\x1b.wav")
    found, dropped = stage_1(corpus, tmp_path / "work", test="[]")
    out, err = capsys.readouterr()
    assert not UNSAFE.search((out + err).replace("\n", ""))
    assert not any(line.startswith("forged") for line in (out + err).splitlines())
    assert r"a\x1b[2J.wav" in out
    assert {u.id for u in found["train"]} >= {"=1+1", "é音", "-2+3"}
    data = tmp_path / "work" / "data"
    for path in (data / "manifests" / "dropped.tsv", data / "README.md"):
        lines = path.read_text(encoding="utf-8").split("\n")
        assert not any(UNSAFE.search(line.replace("\t", "")) for line in lines)
        if path.suffix == ".tsv":
            assert all(len(line.split("\t")) == 3 and line[0] not in "=+@-" for line in lines[:-1]) and len(dropped) > len(
                NAMES
            )
