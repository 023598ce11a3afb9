"""The dev parts during training: the WER of some utterances, which changes nothing in the training."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from local.common.processes import Processes
from local.data.datamodule import AsrDataModule
from local.decoding.batch_decoder import with_tail
from local.training.loggers import make_logger
from local.training.losses import forward_losses
from local.training.telemetry import Telemetry
from local.training.validation import DevScores, Validator, spread
from model.build import build_model
from model.search import get_stream
from tests.common import test_processes
from tests.common.test_processes import in_processes, module
from tests.test_train import trainer, weights
from tests.toy_experiment import levenshtein

import pytest
import torch

data = test_processes.data  # its fixture: 6 utterances for validation
CPU = torch.device("cpu")
TRAINED = 2.0  # the warm-up is over


def validator(data: Path, *overrides: str, processes: Processes | None = None) -> Validator:
    """Return a validator of an untrained model that recognises some tokens."""
    dm: AsrDataModule = module(data, *overrides, processes=processes)
    torch.manual_seed(1)
    model = build_model(dm.cfg, dm.tokenizer.vocab_size)
    with torch.no_grad():
        model.joiner.output_linear.bias[0] = 0.5
    return Validator(model, dm.cfg, dm, processes or Processes(), CPU)


def expected_wer(v: Validator, ids: set[str]) -> float:
    """Decode the utterances one by one; count the errors by a plain Levenshtein distance."""
    errors = words = 0
    v.model.eval()
    with torch.no_grad():
        search = get_stream("greedy_search")(v.model)
        for batch in v.data.valid_dataloader():
            for row, name in enumerate(batch.ids):
                if name in ids:
                    n = batch.input_lens[row : row + 1]
                    x, lens = with_tail(batch.inputs[row : row + 1, : int(n)], n, v.cfg.decode.tail_frames)
                    out, out_lens, _ = v.model.encoder(x, lens)
                    hyp = v.data.tokenizer.decode(search.decode(out, out_lens)[0].tokens).split()
                    ref = batch.texts[row].split()
                    errors, words = errors + levenshtein(ref, hyp), words + len(ref)
    return 100 * errors / words


@pytest.mark.parametrize("count", [1, 3, 50])
def test_the_wer_is_that_of_the_chosen_utterances(data: Path, count: int) -> None:
    v = validator(data, f"train.valid_utterances={count}")
    scores = v(TRAINED)
    ids = sorted(v.data.valid_ids())
    chosen = {1: {ids[3]}, 3: {ids[1], ids[3], ids[5]}, 50: set(ids)}[count]
    assert len(ids) == 6 and v.decoded() == chosen and scores.utterances == min(count, 6)
    assert scores.wer == pytest.approx(expected_wer(v, chosen)) and scores.wer > 0
    assert v.model.training is False  # expected_wer left it so
    v(TRAINED)
    assert v.model.training is True


def test_sharpness_is_the_mean_over_tokens(data: Path) -> None:
    v = validator(data)
    found = v(TRAINED).sharpness
    sums = tokens = 0.0
    with torch.no_grad():
        v.model.eval()
        for batch in v.data.valid_dataloader():
            losses = forward_losses(v.model, batch, warmup=TRAINED, sharpness=True)
            assert losses.sharpness is not None
            sums, tokens = sums + float(losses.sharpness.sum()), tokens + float(batch.token_lens.sum())
    assert found == pytest.approx(sums / tokens) and 0 < found < 1


def test_processes_share_the_decoding(data: Path) -> None:
    alone = validator(data, "train.valid_utterances=5")(TRAINED)
    for scores in in_processes(2, lambda p: validator(data, "train.valid_utterances=5", processes=p)(TRAINED)):
        assert scores == pytest.approx(alone) and scores.utterances == 5


def test_nothing_is_decoded_before_the_joiner_is_trained(data: Path) -> None:
    v = validator(data)
    early, late = v(0.99), v(1.0)
    assert (early.wer, early.utterances) == (None, 0) and late.wer is not None and late.utterances == 6
    assert early[:2] == late[:2]
    none = validator(data, "train.valid_utterances=0")(TRAINED)
    assert (none.wer, none.utterances) == (None, 0)


def test_utterances_are_evenly_spread() -> None:
    items = [f"{i:03}" for i in range(100)]
    assert spread(items, 4) == ["012", "037", "062", "087"]
    assert spread(items, 100) == spread(items, 1000) == items and spread([], 5) == []
    assert all(len(set(spread(items, n))) == n for n in range(1, 101))


def test_the_choice_does_not_depend_on_the_order(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v, turned = validator(data, "train.valid_utterances=2"), validator(data, "train.valid_utterances=2")
    ids = v.data.valid_ids()
    monkeypatch.setattr(turned.data, "valid_ids", lambda corpus: ids[::-1])
    assert v.decoded() == turned.decoded() and len(v.decoded()) == 2


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_decoding_does_not_change_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weights and losses, bit for bit, whether and how often dev utterances are decoded."""
    options = {"none": ["train.valid_utterances=0"], "some": [], "often": ["train.valid_every=1"]}
    for name, overrides in options.items():
        trainer(tmp_path / name, *overrides).run()
        lines = [line for line in capsys.readouterr().out.splitlines() if "dev simple" in line]
        assert [("% (2 utterances)" in line) for line in lines] == {
            "none": [False] * 3, "some": [True] * 3, "often": [False] + [True] * 14  # the warm-up takes two batches
        }[name]  # fmt: skip
    none, some, often = (weights(tmp_path / name, "epoch-3.pt") for name in options)
    assert all(torch.equal(value, some[key]) and torch.equal(value, often[key]) for key, value in none.items())
    plain, decoded = (rows_of(tmp_path / name / "valid.csv") for name in ("none", "some"))
    assert [{**row, "wer": ""} for row in plain] == [{**row, "wer": ""} for row in decoded]
    assert all(float(row["wer"]) >= 0 for row in decoded) and "wer" not in plain[0]


def test_the_log_has_the_wer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of an earlier version gets the column; a validation without WER leaves it empty."""
    (tmp_path / "valid.csv").write_text("epoch,step,simple_loss,pruned_loss\n1,5,0.5,0.25\n", encoding="utf-8")
    model, logger = torch.nn.ModuleDict({"joiner": torch.nn.Linear(1, 1)}), make_logger("tensorboard", tmp_path, {}, 5)
    telemetry = Telemetry(tmp_path, model, 5, logger)  # type: ignore[arg-type]
    telemetry.add_valid(2, 10, {"": DevScores(0.0391, 0.0017, 3.2345, 50, sharpness=0.876)})
    telemetry.add_valid(3, 15, {"": DevScores(0.03, 0.001)})
    assert telemetry.note == "dev WER 3.2 %"  # the last one that was measured
    telemetry.close()
    assert [row["wer"] for row in rows_of(tmp_path / "valid.csv")] == ["", "3.2345", ""]
    assert [row["sharpness"] for row in rows_of(tmp_path / "valid.csv")] == ["", "0.876", ""]
    first, second = capsys.readouterr().out.splitlines()
    losses = "dev simple 0.0391, pruned 0.0017 nats per frame"
    assert first == f"epoch 2, 10 batches: {losses}, sharpness 0.88, WER 3.2 % (50 utterances)"
    assert second.endswith("nats per frame")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("valid/wer")] == [(10, 3.2345)]
    assert math.isclose(events.Scalars("valid/pruned_loss")[1].value, 0.001, rel_tol=1e-6)
