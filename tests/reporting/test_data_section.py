"""The report's section on the data."""

from __future__ import annotations

import json
from pathlib import Path

from local.common.errors import UserError
from local.common.html_page import Page
from local.corpus.dropped import Dropped, write_dropped
from local.data.tokenizer import train_tokenizer
from local.reporting import prepared
from local.reporting.data import add_data, dropped_rows, lm_text, part_rows, spread_lines, token_use, use_lines
from local.reporting.prepared import parts_of, scan
from tests.reporting.small import HOSTILE, cut, experiment, prepare, row, shown

import pytest

CONFIG = {"lang": {"vocab_size": 30}, "data": {"train_parts": None}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    train = [cut(f"t{i}", text, 1.0 + i / 10) for i, text in enumerate(["ONE TWO", "TWO THREE FOUR FIVE", "ONE"] * 4)]
    prepare(tmp_path / "data", {"train": train, "dev": [cut("d", "ONE", 2.0)], "test": [cut("s", "TWO", 3.0)]})
    return tmp_path / "data"


def section(exp: Path, data: Path | None, config: dict | None = None) -> str:
    page = Page("a", exp)
    add_data(page, experiment(exp, {"greedy_search": [row("s", "TWO", "TWO", [])]}, data, CONFIG if config is None else config))
    return shown(page)


def test_the_section(tmp_path: Path, data: Path) -> None:
    dropped = [Dropped(HOSTILE, "train", "too long", "25 s")] + [Dropped(f"x{i}", "train", "too long") for i in range(4)]
    write_dropped(data / "dropped.tsv", dropped)
    write_dropped(data / "lang_bpe_30" / "dropped.tsv", [Dropped("y", "dev", "tokens: more than frames")])
    text = section(tmp_path, data)
    assert "<td>train</td><td>12</td><td>0.50</td><td>-</td><td>-</td><td>-</td><td>-</td><td>2.50</td><td>2</td>" in text
    assert text.count("<svg") == 1 and "In 12 training transcripts: 28 words" in text
    assert "<td>TWO THREE FOUR FIVE</td>" in text and text.index("<td>t1</td>") < text.index("<td>t4</td>") < text.index(
        "<td>t7<"
    )
    assert "<td>train</td><td>too long</td><td>5</td>" in text and "<td>dev</td><td>tokens</td><td>1</td>" in text
    assert "<script" not in text and "&lt;script&gt;" in text


def test_without_data_and_without_files(tmp_path: Path, data: Path) -> None:
    assert "--data-dir" in section(tmp_path, None) and "<table" not in section(tmp_path, None)
    (data / "summary.json").unlink()
    for name in ("bpe.model", "transcript.txt", "num_tokens/train.tsv"):
        (data / "lang_bpe_30" / name).unlink()
    assert "No utterance was dropped" in section(tmp_path, data)
    assert "<svg" in section(tmp_path, data, {})  # tokens unknown


@pytest.mark.parametrize(
    "content", ["[]", '{"parts": 5}', '{"parts": {"a": {"dropped": {"x": "y"}}}}', "{", '{"parts": {"a": 1}}']
)
def test_a_damaged_summary_is_named(data: Path, content: str) -> None:
    (data / "summary.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"summary\.json"):
        part_rows(data, None)


def test_how_transcripts_use_the_tokens() -> None:
    tokenizer = train_tokenizer(["ONE TWO THREE", "FOUR FIVE SIX"], 30)
    use = token_use(tokenizer, ["ONE ONE", "TWO ?"])
    ids = [i for found in tokenizer.encode(["ONE ONE", "TWO ?"]) for i in found]
    assert (use.words, use.texts, use.counts.total()) == (4, 2, len(ids)) and use.counts["<unk>"] == ids.count(2) == 1
    assert {t for t, n in use.counts.items() if n == 0} == set(tokenizer.tokens[3:]) - {tokenizer.tokens[i] for i in ids}
    text = " ".join(use_lines(tokenizer, use))
    assert f"{len(ids) / 4:.2f} tokens per word" in text and "never used" in text and "1 character without" in text


def test_a_large_text_is_read_evenly(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("".join(f"{i}\n" for i in range(1000)))
    found = spread_lines(tmp_path / "a", 100)
    assert 90 <= len(found) <= 100 and found[0] == "0" and int(found[-1]) > 980
    assert len(spread_lines(tmp_path / "a", 999)) == 500 and len(spread_lines(tmp_path / "a", 1000)) == 1000
    assert len(spread_lines(tmp_path / "a", 1001)) == 1000


def test_reasons_with_examples() -> None:
    rows = dropped_rows([Dropped("a", "dev", "silent"), *(Dropped(f"b{i}", "train", "too long: 25 s") for i in range(5))])
    assert rows == [["train", "too long", "5", "b0 (25 s), b1 (25 s), b2 (25 s), ..."], ["dev", "silent", "1", "a"]]


def test_a_part_is_read_up_to_a_limit(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len((whole := scan(data, ["train", "none"], {"t11"})).seconds) == 12 and whole.whole and "t11" in whole.cuts
    monkeypatch.setattr(prepared, "MOST", 5)
    assert len((first := scan(data, ["train"], {"t11"})).seconds) == 5 and not first.whole and not first.cuts


@pytest.mark.parametrize("duration", [None, "x", 10**400, []])
def test_a_damaged_cut_is_named(tmp_path: Path, duration: object) -> None:
    prepare(tmp_path / "data", {"train": [cut("a", "ONE TWO", 1.0), {**cut("b", "ONE", 1.0), "duration": duration}]})
    with pytest.raises(UserError, match=r"train\.jsonl\.gz:2"):
        scan(tmp_path / "data", ["train"])


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e300, 0.0])
def test_hostile_durations(tmp_path: Path, seconds: float) -> None:
    """They are longer in tokens than others, so that they are shown."""
    odd = cut("odd", "SEVEN EIGHT NINE TEN", seconds)
    prepare(tmp_path / "data", {"train": [odd, cut("a", "ONE", 1.0)], "test": [cut("s", "TWO", 3.0)]})
    assert "<svg" in section(tmp_path, tmp_path / "data")


def test_the_parts_of_the_configuration_count(tmp_path: Path, data: Path) -> None:
    found = experiment(tmp_path, {}, data, {"data": {"train_parts": ["a", "b"], "dev_parts": None, "test_parts": 5}})
    assert parts_of(found) == {"train": ["a", "b"], "dev": ["dev"], "test": ["test"]}
    assert parts_of(experiment(tmp_path, {})) == {"train": [], "dev": [], "test": []}


def test_data_of_cuts_alone(tmp_path: Path, data: Path) -> None:
    (data / "corpus.yaml").unlink()
    for path in [*(data / "lang_bpe_30").rglob("*.*"), data / "summary.json"]:
        path.unlink()
    text = section(tmp_path, data)
    assert "corpus.yaml" in text and "<svg" not in text and "<table" not in text


def test_the_text_of_the_language_model(tmp_path: Path) -> None:
    found = experiment(tmp_path, {}, config={"lm": {"text": "my.txt"}})
    assert lm_text(found) == ""
    (tmp_path / "lm").mkdir()
    train = {"sentences": 5, "words": 20, "tokens": 30, "unknown": 1}
    content = {"train": train, "dev": {"perplexity": {"per_word": 6.2911}}}
    (tmp_path / "lm" / "perplexity.json").write_text(json.dumps(content))
    assert "my.txt" in lm_text(found) and "30 tokens" in lm_text(found) and "6.29" in lm_text(found)
    (tmp_path / "lm" / "perplexity.json").write_text("{}")
    with pytest.raises(UserError, match=r"perplexity\.json"):
        lm_text(found)
