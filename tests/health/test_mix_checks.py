"""The doctor's check of data.mix."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

from local.common.errors import UserError
from local.config import load_config
from local.health.finding import Finding, Run, guarded
from local.health.mix import check_mix, other_hours
from tests.conftest import ROOT

import pytest

CUT = b'{"id": "a", "duration": 1, "recording": {"sampling_rate": 16000}}\n'


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run on two prepared folders with a mix."""
    for name in ("first", "second"):
        (tmp_path / name / "cuts").mkdir(parents=True)
        (tmp_path / name / "corpus.yaml").write_text("name: t\nsource: custom\ntrain: [tr]\ndev: [te]\ntest: []\n")
        for part in ("tr", "te"):
            (tmp_path / name / "cuts" / f"{part}.jsonl.gz").write_bytes(gzip.compress(CUT))
    cfg = load_config(None, [f"data.mix={{{tmp_path}/first: 0.5, {tmp_path}/second: 0.5}}"])
    return Run(ROOT, "given", "custom", tmp_path / "first", tmp_path / "exp", cfg=cfg)


def found(run: Run) -> list[Finding]:
    return list(guarded(check_mix(run)))


def test_mix_fires(run: Run, tmp_path: Path) -> None:
    (tmp_path / "second" / "cuts" / "te.jsonl.gz").unlink()
    [missing] = found(run)
    assert missing.level == "error" and f"{tmp_path}/second/cuts/te.jsonl.gz" in missing.what and "data.mix" in missing.what
    [other] = found(replace(run, data_dir=tmp_path / "second"))
    assert "data.mix" in other.what and f"{tmp_path}/first" in other.what
    (tmp_path / "second" / "corpus.yaml").unlink()
    assert "data.mix" in found(run)[0].what
    with pytest.raises(UserError):
        list(check_mix(run))


def test_mix_is_quiet(run: Run) -> None:
    assert found(run) == [] == found(replace(run, cfg=load_config()))
    assert list(check_mix(run)) == []


def test_the_hours_of_all_folders_count(run: Run, tmp_path: Path) -> None:
    (tmp_path / "second" / "summary.json").write_text('{"cuts": {"tr": {"hours": 2.5}, "te": {"hours": 9}}}')
    assert other_hours(run.config, tmp_path / "first") == 2.5
    assert other_hours(run.config, tmp_path / "elsewhere") == 0
