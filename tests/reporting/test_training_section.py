"""The report's section on training: what it draws of whole, thinned, hostile and missing numbers."""

from __future__ import annotations

import re
from pathlib import Path

from local.common.errors import UserError
from local.common.html_page import Page
from local.reporting.training import HEALTHY, add_training, warm_up
from tests.reporting.small import experiment, row, shown

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("error")  # of matplotlib, for what cannot be drawn
MASKS = [f"filter_{what}_mask_{i}" for i in (0, 1) for what in ("min", "median", "mean")]
HEAD = ["epoch", "step", "loss", "simple_loss", "pruned_loss", "gradient_norm", "lr", "data_wait_share", "frames_per_second"]
HEAD += ["gradient_norm_encoder_embed", "gradient_norm_layer_0", "gradient_norm_layer_1", *MASKS]
HEAD += ["filter_share_below_half_0", "filter_share_below_half_1"]


def section(exp: Path, train: list[list[object]] | None, head: list[str] = HEAD, valid: str | None = None) -> Page:
    if train is not None:
        lines = [",".join(map(str, cells)) for cells in [head, *train]]
        (exp / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if valid is not None:
        (exp / "valid.csv").write_text(valid, encoding="utf-8")
    page = Page("a", exp)
    add_training(page, experiment(exp, {}, config={"train": {"warm_step": 30, "warm_share": 0.0}}))
    return page


def rows(count: int, columns: int = len(HEAD)) -> list[list[object]]:
    return [[1 + i // 10, 10 * (i + 1), *np.random.default_rng(i).uniform(0.1, 1, columns - 2).round(5)] for i in range(count)]


def test_all_drawings_with_their_captions(tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "log.csv").write_text("epoch,train_per_token,dev_per_token\n1,50,60\n2,9,12\n")
    valid = "epoch,step,simple_loss,pruned_loss,sharpness,wer\n1,100,0.5,0.4,0.3,\n2,200,0.4,0.2,0.6,7.5\n3,300,.3,.3,.9,9\n"
    page = section(tmp_path, rows(30), valid=valid)
    text = shown(page)
    assert text.count("<svg") == len(HEALTHY) == 8
    assert [name for name, caption in HEALTHY.items() if f"<figcaption>{caption}" not in text] == []
    assert "300 steps in 3 epochs." in text and "7.50 % at step 200." in text and "end of warm-up" in text
    assert "layer 1" in text and "encoder embed" in text


def test_an_error_rate_of_characters_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "valid.csv").write_text(
        "epoch,step,simple_loss,pruned_loss,sharpness,wer\n1,100,.3,.3,.9,9\n2,200,.3,.3,.9,8\n"
    )
    page = Page("a", tmp_path)
    add_training(page, experiment(tmp_path, {"greedy_search": [row("1", "\u6211\u7231", "\u6211", [])]}, unit="char"))
    assert "Lowest CER" in shown(page) and "WER" not in shown(page)


def test_a_long_training_makes_no_large_page(tmp_path: Path) -> None:
    """Each line has at most 300 points and a band of twice as many, of 20 bytes each in the SVG."""
    page = section(tmp_path, rows(10_000))
    points = [len(re.findall(r"[ML] ", path)) for path in re.findall(r' d="([^"]*)"', shown(page))]
    assert 600 <= max(points) < 620 and len(shown(page)) < 600_000


HOSTILE_CELLS = ["nan", "inf", "-inf", "1e308", "-1e308", "-1", "0", "", "5e-324", "<script>"]


def test_hostile_values_are_left_out(tmp_path: Path) -> None:
    table = rows(3 + len(HOSTILE_CELLS))
    for cells, value in zip(table[2:], HOSTILE_CELLS, strict=False):
        cells[2:] = [value] * (len(HEAD) - 2)
    text = shown(section(tmp_path, table))
    assert text.count("<svg") == 5 and "<script" not in text


@pytest.mark.parametrize("value", ["nan", "1e308", "-1", "0"])
def test_nothing_but_hostile_values(tmp_path: Path, value: str) -> None:
    table: list[list[object]] = [[1, 10, *[value] * (len(HEAD) - 2)]]
    assert "10 steps in 1 epoch." in shown(section(tmp_path, table, valid=f"step,wer,simple_loss\n1,{value},{value}\n"))


def test_nan_losses_are_counted(tmp_path: Path) -> None:
    table = rows(5)
    table[1][2] = table[3][2] = "nan"
    text = shown(section(tmp_path, [*table, [1, 2]]))
    assert "In 2 of 5 rows the loss" in text and "train.csv: 1 damaged row left" in text


def test_missing_columns_and_files(tmp_path: Path) -> None:
    assert shown(section(tmp_path, rows(3, 4), HEAD[:4])).count("<svg") == 1
    assert shown(section(tmp_path, [[1, 2]], ["epoch", "step"])).count("<svg") == 0
    (tmp_path / "train.csv").unlink()
    text = shown(section(tmp_path, None, valid="epoch,step,wer\n1,10,5\n"))
    assert text.count("<svg") == 1 and "5.00 % at step 10" in text
    text = shown(section(tmp_path, None, valid=""))
    assert "<svg" not in text and "valid.csv" in text


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"valid\.csv:1: no column 'step'"):
        section(tmp_path, rows(2), valid="a,b\n1,2\n")


@pytest.mark.parametrize(
    "config", [{}, {"train": 5}, {"train": {"warm_step": 10**400}}, {"train": {"warm_step": 5, "warm_share": 0.1}}]
)
def test_an_unknown_warm_up(config: dict) -> None:
    assert warm_up(config) is None and warm_up({"train": {"warm_step": 5}}) == 5
