"""Tuning: the errors of every point equal those of decoding with its values; the best point is used."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from local import decode, tune
from local.artifacts.checkpoint import load_file, provenance, save_file
from local.artifacts.tuned_settings import save_tuned, with_tuned
from local.common.errors import UserError
from local.config import load_config
from tests.toy_experiment import SMALL, levenshtein, make_experiment, toy_tokenizer, toy_weights

import pytest
import torch
import yaml

LODR, FUSION = "modified_beam_search_LODR", "modified_beam_search_lm_shallow_fusion"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tune")
    make_experiment(root)
    cfg, tokenizer = load_config(None, SMALL), toy_tokenizer()
    for epoch in (1, 2, 3):
        weights = toy_weights(cfg, tokenizer, epoch)
        average = {"state": {k: v.double() for k, v in weights.items()}, "batches": 10 * epoch, "period": 1}
        content = {"model": weights, "average": average, **provenance(cfg, tokenizer)}
        save_file(content, root / "checkpoints" / f"epoch-{epoch}.pt")
    return root


def run_tune(folder: Path, *overrides: str) -> tuple[list[dict[str, str]], dict]:
    """Run the program; return the rows of tune.tsv and the content of tuned.yaml."""
    paths = ["--checkpoint", folder / "averaged.pt", "--data-dir", folder / "data", "--exp-dir", folder]
    tune.main([*map(str, paths), *overrides])
    with (folder / "tune.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return rows, yaml.safe_load((folder / "tuned.yaml").read_text())


def run_decode(folder: Path, checkpoint: Path, *arguments: str) -> dict[str, int]:
    """Decode; return the word errors of each method."""
    paths = ["--checkpoint", checkpoint, "--data-dir", folder / "data", "--exp-dir", folder]
    decode.main([*map(str, paths), *arguments])
    errors = {}
    for path in (folder / "decode").glob("*/test.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        errors[path.parent.name] = sum(levenshtein(r["ref"].split(), r["hyp"].split()) for r in rows)
    return errors


def used(folder: Path, method: str) -> dict:
    return json.loads((folder / "decode" / method / "test.stats.json").read_text())["options"]


def test_points_choice_and_use(folder: Path) -> None:
    methods = f"decode.methods=[greedy_search,{FUSION},{LODR}]"
    grid = ["tune.blank_penalty=[3.0,-3.0]", "tune.lm_scale=[0.0,4.0,1.0]", "tune.lodr_scale=[0.5,3.0]"]
    rows, chosen = run_tune(folder, methods, *grid)
    assert [r["method"] for r in rows] == 2 * ["greedy_search"] + 3 * [FUSION] + 6 * [LODR]
    penalty = f"decode.blank_penalty={chosen['decode']['blank_penalty']}"
    assert all(int(r["words"]) == 8 and float(r["wer"]) == pytest.approx(100 * int(r["errors"]) / 8) for r in rows)
    for row in (rows[0], rows[3], rows[8]):
        values = [penalty] + [f"decode.{k}={row[k]}" for k in ("blank_penalty", "lm_scale", "lodr_scale") if row[k]]
        only = f"decode.methods=[{row['method']}]"
        errors = run_decode(folder, folder / "averaged.pt", only, *values)
        assert errors[row["method"]] == int(row["errors"])
    assert len({row["errors"] for row in rows}) > 1, "the points must differ"
    for method in (FUSION, LODR):
        points = [r for r in rows if r["method"] == method]
        points.sort(key=lambda r: (int(r["errors"]), float(r["lm_scale"]), float(r["lodr_scale"] or 0)))
        best = {k: float(points[0][k]) for k in ("lm_scale", "lodr_scale") if points[0][k]}
        assert chosen["decode"]["by_method"][method] == best
    assert not (folder / "tuned.pt").exists() and not list(folder.glob(".t*"))

    tuned = ["--tuned", str(folder / "tuned.yaml"), methods]
    run_decode(folder, folder / "averaged.pt", *tuned)
    for method in (FUSION, LODR):
        own = {**chosen["decode"]["by_method"][method], "blank_penalty": chosen["decode"]["blank_penalty"]}
        assert own.items() <= used(folder, method).items()
    run_decode(folder, folder / "averaged.pt", *tuned, "decode.lm_scale=0.125")
    assert used(folder, LODR)["lm_scale"] == 0.125
    assert used(folder, LODR)["lodr_scale"] == chosen["decode"]["by_method"][LODR]["lodr_scale"]


def test_averaging_range(folder: Path) -> None:
    rows, chosen = run_tune(folder, "average.mode=plain", "tune.average_num=[3,1]", "decode.methods=[greedy_search]")
    assert [r["average_num"] for r in rows] == ["1", "3"]
    best = int(min(rows, key=lambda r: (int(r["errors"]), int(r["average_num"])))["average_num"])
    assert chosen["average"] == {"num": best}
    content = load_file(folder / "tuned.pt")
    averaged = content["model"]
    assert content["label"] == f"epoch-3-avg-{best}-plain"
    epochs = [load_file(folder / "checkpoints" / f"epoch-{e}.pt")["model"] for e in range(4 - best, 4)]
    for name, value in averaged.items():
        expected = torch.stack([e[name].double() for e in epochs]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    assert not list(folder.glob(".t*"))
    run_tune(folder, "tune.average_num=[3,1]", "average.num=1")
    assert not (folder / "tuned.pt").exists(), "a key given on the command line is not tuned"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["tune.average_num=[1,2]"], ["tune.average_num", "value 2", "epoch-1.pt"]),
        (
            ["average.mode=plain", "tune.average_num=[1]", "tune.lm_scale=[0.1]", "decode.lm=/nope.pt"],
            ["decode.lm", "/nope.pt"],
        ),
        (["tune.lm_scale=[0.1]", "tune.lm_scael=[0.1]"], ["tune.lm_scael"]),
    ],
)
def test_all_values_are_checked_before_decoding(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    named: list[str],
) -> None:
    monkeypatch.setattr(tune.Tuner, "encode", lambda *_: pytest.fail("something was decoded"))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "epoch-1.pt").unlink()
    before = {path: path.read_bytes() for path in tmp_path.glob("tune*")}
    with pytest.raises(SystemExit):
        run_tune(tmp_path, f"decode.methods=[{FUSION}]", *overrides)
    error = capsys.readouterr().err
    assert all(text in error for text in named), error
    assert {path: path.read_bytes() for path in tmp_path.glob("tune*")} == before


def test_overrides_of_all_sections_are_taken(folder: Path) -> None:
    others = ["model.encoder.num_layers=99", "train.num_epochs=1", "lang.vocab_size=300", "data.test_parts=[none]"]
    rows, _ = run_tune(folder, "tune.blank_penalty=[1.0]", "decode.methods=[greedy_search]", *others)
    assert [r["blank_penalty"] for r in rows] == ["1"]


def test_given_keys_are_not_tuned() -> None:
    cfg = load_config(None, ["tune.lm_scale=[0.3,0.1,0.3]", "tune.lodr_scale=[0.2]", "tune.blank_penalty=[1]"])
    assert tune.lists(cfg.tune, {"decode.lodr_scale"}) == {"blank_penalty": [1.0], "lm_scale": [0.1, 0.3]}


def test_tuned_values_stand_below_arguments(tmp_path: Path) -> None:
    options = load_config(None, [f"decode.by_method.{LODR}.beam=9"]).decode
    path = tmp_path / "tuned.yaml"
    by_method = {LODR: {"lm_scale": 0.6, "lodr_scale": 0.7}, FUSION: {"lm_scale": 0.8}}
    save_tuned(path, {"blank_penalty": 2.0, "by_method": by_method}, {})
    tuned = with_tuned(options, path)
    assert (tuned.blank_penalty, tuned.of_method(LODR).lm_scale, tuned.of_method(LODR).beam) == (2.0, 0.6, 9)
    given = ["decode.lm_scale=0.3", "decode.blank_penalty=0", f"decode.by_method.{LODR}.lodr_scale=0.2"]
    options = load_config(None, given).decode
    tuned = with_tuned(options, path, given)
    assert (tuned.blank_penalty, tuned.of_method(LODR).lm_scale, tuned.of_method(LODR).lodr_scale) == (0.0, 0.3, 0.2)
    assert tuned.of_method(FUSION).lm_scale == 0.3
    for text in ("[1]", "decode: {beam: many}", "decode: {bem: 1}", "a: ["):
        path.write_text(text)
        with pytest.raises(UserError, match="tuned.yaml"):
            with_tuned(options, path)
