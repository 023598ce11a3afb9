"""The page that compares experiments: verdicts, changed utterances, configurations, curves, foreign text, nothing in common."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from local import report, wer

import pytest

REFS = {f"u{i:02d}": "one two three four" for i in range(24)}
NOT_SAFE = "</td><script>alert(1)</script>\u202e"


def experiment(folder: Path, wrong: dict[str, str], refs: dict[str, str] = REFS, **keys: object) -> Path:
    """Write an experiment whose hypotheses are the references except for those in `wrong`, and score it."""
    path = folder / "decode" / "greedy_search" / "test.jsonl"
    path.parent.mkdir(parents=True)
    lines = ({"id": i, "ref": ref, "hyp": wrong.get(i, ref)} for i, ref in refs.items())
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "config.yaml").write_text(json.dumps({"train": {"seed": 1, **keys}, "run": {"git_commit": "0123"}}))
    for name, column in (("train", "pruned_loss"), ("valid", "wer")):
        (folder / f"{name}.csv").write_text(f"epoch,step,{column}\n1,10,3.5\n2,20,1.5\n")
    wer.main(["--exp-dir", str(folder)])
    return folder


def page(first: Path, *others: Path) -> str:
    report.main(["--exp-dir", str(first), "--compare", *map(str, others)])
    return (first / "compare.html").read_text(encoding="utf-8")


def texts(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]))


def test_seeds_and_a_broken_model(tmp_path: Path) -> None:
    good = experiment(tmp_path / "good", {"u01": "one two three", "u02": "one"})
    again = experiment(tmp_path / "again", {"u02": "one", "u03": "one oh three oh", "u04": "one two three"}, seed=2)
    broken = experiment(tmp_path / "broken", {i: "oh" for i in list(REFS)[4:]})
    (good / "report.html").write_text("of another call")
    found = texts(page(good, again, broken))
    assert all(str(folder) in found for folder in (good, again, broken))
    rows = re.findall(
        r"greedy_ *search +greedy search +4\.17 +([\d.]+) +(\S+) +(not significant|significant) \((P [=<] [\d.]+)\)", found
    )
    assert rows == [
        ("6.25", "good", "not significant", "P = 0.75"),  # differences -1, 2, 1: 6 of 8 choices of signs
        ("83.33", "good", "significant", "P < 0.001"),
    ]
    assert "1 of 24 utterances got better" in found and "2 of 24 utterances got worse" in found
    assert found.index("errors: 0, then 2") < found.index("errors: 0, then 1")  # the largest change first
    assert re.search(r"train\.seed +1 +2 ", found) and "All keys have the same values." in found
    assert "trained.git_commit" not in found  # it is the same
    assert (good / "report.html").read_text() == "of another call"


def test_curves_are_over_one_another(tmp_path: Path) -> None:
    first, second = (experiment(tmp_path / name, {}) for name in ("first", "second"))
    (second / "train.csv").write_text("epoch,step,pruned_loss\n")  # it has just begun
    drawings = re.findall(r"<svg.*?</svg>", page(first, second), re.DOTALL)
    labels = [[name for name in ("first", "second") if f">{name}<" in drawing] for drawing in drawings]
    assert labels == [["first"], ["first", "second"]]


def test_other_utterances_are_left_out(tmp_path: Path) -> None:
    first = experiment(tmp_path / "first", {"u00": "oh"})
    second = experiment(tmp_path / "second", {}, {**dict(list(REFS.items())[:20]), "other": "x"})
    found = texts(page(first, second))
    assert "20 utterances in common" in found and "5 others" in found


def test_nothing_in_common_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = experiment(tmp_path / "first", {}), experiment(tmp_path / "second", {}, {"other": "x"})
    with pytest.raises(SystemExit):
        page(first, second)
    assert capsys.readouterr().err.startswith(f"error: {second}: ") and not (first / "compare.html").exists()


def test_foreign_text_is_shown_as_text(tmp_path: Path) -> None:
    refs = {f"{NOT_SAFE}{i}": f"{NOT_SAFE} one" for i in range(3)}
    first = experiment(tmp_path / "first", {}, refs, name=NOT_SAFE)
    second = experiment(tmp_path / "second", dict.fromkeys(refs, f"one {NOT_SAFE}"), refs)
    found = page(first, second)
    assert "<script" not in found and "\u202e" not in found
    assert f"{NOT_SAFE[:-1]}\\u202e2" in texts(found)
