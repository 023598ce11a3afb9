"""Coded copies of a part: ids, texts and lengths of the part, other audio, and a part that can be decoded."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from studies.coded_parts import main
from tests.data.test_feature_floor import data, module

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")
assert data  # a fixture
SOME = ("gsm", "mp3", "room", "quiet", "call")


def test_copies(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    shutil.copytree(data, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    main(["--data-dir", "data", "--part", "tr", "--conditions", ",".join(SOME)])
    monkeypatch.chdir("/")  # the manifest's paths hold anywhere
    dm = module(tmp_path / "data")
    plain = {name: x for b in dm.test_dataloader("tr") for name, x in zip(b.ids, b.inputs, strict=True)}
    seen = []
    for condition in SOME:
        copies = list(dm.test_dataloader(f"tr-{condition}"))
        assert {name for b in copies for name in b.ids} == plain.keys() and not any(b.skipped for b in copies)
        assert sorted(dm.references([f"tr-{condition}"])) == sorted(dm.references(["tr"]))
        assert dm.speakers(f"tr-{condition}") == dm.speakers("tr")
        for b in copies:
            for name, x in zip(b.ids, b.inputs, strict=True):
                assert x.shape == plain[name].shape and not torch.equal(x, plain[name])
        seen.append(copies[0].inputs)
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_an_unknown_condition(data: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    with pytest.raises(SystemExit):
        main(["--data-dir", str(data), "--part", "tr", "--conditions", "gsm,tape"])
    assert re.search("--conditions.*'tape'.*gsm", capsys.readouterr().err)
