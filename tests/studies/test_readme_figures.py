"""The README's pictures: the numbers of the gradient's picture are those of local/diagnose.py."""

from __future__ import annotations

from pathlib import Path

from local.common.errors import UserError
from studies.readme_figures import draw_gradients, main, read_norms

import numpy as np
import pytest

HEAD = "utterance\tmodule\tloss_per_frame\tactivation_rms\tgradient_norm\tamplification\n"
LAYER = "encoder.encoder.layers."


def row(utterance: str, module: str, norm: float, amplification: float | str) -> str:
    return f"{utterance}\t{module}\t1\t1\t{norm}\t{amplification}\n"


def table(folder: Path, *rows: str) -> Path:
    (folder / "diagnose").mkdir()
    path = folder / "diagnose" / "sequences.tsv"
    path.write_text(HEAD + "".join(rows), encoding="utf-8")
    return path


def two_layers(with_filter: bool = True) -> list[str]:
    rows = [row("a", "encoder", 9.0, 9.0), row("a", f"{LAYER}0", 9.0, 9.0), row("a", f"{LAYER}0.norm_final", 9.0, "")]
    for layer in (1, 0):
        for i, utterance in enumerate("abc"):
            rows.append(row(utterance, f"{LAYER}{layer}.lstm", 2.0 + i, 10.0 * (layer + 1)))
            if with_filter:
                rows.append(row(utterance, f"{LAYER}{layer}.gradient_filter", 20.0 + i, 0.5))
    return rows


def test_norms_at_the_inputs(tmp_path: Path) -> None:
    before, after = read_norms(table(tmp_path, *two_layers()))
    np.testing.assert_allclose(before, [[20.0, 30.0, 40.0], [40.0, 60.0, 80.0]])
    np.testing.assert_allclose(after, [[10.0, 10.5, 11.0]] * 2)


def test_the_worst_utterances_are_in_colour() -> None:
    before = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 90.0, 3.0, 4.0, 5.0]])
    panel = draw_gradients(before, before / 2).axes[0]
    drawn = {line.get_color(): list(line.get_ydata()) for line in panel.lines if line.get_marker() == "o"}
    assert drawn["tab:orange"] == [5.0, 5.0] and drawn["tab:purple"] == [4.0, 4.0]
    assert [line.get_color() for line in panel.lines if 90.0 in line.get_ydata()].count("tab:red") == 1


def test_both_pictures_are_written(tmp_path: Path) -> None:
    table(tmp_path, *two_layers())
    main(["--exp-dir", str(tmp_path), "--out", str(tmp_path / "pictures")])
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["gradients.png", "path.png"]


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sequences.tsv"):
        read_norms(tmp_path / "sequences.tsv")
    with pytest.raises(UserError, match="gradient.control"):
        read_norms(table(tmp_path, *two_layers(with_filter=False)))
