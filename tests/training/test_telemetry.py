"""What the training log says of the gradients, against plain computations."""

from __future__ import annotations

import csv
from pathlib import Path

from local.config import load_config
from local.training.telemetry import GradientParts, Outliers, Telemetry, mask_statistics
from model.build import build_model
from model.transducer import Transducer
from tests.toy_experiment import SMALL

import pytest
import torch


def toy_model() -> Transducer:
    return build_model(load_config(None, [*SMALL, "model.encoder.num_layers=2"]), 20)


def rows_of(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f, delimiter=delimiter))


def fill(telemetry: Telemetry, step: int, masks: list[list[float]], ids: list[str], norms: torch.Tensor) -> None:
    telemetry.add((torch.tensor(3.0), torch.tensor(2.0), torch.tensor(2.0)), norms, None, 10, 100)
    telemetry.add_masks(step, ids, torch.tensor(masks))


def test_norms_by_part_are_those_of_its_parameters() -> None:
    model = toy_model()
    parts = GradientParts(model)
    assert parts.names[:4] == ["encoder_embed", "layer_0", "layer_1", "decoder"]
    norms = torch.rand(len(list(model.parameters())))
    whole, *by_part = parts.of(norms).tolist()
    expected = {name: 0.0 for name in parts.names}
    for (name, _), norm in zip(model.named_parameters(), norms.tolist(), strict=True):
        (part,) = [
            p
            for p in expected
            if f"{name}.".replace("encoder.encoder.layers.", "layer_").removeprefix("encoder.").startswith(f"{p}.")
        ]
        expected[part] += norm**2
    assert by_part == pytest.approx([v**0.5 for v in expected.values()], rel=1e-5)
    assert whole == pytest.approx(sum(expected.values()) ** 0.5, rel=1e-5)


def test_statistics_of_masks() -> None:
    found = mask_statistics(torch.tensor([[0.9, 0.1, 0.7, 0.2, 0.8], [1.0, 1.0, 1.0, 0.5, 1.0]]))
    assert found == pytest.approx({
        "filter_min_mask_0": 0.1, "filter_median_mask_0": 0.7, "filter_mean_mask_0": 0.54, "filter_share_below_half_0": 0.4,
        "filter_min_mask_1": 0.5, "filter_median_mask_1": 1.0, "filter_mean_mask_1": 0.9, "filter_share_below_half_1": 0.0,
    })  # fmt: skip


def test_rows_over_several_batches_and_the_outliers(tmp_path: Path) -> None:
    model = toy_model()
    telemetry = Telemetry(tmp_path, model, 0)
    norms = torch.ones(len(list(model.parameters())))
    fill(telemetry, 1, [[0.9, 0.4], [0.9, 0.3]], ["a", "b"], norms)
    fill(telemetry, 2, [[0.9, 0.9, 0.2], [0.9, 0.9, 0.9]], ["c", "a", "b"], 3 * norms)
    telemetry.flush(1, 2, 0.1)
    state = telemetry.state_dict()
    fill(telemetry, 3, [[0.45], [0.9]], ["c"], norms)
    telemetry.flush(1, 3, 0.1)
    first, second = rows_of(tmp_path / "train.csv")
    assert float(first["gradient_norm"]) == pytest.approx(2 * len(norms) ** 0.5, rel=1e-4)
    assert float(first["loss"]) == pytest.approx(6 / 20)
    assert (first["filter_min_mask_0"], first["filter_share_below_half_0"], first["filter_min_mask_1"]) == ("0.2", "0.4", "0.3")
    assert second["filter_min_mask_0"] == "0.45"
    assert rows_of(tmp_path / "outliers.tsv", "\t") == [
        {"utterance": "b", "steps_damped": "2", "lowest_mask": "0.2", "layer": "0", "last_step": "2"},
        {"utterance": "c", "steps_damped": "1", "lowest_mask": "0.45", "layer": "0", "last_step": "3"},
    ]
    again = Telemetry(tmp_path, model, 2)  # after a kill: the third batch comes once more
    again.load_state_dict(state)
    fill(again, 3, [[0.45], [0.9]], ["c"], norms)
    again.flush(1, 3, 0.1)
    assert rows_of(tmp_path / "outliers.tsv", "\t")[1]["steps_damped"] == "1"
    assert [r["step"] for r in rows_of(tmp_path / "train.csv")] == ["2", "3"]


def test_a_step_stands_once(tmp_path: Path) -> None:
    """Validated before a kill and again after it, or twice in one run."""
    for step in (4, 6, 6):
        Telemetry(tmp_path, toy_model(), 6).add_valid(1, step, 1.0, float(step))
    twice = Telemetry(tmp_path, toy_model(), 6)
    twice.add_valid(1, 8, 1.0, 8.0)
    twice.add_valid(1, 8, 1.0, 9.0)
    assert [(r["step"], r["pruned_loss"]) for r in rows_of(tmp_path / "valid.csv")] == [("4", "4"), ("6", "6"), ("8", "9")]


def test_counts_wait_for_no_row(tmp_path: Path) -> None:
    """A checkpoint between two rows holds what was damped since the last one."""
    outliers = Outliers(tmp_path / "outliers.tsv")
    outliers.add(7, ["a", "b"], torch.tensor([[0.4, 0.6], [0.3, 0.6]]))
    assert outliers.state_dict() == {"a": [1, pytest.approx(0.3), 1, 7]}


def test_columns_that_came_later(tmp_path: Path) -> None:
    """A log of an older version is kept; its rows have nothing in the new columns."""
    (tmp_path / "train.csv").write_text("epoch,step,loss\n1,5,0.25\n1,9,0.2\n", encoding="utf-8")
    telemetry = Telemetry(tmp_path, toy_model(), 5)
    fill(telemetry, 6, [[0.9], [0.8]], ["a"], torch.ones(len(list(telemetry.parts.place))))
    telemetry.flush(1, 6, 0.1)
    first, second = rows_of(tmp_path / "train.csv")
    assert (first["step"], first["loss"], first["lr"]) == ("5", "0.25", "")
    assert (second["step"], second["loss"], second["lr"]) == ("6", "0.3", "0.1")
