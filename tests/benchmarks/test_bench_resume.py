"""The resume benchmark writes a manifest that training can read, and its table adds up."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.bench_resume import lines, main
from local.corpus.manifest_lines import parse_item

from lhotse.cut import Cut


def test_lines_are_cuts_in_three_speeds() -> None:
    cuts: list[Cut] = [parse_item(line.encode(), Cut, "here") for line in lines(4)]  # type: ignore[type-abstract]
    assert len({cut.id for cut in cuts}) == 12 and all(cut.has_features and cut.num_frames for cut in cuts)
    assert all(abs(slow.duration * 0.9 - cut.duration) < 1e-3 for cut, slow in zip(cuts[::3], cuts[1::3], strict=True))


def test_writes_a_table(tmp_path: Path) -> None:
    main(["--utterances", "40", "--seconds", "100", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "resume.json").read_text())
    assert result["cuts"] == 120 and 12 < result["batches"] < 30  # 40 utterances of 12 s in three speeds
    assert len(result["seconds"]) == 3 and all(0 < t["clock"] < 60 for t in result["seconds"].values())
    assert "| together |" in (tmp_path / "resume.md").read_text()
