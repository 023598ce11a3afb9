"""The report's section on where an experiment came from."""

from __future__ import annotations

from pathlib import Path

from local.artifacts.decoded_sets import DecodedSet
from local.common.errors import UserError
from local.common.html_page import Page
from local.config import load_config
from local.config.load import to_dict
from local.reporting.origin import add_origin, best_tried, commit_note, differences, grouped, read_journal, stage_times
from tests.reporting.small import HOSTILE, MADE_BY, experiment, row, shown

import pytest

JOURNAL = [
    "2026-01-01 10:00:00\tvm\ttrain\t3600\t1\t./run.sh",
    "2026-01-01 12:00:00\tvm\ttrain\t60\t0\t./run.sh",
    "2026-01-01 12:01:00\tvm\taverage\t5\t0\t./run.sh",
    "2026-01-01 13:00:00\tother\tdecode\t7\t0\t./run.sh --stage decode",
]


def with_files(exp: Path, **files: str) -> Path:
    for name, text in files.items():
        path = exp / name.replace("__", "/").replace("_tsv", ".tsv").replace("_yaml", ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return exp


def test_differences_to_base() -> None:
    base = to_dict(load_config())
    config = to_dict(load_config(None, ["train.num_epochs=3", "decode.methods=[greedy_search]", "tune.lm_scale=[0.5]"]))
    assert differences(config, base) == [
        ("train.num_epochs", "3", "35"),
        ("decode.methods", '["greedy_search"]', '["greedy_search", "modified_beam_search", "fast_beam_search"]'),
        ("tune.lm_scale", "[0.5]", "[]"),
    ]
    assert differences(base | {"run": {"git_commit": "x"}}, base) == []
    del config["train"]["num_epochs"]
    assert ("train.num_epochs", "-", "35") in differences(config | {"new": {"key": None}}, base)
    assert ("new.key", "null", "-") in differences(config | {"new": {"key": None}}, base)


def test_hostile_configurations() -> None:
    """Whatever plain values a config.yaml has, they are shown."""
    found = differences({"a": float("nan"), 5: {None: [1]}, "b": {}, "c": HOSTILE}, {"a": {"b": 1}})
    assert {key for key, *_ in found} == {"a", "5.None", "b", "c", "a.b"}


def test_the_journal(tmp_path: Path) -> None:
    exp = with_files(tmp_path, log__journal_tsv="\n".join([*JOURNAL, "torn\tline", "a\tb\tc\tx\t0\td", ""]))
    calls, damaged = read_journal(exp / "log" / "journal.tsv")
    assert len(calls) == 4 and damaged == 2 and read_journal(exp / "none.tsv") == ([], 0)
    assert stage_times(calls) == [
        ["train", "2", "1", "1:01:00"],
        ["average", "1", "0", "0:05"],
        ["decode", "1", "0", "0:07"],
        ["all", "4", "1", "1:01:12"],
    ]
    assert grouped(calls) == [
        ["2026-01-01 10:00:00", "vm", "train", "1:00:00", "1", "./run.sh"],
        ["2026-01-01 12:00:00", "vm", "train, average", "1:05", "0", "./run.sh"],
        ["2026-01-01 13:00:00", "other", "decode", "0:07", "0", "./run.sh --stage decode"],
    ]


def test_the_best_of_what_tuning_tried(tmp_path: Path) -> None:
    head = "method\tlm_scale\terrors\twords\twer\n"
    rows = [f"a\t0.{i}\t{9 - i}\t100\t{9 - i}.0\n" for i in range(5)] + ["b\t\t3\t100\t3.0\n"]
    path = with_files(tmp_path, tune_tsv=head + "".join(rows)) / "tune.tsv"
    assert [cells[:2] for cells in best_tried(path)] == [["a", f"lm_scale=0.{i}"] for i in (4, 3, 2)] + [["b", "no setting"]]
    assert best_tried(path)[-1] == ["b", "no setting", "3", "100", "3.0"]


@pytest.mark.parametrize(
    "text", ["method\twer\na\tx\n", "wer\n5\n", "method\terrors\twords\twer\na\t1\t2\t3\t4\n", "method\twer\na\n"]
)
def test_a_damaged_table_of_trials_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"tune\.tsv"):
        best_tried(with_files(tmp_path, tune_tsv=text) / "tune.tsv")


def test_commits_that_differ(tmp_path: Path) -> None:
    rows = {"greedy_search": [row("1", "A", "A", [])]}
    ours = experiment(tmp_path, rows, config={"run": {"git_commit": "abc"}}, stats={"made_by": MADE_BY})
    assert commit_note(ours) is None
    ours.sets.append(DecodedSet(tmp_path / "decode" / "b" / "test.jsonl", {"made_by": {**MADE_BY, "commit": "def"}}))
    assert "abc" in (note := commit_note(ours) or "") and "def" in note
    assert commit_note(experiment(tmp_path, rows, stats={"made_by": MADE_BY})) is None  # the training's is unknown


def test_the_section(tmp_path: Path) -> None:
    config = to_dict(load_config(None, ["train.num_epochs=3"]))
    config["run"] = {
        "git_commit": "old",
        "versions": {"torch": HOSTILE},
        "tokens_hash": "f0d",
        "vocab_size": 77,
        "parameters": 5,
    }
    with_files(
        tmp_path, log__journal_tsv=f"{JOURNAL[0]} --conf {HOSTILE}\n", tuned_yaml="decode: {by_method: {}, lm_scale: 0.7}\n"
    )
    page = Page("a", tmp_path)
    add_origin(
        page, experiment(tmp_path, {"greedy_search": [row("1", "A", "A", [])]}, config=config, stats={"made_by": MADE_BY})
    )
    text = shown(page)
    assert (
        "<th>base.yaml</th>" in text
        and "<td>train.num_epochs</td><td>3</td><td>35</td>" in text
        and "<td>decode.lm_scale</td><td>0.7</td>" in text
    )
    assert (
        "77, hash f0d" in text
        and "<td>parameters</td><td>5</td>" in text
        and "per pass" not in text  # the configuration does not say
        and "epoch-2-avg-1 (epoch 2)" in text
        and "commit old" in text.lower()
    )
    assert "<script" not in text and text.count("&lt;script&gt;") == 3  # version, command, whole configuration
    assert "<summary>" in text and "num_epochs: 3" in text


@pytest.mark.parametrize("config", [{}, {"run": 5}, {"run": {"versions": 5}}, {"run": {"versions": {5: None}}}])
def test_what_is_unknown_is_a_dash(tmp_path: Path, config: dict) -> None:
    page = Page("a", tmp_path)
    add_origin(page, experiment(tmp_path, {"greedy_search": [row("1", "A", "A", [])]}, config=config))
    assert "<td>trained by commit</td><td>-</td>" in shown(page) and "journal.tsv" in shown(page)


def test_a_configuration_without_differences(tmp_path: Path) -> None:
    page = Page("a", tmp_path)
    add_origin(page, experiment(tmp_path, {"greedy_search": [row("1", "A", "A", [])]}, config=to_dict(load_config())))
    assert "No key differs" in shown(page) and "<th>base.yaml</th>" not in shown(page)


def test_a_damaged_file_of_settings_is_named(tmp_path: Path) -> None:
    with_files(tmp_path, tuned_yaml="5\n")
    with pytest.raises(UserError, match=r"tuned\.yaml"):
        add_origin(Page("a", tmp_path), experiment(tmp_path, {"greedy_search": [row("1", "A", "A", [])]}))
