"""The report's table of the utterances that the gradient filter damped most."""

from __future__ import annotations

import re
from pathlib import Path

from local.common.csv_table import write_table
from local.common.errors import UserError
from local.common.html_page import Page
from local.reporting.audio import AudioBudget
from local.reporting.damped import MOST, add_damped, read_outliers
from tests.reporting.small import HOSTILE, cut, experiment, prepare, shown

import numpy as np
import pytest
import soundfile

COLUMNS = ("utterance", "steps_damped", "lowest_mask", "layer", "last_step")


def section(exp: Path, ids: list[str], data: Path | None) -> str:
    rows = [dict(zip(COLUMNS, (name, 3, 0.25, 1, 9), strict=True)) for name in ids]
    write_table(exp / "outliers.tsv", COLUMNS, rows, "\t")
    page = Page("a", exp)
    found = experiment(exp, {}, data) if data is None else experiment(exp, {"greedy_search": []}, data)
    add_damped(page, found, AudioBudget(1_000_000, exp))
    return shown(page)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    audio = tmp_path / "a.wav"
    soundfile.write(audio, np.random.default_rng(1).uniform(-0.3, 0.3, 16000), 16000)
    train = [cut("a", "ONE <b>TWO</b>", 1.0, audio), cut("=b_sp0.9", "ITS OWN ID", 1.0, audio), cut("shar", "IN A SHARD", 2.0)]
    train.append({**cut("odd", "NO CHANNEL", 1.0), "supervisions": [{"id": "odd", "text": "ODD", "alignment": 5}]})
    prepare(tmp_path / "data", {"train": train})
    return tmp_path / "data"


def test_damped_utterances_are_found(tmp_path: Path, data: Path) -> None:
    """Copies at another speed have the audio of their original; an id that would be a formula is quoted in the file."""
    text = section(tmp_path, ["a", "a_sp1.1", "=b_sp0.9", "shar", "odd", HOSTILE], data)
    blocks = [line for line in text.splitlines() if 'class="damped"' in line]
    texts = [re.findall(r"<strong>(.*?)</strong>", block)[0] for block in blocks]
    assert texts[:5] == ["ONE &lt;b&gt;TWO&lt;/b&gt;"] * 2 + ["ITS OWN ID", "IN A SHARD", "ODD"]
    assert ["<audio" in block for block in blocks] == [True, True, True, False, False, False]
    assert '"note">a; 1.00 s; steps damped: 3; lowest mask: 0.25, in layer 1' in blocks[0] and ">=b_sp0.9; 1" in blocks[2]
    assert ["another speed" in block for block in blocks] == [False, True, False, False, False, False]
    assert "data:audio/mpeg" in blocks[0] and "<script" not in text and "<b>" not in text and "&lt;script" in blocks[5]


def test_only_the_first_are_shown(tmp_path: Path) -> None:
    text = section(tmp_path, [f"u{i}" for i in range(25)], None)
    assert text.count("<strong>") == MOST and "damped 25 utterances" in text and "not in the prepared data" in text


def test_no_file_and_no_outlier(tmp_path: Path) -> None:
    assert "no utterance" in section(tmp_path, [], None)
    page = Page("a", tmp_path)
    (tmp_path / "outliers.tsv").unlink()
    add_damped(page, experiment(tmp_path, {}), AudioBudget(1, tmp_path))
    assert page.parts == []


@pytest.mark.parametrize(
    "text", ["utterance\tsteps_damped\tlowest_mask\tlayer\na\t1\n", "a\tb\n1\t2\n", "\n\n\nutterance\na\n"]
)
def test_a_damaged_line_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "outliers.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"outliers\.tsv:2"):
        read_outliers(tmp_path / "outliers.tsv")
