"""The training log and the masks of the gradient filter, against plain computations."""

from __future__ import annotations

import csv
from pathlib import Path

from local.common.processes import Processes
from local.config import load_config
from local.training.loggers import NoLogger
from local.training.mask_log import MaskLog, mask_statistics
from local.training.step import StepSums
from local.training.telemetry import GradientParts, Telemetry
from local.training.validation import DevScores
from model.build import build_model
from model.layers.gradient_filter import GradientFilter
from model.transducer import Transducer
from tests.toy_experiment import SMALL

import pytest
import torch


def toy_model(*overrides: str) -> Transducer:
    return build_model(load_config(None, [*SMALL, "model.encoder.num_layers=2", *overrides]), 20)


def rows_of(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f, delimiter=delimiter))


def fill(telemetry: Telemetry, log: MaskLog, step: int, masks: list[list[float]], ids: list[str], norms: torch.Tensor) -> None:
    """Add a step whose masks are `masks` (layers, N)."""
    telemetry.add(StepSums(3.0, 2.0, 2.0, 0.0, 0.0, 10, 100, len(ids), 1.0), norms, None)
    record(log, ids, masks)
    log.end_step(step, keep=True)
    log.collect()


def record(log: MaskLog, ids: list[str], masks: list[list[float]]) -> None:
    with log.recording(ids):
        for module, mask in zip(log.filters, masks, strict=True):
            module.mask = torch.tensor(mask)


def mask_log(tmp_path: Path, model: Transducer) -> MaskLog:
    return MaskLog(model, tmp_path / "outliers.tsv", Processes())


def test_norms_by_part_are_those_of_its_parameters() -> None:
    model = toy_model()
    parts = GradientParts(model)
    assert parts.names[:4] == ["encoder_embed", "layer_0", "layer_1", "decoder"]
    norms = torch.rand(len(list(model.parameters())))
    whole, *by_part = parts.norms(norms).tolist()
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
    names = ("min_mask", "median_mask", "mean_mask", "share_below_half")
    expected = [[0.1, 0.7, 0.54, 0.4], [0.5, 1.0, 0.9, 0.0]]
    assert found == pytest.approx({f"filter_{n}_{i}": v for i in (0, 1) for n, v in zip(names, expected[i], strict=True)})


def test_rows_over_several_steps_and_the_outliers(tmp_path: Path) -> None:
    model = toy_model()
    telemetry, log = Telemetry(tmp_path, model, 0, NoLogger()), mask_log(tmp_path, model)
    norms = torch.ones(len(list(model.parameters())))
    fill(telemetry, log, 1, [[0.9, 0.4], [0.9, 0.3]], ["a", "b"], norms)
    fill(telemetry, log, 2, [[0.9, 0.9, 0.2], [0.9, 0.9, 0.9]], ["c", "a", "b"], 3 * norms)
    telemetry.flush(1, 2, 0.1, log.flush())
    state = log.state_dict()
    fill(telemetry, log, 3, [[0.45], [0.9]], ["c"], norms)
    telemetry.flush(1, 3, 0.1, log.flush())
    assert telemetry.note == "loss 0.3000"
    telemetry.add_valid(1, 3, {"": DevScores(1.0, 1.0, 3.14, 50)})
    assert telemetry.note == "loss 0.3000, dev WER 3.1 %"
    first, second = rows_of(tmp_path / "train.csv")
    assert float(first["gradient_norm"]) == pytest.approx(2 * len(norms) ** 0.5, rel=1e-4)
    assert float(first["loss"]) == pytest.approx(6 / 20)
    assert (first["filter_min_mask_0"], first["filter_share_below_half_0"], first["filter_min_mask_1"]) == ("0.2", "0.4", "0.3")
    assert second["filter_min_mask_0"] == "0.45"
    assert rows_of(tmp_path / "outliers.tsv", "\t") == [
        {"utterance": "b", "steps_damped": "2", "lowest_mask": "0.2", "layer": "0", "last_step": "2"},
        {"utterance": "c", "steps_damped": "1", "lowest_mask": "0.45", "layer": "0", "last_step": "3"},
    ]
    # after a kill: the third step comes again
    again, log = Telemetry(tmp_path, model, 2, NoLogger()), mask_log(tmp_path, model)
    log.load_state_dict(state)
    fill(again, log, 3, [[0.45], [0.9]], ["c"], norms)
    again.flush(1, 3, 0.1, log.flush())
    assert rows_of(tmp_path / "outliers.tsv", "\t")[1]["steps_damped"] == "1"
    assert [r["step"] for r in rows_of(tmp_path / "train.csv")] == ["2", "3"]


def test_masks_are_those_of_finite_steps_and_finished_passes(tmp_path: Path) -> None:
    log = mask_log(tmp_path, toy_model())
    record(log, ["a"], [[0.1], [0.1]])
    log.end_step(1, keep=False)  # a step that was skipped
    with pytest.raises(RuntimeError), log.recording(["b", "c"]):
        log.filters[0].mask = torch.tensor([0.1, 0.1])
        raise RuntimeError("out of memory")
    with log.recording(["b"]):
        assert [m.mask for m in log.filters] == [None, None]  # those of the failed pass are gone
        for module in log.filters:
            module.mask = torch.tensor([0.3])
    log.end_step(2, keep=True)
    log.collect()
    assert log.state_dict() == {"b": [1, pytest.approx(0.3), 0, 2]}
    assert log.flush()["filter_mean_mask_1"] == pytest.approx(0.3) and log.flush() == {}


def test_a_model_without_filters_has_no_masks(tmp_path: Path) -> None:
    model = toy_model("gradient.control=none")
    assert not any(isinstance(m, GradientFilter) for m in model.modules())
    log = mask_log(tmp_path, model)
    record(log, ["a"], [])
    log.end_step(1, keep=True)
    log.collect()
    assert log.flush() == {} and not (tmp_path / "outliers.tsv").exists()


def test_a_step_appears_once(tmp_path: Path) -> None:
    """Validated before a kill and again after it, or twice in one run."""
    for step in (4, 6, 6):
        Telemetry(tmp_path, toy_model(), 6, NoLogger()).add_valid(1, step, {"": DevScores(1.0, float(step))})
    twice = Telemetry(tmp_path, toy_model(), 6, NoLogger())
    twice.add_valid(1, 8, {"": DevScores(1.0, 8.0)})
    twice.add_valid(1, 8, {"": DevScores(1.0, 9.0)})
    assert [(r["step"], r["pruned_loss"]) for r in rows_of(tmp_path / "valid.csv")] == [("4", "4"), ("6", "6"), ("8", "9")]


def test_columns_that_came_later(tmp_path: Path) -> None:
    """The rows of an older version stay; they are empty in the new columns."""
    (tmp_path / "train.csv").write_text("epoch,step,loss\n1,5,0.25\n1,9,0.2\n", encoding="utf-8")
    telemetry = Telemetry(tmp_path, toy_model(), 5, NoLogger())
    log = mask_log(tmp_path, toy_model())
    fill(telemetry, log, 6, [[0.9], [0.8]], ["a"], torch.ones(len(list(telemetry.parts.place))))
    telemetry.flush(1, 6, 0.1, log.flush())
    first, second = rows_of(tmp_path / "train.csv")
    assert (first["step"], first["loss"], first["lr"]) == ("5", "0.25", "")
    assert (second["step"], second["loss"], second["lr"]) == ("6", "0.3", "0.1")
