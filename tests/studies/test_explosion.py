"""The search for exploding gradients: the growth against torch's LSTM, joined speech, the grid, the program on a toy corpus."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, replace
from pathlib import Path

from local.common.errors import UserError
from local.config import load_config
from local.data.batch import Batch
from model.build import build_model
from model.encoder.subsampling import subsampled
from model.layers.scaled import ScaledRNN
from studies import explosion, explosion_measure, explosion_report, explosion_rows, explosion_run, norms
from studies.explosion_data import Setting, groups, joined, with_wrong_texts
from studies.explosion_measure import growth, lstms, watched
from studies.short_training import utterance_losses
from tests.toy_experiment import make_trainable, write_toy_lang

import numpy as np
import pytest
import torch
from lhotse import CutSet, load_manifest
from torch import nn

COPIES = 16  # of the toy utterances, which last about a second


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a toy corpus with some copies of its utterances in the training part."""
    data, cuts = make_trainable(tmp_path_factory.mktemp("toy"))
    cuts.to_file(data / "cuts" / "test.jsonl.gz")
    copies = [cut.with_id(f"{cut.id}-{i}") for i in range(COPIES) for cut in cuts]
    CutSet.from_cuts(copies).to_file(data / "cuts" / "train.jsonl.gz")
    write_toy_lang(data)
    return data


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


def batch_of(frames: int, tokens: list[int], name: str) -> Batch:
    inputs = torch.arange(frames * 80, dtype=torch.float32).view(1, frames, 80) / 100
    return Batch(inputs, torch.tensor([frames]), torch.tensor([tokens]), torch.tensor([len(tokens)]), [name])


@pytest.mark.parametrize("width", [6, 4])
def test_growth_is_that_of_torch_s_lstm(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates add up to the norm of the gradient by the first states, of a loss of the last states alone."""
    monkeypatch.setattr(explosion_measure, "TRANSIENT", 0)
    torch.manual_seed(0)
    ours, x = ScaledRNN("lstm", 5, 6, width).double(), torch.randn(9, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        ours.weight_hh_l0_scale += math.log(6)
    theirs = nn.LSTM(5, 6, proj_size=width if width < 6 else 0).double()
    theirs.load_state_dict(dict(zip(ours.names, ours.scaled_parameters(), strict=True)))
    h0, c0 = (torch.zeros(1, 3, size, dtype=torch.float64, requires_grad=True) for size in (width, 6))
    _, (h, c) = theirs(x, (h0, c0))
    generator = torch.Generator().manual_seed(0)
    v_h, v_c = (torch.randn(1, 3, size, generator=generator).double() for size in (width, 6))
    ((h * v_h).sum() + (c * v_c).sum()).backward()
    assert h0.grad is not None and c0.grad is not None
    after = (h0.grad.square().sum(2) + c0.grad.square().sum(2)).sqrt()
    before = (v_h.square().sum(2) + v_c.square().sum(2)).sqrt()
    found = growth([ours], [x], seed=0)
    torch.testing.assert_close(9 * found.rate, (after / before).log(), rtol=1e-9, atol=1e-9)


def test_the_gain_is_the_largest_sum_of_neighbours() -> None:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)).double()
    sums = [x[a:b].sum(0) for a in range(13) for b in range(a, 13)]
    torch.testing.assert_close(explosion_measure._largest_sum(x), torch.stack(sums).max(dim=0).values)


def test_the_watch_sees_the_gradient_before_the_filter() -> None:
    """Compare with `gradients_at_lstms`, and at the output with a variable added there; the top layer sees no filter."""
    keys = [*explosion_run.NARROW, *norms.PLAIN, "model.encoder.num_layers=2"]
    found, batch = {}, joined([batch_of(90, [3, 4, 5], "a"), batch_of(70, [5, 3], "b")])
    for control in ("none", "filter"):
        cfg = load_config(None, [*keys, f"gradient.control={control}", "gradient.threshold=1e-3"])
        torch.manual_seed(0)
        model = build_model(cfg, 8).train()
        with watched(model) as watch:
            utterance_losses(model, batch, cfg.loss, warmup=2.0)["loss"].sum().backward()
        found[control] = watch.gradients(subsampled(batch.input_lens))
        if control == "none":
            torch.testing.assert_close(found[control].at_input, norms.gradients_at_lstms(model, [batch], cfg.loss))
            delta = torch.zeros(subsampled(90), 2, 32, requires_grad=True)
            hook = lstms(model)[1].register_forward_hook(lambda module, args, out, delta=delta: (out[0] + delta, *out[1:]))
            utterance_losses(model, batch, cfg.loss, warmup=2.0)["loss"].sum().backward()
            hook.remove()
            assert delta.grad is not None
            wanted = norms.sequence_rms(delta.grad, subsampled(batch.input_lens))
            torch.testing.assert_close(found[control].at_output[1], wanted, rtol=1e-4, atol=0)
    torch.testing.assert_close(found["none"].at_input[1], found["filter"].at_input[1])
    assert not torch.allclose(found["none"].at_input[0], found["filter"].at_input[0], rtol=1e-2)


def test_joined_utterances_keep_their_order_and_long_enough_groups() -> None:
    batch = joined([batch_of(3, [7, 8], "a"), batch_of(5, [9], "b")])
    assert batch.inputs.shape == (2, 5, 20) and batch.input_lens.tolist() == [3, 5] and batch.ids == ["a", "b"]
    torch.testing.assert_close(batch.inputs[1, 4], torch.arange(320, 400).float().view(20, 4).mean(1) / 100)
    assert batch.tokens.tolist() == [[7, 8], [9, 0]] and batch.token_lens.tolist() == [2, 1]
    two = Batch(torch.ones(2, 4, 80), torch.tensor([4, 2]), torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1]), ["c", "d"])
    one = joined([two])
    assert one.input_lens.tolist() == [6] and one.tokens.tolist() == [[1, 2, 3]] and one.ids == ["c+d"]
    swapped = with_wrong_texts(batch, 1.0, np.random.default_rng(0))
    assert swapped.tokens.tolist() == [[9, 0], [7, 8]] and swapped.token_lens.tolist() == [1, 2]
    assert with_wrong_texts(batch, 0.0, np.random.default_rng(0)).tokens.tolist() == batch.tokens.tolist()


def test_groups_are_consecutive_and_long_enough(data_dir: Path) -> None:
    cuts = list(load_manifest(data_dir / "cuts" / "train.jsonl.gz"))
    found = groups(cuts, 2.0)
    assert [cut.id for group in found for cut in group] == [cut.id for cut in cuts[: sum(map(len, found))]]
    for group in found:
        seconds = [cut.duration for cut in group]
        assert sum(seconds) >= 2.0 > sum(seconds[:-1])


def test_a_layer_without_residual_passes_nothing_around_the_lstm() -> None:
    cfg = explosion_run.setting_config(load_config(None), Setting("x"))
    for residual in (True, False):
        layer = explosion_run.initial_model(cfg, Setting("x", residual=residual), 8).eval().encoder.encoder.layers[0]
        torch.nn.init.zeros_(layer.lstm.weight_hr_l0)
        x = torch.randn(5, 2, 32, requires_grad=True)
        layer(x, torch.zeros(1, 2, 32), torch.zeros(1, 2, 64), 1.0)[0].sum().backward()
        assert x.grad is not None and bool(x.grad.any()) == residual


def test_the_grid_of_the_study_has_at_least_60_trainings_that_load() -> None:
    settings, cfg = explosion.read_grid(explosion.GRID), load_config(None)
    folders = {explosion.folder_of(Path("x"), setting) for setting in settings}
    assert len(folders) == len(settings) and sum(s.axis not in explosion_report.DEMONSTRATION for s in settings) >= 60
    for setting in {s.keys: s for s in settings}.values():
        assert explosion_run.setting_config(cfg, setting).train.seed == setting.seed
    controls = [s for s in settings if s.axis in explosion_report.DEMONSTRATION]
    assert {s.seed for s in controls} == {1, 2, 3} and len({s.recurrent for s in controls}) == 1


@pytest.mark.parametrize("text", ["a: {sconds: 5}", "a: {batch: 2.5}", "a: {residual: 1}", "a: {seed: true}", "a: [1]"])
def test_a_wrong_grid_names_file_and_axis(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError, match=r"grid.yaml: axis 'a'"):
        explosion.read_grid(tmp_path / "grid.yaml")


def test_healthy_layers_are_compared_with_their_own_steps() -> None:
    """Layer 0 has an outlier in step 1, in which layer 1 moves half as far as in the step before."""
    gradients = np.ones((3, 2, 3))
    gradients[1, 0, 2] = 26.0
    moved = {"step_layer_0": np.array([1.0, 9.0, 1.0]), "step_layer_1": np.array([4.0, 2.0, 9.0])}
    index = np.indices(gradients.shape).reshape(3, -1)
    sequences = {"layer": index[1], "sequence": index[2], "gradient_rms": gradients.ravel()}
    run = explosion_rows.Run({"keys": ""}, {"step": np.arange(3.0), **moved}, {}, sequences)
    assert explosion_rows.healthy_steps(run) == pytest.approx(0.5)
    assert explosion_rows.lower_steps(run) == pytest.approx(11 / 3) and explosion_rows.upper_steps(run) == pytest.approx(5)
    gradients[1, 0, 2] = 24.0
    assert math.isnan(explosion_rows.healthy_steps(run))


def test_norms_are_compared_by_how_many_sequences_explode() -> None:
    """Of 60 steps, in step 50 one sequence of three explodes in layer 1, in step 55 two do; the norms are 7 and 9 times."""
    gradients, norms = np.ones((60, 2, 3)), np.ones((60, 2))
    gradients[50, 1, 0] = gradients[55, 1, :2] = 2000.0
    norms[50, 0], norms[55, 1] = 7.0, 9.0
    index = np.indices(gradients.shape).reshape(3, -1)
    sequences = {"layer": index[1], "sequence": index[2], "gradient_rms": gradients.ravel()}
    columns = {f"gradient_norm_layer_{i}": norms[:, i] for i in range(2)}
    run = explosion_rows.Run({"keys": ""}, {"step": np.arange(60.0), **columns}, {}, sequences)
    assert explosion_rows.norm_if_one(run) == pytest.approx(7) and explosion_rows.norm_if_most(run) == pytest.approx(9)


def test_three_steps_with_an_exploded_sequence_are_an_explosion() -> None:
    def row(step: int, ratio: float, amplification: float) -> dict[str, float]:
        layers = {"ratio_layer": step, "amplification_layer": 0, "smallest_mask": 1.0, "gradient_norm": 1.0, "loss": 1.0}
        return {"step": step, "largest_ratio": ratio, "largest_amplification": amplification, **layers}

    steps = [row(0, 1001.0, 1.0), row(1, 30.0, 1.0), row(2, 1.0, 1001.0), row(3, 2000.0, 1.0)]
    measured = {name: 0.0 for name in ("sigma", "rate_median", "rate_max", "gain_max")}
    found = explosion_run.summary(explosion_run.Result(steps=steps, layers=[measured]))
    assert found["found"] and found["steps_exploded"] == 3 and found["steps_damped"] == 3
    assert found["largest_ratio"] == 2000.0 and found["ratio_layer"] == found["ratio_step"] == 3
    assert not explosion_run.summary(explosion_run.Result(steps=steps[:3], layers=[measured]))["found"]


def test_either_sign_keeps_a_run_alive() -> None:
    quiet = {"largest_ratio": 4.9, "largest_amplification": 49.0}
    assert not explosion_run.promising([quiet, quiet])
    for sign in ({"largest_ratio": 5.0}, {"largest_amplification": 50.0}):
        assert explosion_run.promising([quiet, quiet | sign, quiet])


def test_a_training_is_made_again_only_if_more_time_lets_it_end_later(tmp_path: Path) -> None:
    cfg, setting = load_config(None), Setting("a x=1", keys=("optim.lr=0.1",))
    job = explosion.Job(cfg, tmp_path / "data", setting, 60.0, tmp_path / "a", "abc")
    assert explosion.is_left(job)
    row = {**asdict(setting), "keys": "optim.lr=0.1", "limit": 60.0, "config": "abc", "ended": "time"}
    explosion.write_result(job.folder, explosion_run.Result(row, [{"step": 0}], [{"step": 0}], [{"step": 0}]))
    assert not explosion.is_left(job) and not explosion.is_left(replace(job, limit=30.0))
    assert explosion.is_left(replace(job, limit=90.0)) and explosion.finished(replace(job, limit=90.0))
    others = {"config": replace(job, config="d"), "steps": replace(job, setting=replace(setting, steps=9))}
    for named, other in others.items():
        with pytest.raises(UserError, match=rf"{job.folder}: {named} changed"):
            explosion.is_left(other)


@pytest.mark.slow
def test_the_program_finds_stops_and_resumes(data_dir: Path, tmp_path: Path) -> None:
    grid, exp_dir = tmp_path / "grid.yaml", tmp_path / "exp"
    sizes = "seconds: 4, batch: 3, steps: 4"
    common = "model.encoder.num_layers: 3, optim.lr: 0.00001"  # nothing is learned: what explodes, explodes in each step
    grid.write_text(
        f"quiet: {{{sizes}, {common}}}\ncontrol: {{{sizes}, {common}, recurrent: 10, gradient.control: [none, filter, clip]}}\n"
    )
    command = ["--data-dir", str(data_dir), "--exp-dir", str(exp_dir), "--grid", str(grid), "--jobs", "1"]
    explosion.main([*command, "--axes", "quiet"])
    (quiet,) = read(exp_dir / "map.csv")
    assert quiet["ended"] == "nothing seen" and quiet["trained"] == "2" and quiet["found"] == "False"
    explosion.main(command)
    rows = read(exp_dir / "map.csv")
    assert rows[0] == quiet and len(rows) == 4  # the time it took, too: it was not made again
    assert all(int(row["steps_exploded"]) > 0 and float(row["largest_rate_max"]) > 0 for row in rows[1:])
    none, filtered, clipped = (read(exp_dir / "runs" / name / "steps.csv") for name in sorted_names(exp_dir)[1:])
    assert none[0]["largest_ratio"] == clipped[0]["largest_ratio"] and none[0]["smallest_mask"] == "1"
    assert float(filtered[0]["smallest_mask"]) < 0.9
    assert {path.name for path in exp_dir.glob("*.png")} == {
        f"explosion_{x}.png" for x in ("map", "gradients", "growth", "loss")
    }
    assert (exp_dir / "explosion.html").read_text().count("<img") == 4
    explosion.main(command)
    assert read(exp_dir / "map.csv") == rows  # nothing was left to do
    grid.write_text(grid.read_text().replace("seconds: 4", "seconds: 5"))
    with pytest.raises(SystemExit):
        explosion.main([*command, "--report"])


def sorted_names(exp_dir: Path) -> list[str]:
    order = ("quiet", "none", "filter", "clip")
    return sorted((path.name for path in (exp_dir / "runs").iterdir()), key=lambda name: [o in name for o in order].index(True))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
