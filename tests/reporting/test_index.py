"""The table of all experiments: results, facts, settings, folders at any depth, damaged files, foreign names."""

from __future__ import annotations

import json
import re
from pathlib import Path

from local.experiments import main
from local.reporting.index import experiments, index

import pytest
import yaml


def result(wer: float | None, oracle: bool = False) -> dict[str, object]:
    return {"wer": wer, "ci95": None if wer is None else [wer - 1, wer + 1], "oracle": oracle}


def make(folder: Path, results: object = None, run: object = None, **train: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("epoch,step\n")
    if results is not None:
        (folder / "wer.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": train, "run": run or {}}))
    return folder


def table(root: Path) -> list[list[str]]:
    """Return the cells of the table without its head."""
    lines = [line for line in index(root).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_results_and_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = {"greedy_search": result(3.0), "fast_beam_search": result(2.5), "nbest_oracle": result(1.0, oracle=True)}
    run = {"parameters": 1234567, "train_hours": 960.94}
    make(tmp_path / "a", {"clean": methods, "silent": {"greedy_search": result(None)}}, run, seed=7, num_epochs=99)
    make(tmp_path / "b", seed=7)
    (tmp_path / "a" / "log").mkdir()
    calls = [("train", 60, 1), ("decode", 5, 0), ("train", 3600, 0)]
    journal = "".join(f"2026-11-28 10:00:00\thost\t{stage}\t{s}\t{status}\t./run.sh\n" for stage, s, status in calls)
    (tmp_path / "a" / "log" / "journal.tsv").write_text(journal)
    (tmp_path / "a" / "report.html").touch()
    main(["--exp-root", str(tmp_path)])
    assert (tmp_path / "INDEX.md").read_text() == capsys.readouterr().out == index(tmp_path)
    first, silent, other = table(tmp_path)
    assert first[:9] == [
        *("[a](a/report.html)", "clean", "2.50", "1.50 - 3.50", "fast_beam_search", "3.00"),
        *("960.9", "1,234,567", "1:01:00"),
    ]
    assert first[10] == "train.num_epochs=99, train.seed=7"  # what only this one has comes first
    assert silent[1:6] == ["silent", "-", "-", "-", "-"]
    assert other[:9] == ["b", *["-"] * 8] and other[10] == "train.seed=7"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", other[9])


def test_folders_at_any_depth(tmp_path: Path) -> None:
    root = tmp_path / "exp"
    for name in ("a", "a/evaluate/other", "deep/er/b", "a/decode/not", "a/.hidden/not"):
        make(root / name)
    make(tmp_path / "disk" / "c")
    (root / "link").symlink_to(tmp_path / "disk")
    (root / "a" / "evaluate" / "circle").symlink_to(root)
    assert [str(f.relative_to(root)) for f in experiments(root)] == ["a", "a/evaluate/other", "deep/er/b", "link/c"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("wer.json", "{"),
        ("wer.json", "[]"),
        ("wer.json", '{"test": {"greedy_search": {"wer": 1.0}}}'),
        ("wer.json", '{"test": {"greedy_search": {"wer": 1.0, "oracle": false, "ci95": null}}}'),
        ("config.yaml", "train: ["),
        ("config.yaml", "text"),
        ("log/journal.tsv", b"\xff"),
        ("decode/m/test.stats.json", "{"),
    ],
)
def test_a_damaged_experiment_is_a_row_with_the_reason(tmp_path: Path, file: str, content: str | bytes) -> None:
    make(tmp_path / "good", {"test": {"greedy_search": result(2.0)}})
    path = make(tmp_path / "bad") / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (path.parent / "test.jsonl").touch()
    bad, good = table(tmp_path)
    assert bad[2] == "-" and str(path).replace("_", "") in bad[10].replace("\\", "").replace("_", "")
    assert good[:3] == ["good", "test", "2.00"]


def test_odd_values_and_foreign_names(tmp_path: Path) -> None:
    methods = {"a|b`": result(1.0)}
    make(tmp_path / "x|<b>\u202e[y](z)", {"<script>": methods}, {"parameters": "many", "train_hours": float("nan")}, seed=3)
    (tmp_path / "x|<b>\u202e[y](z)" / "report.html").touch()
    text = index(tmp_path)
    (row,) = table(tmp_path)
    assert len(row) == 11 and "\u202e" not in text and "<script" not in text.replace("\\<", "")
    assert row[0].endswith("](x%7C%3Cb%3E%E2%80%AE%5By%5D%28z%29/report.html)") and row[7] == "-"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--exp-root", str(tmp_path / "none")])
    assert table(tmp_path) == []
