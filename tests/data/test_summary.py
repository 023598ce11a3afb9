"""data/<corpus>/README.md: what the data are, in numbers that can be counted again."""

from __future__ import annotations

import json
import re
from pathlib import Path

from local.common.errors import UserError
from local.data.summary import Summary
from local.data.token_counts import read_token_counts
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from tests.conftest import ROOT
from tests.speech_tree import write_noise

import numpy as np
import pytest
import soundfile
from lhotse import CutSet


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a table of 12 utterances of 1 to 2.1 s: one twice, one without text, one missing, one silent, one at 8 kHz."""
    folder = tmp_path / "my"
    lines = []
    for n in range(12):
        write_noise(folder / f"u{n}.wav", 1 + n / 10, 8000 if n == 3 else 16000, seed=n)
        lines.append(f"u{n}.wav\tONE TWO THREE\ts{n % 6}\n")
    soundfile.write(folder / "u4.wav", np.full(22400, 1e-4), 16000, subtype="FLOAT")
    soundfile.write(folder / "u5.wav", np.random.default_rng(0).uniform(-0.1, 0.1, (24000, 2)), 16000)
    lines += ["u0.wav\tONE\ts0\n", "x.wav\t\ts1\n", "gone.wav\tONE\ts2\n", "bad line\n"]
    (folder / "train.tsv").write_text("".join(lines))
    write_noise(folder / "t.wav", 1.0)
    (folder / "test.tsv").write_text("t.wav\tFOUR\ts0\n")
    return folder


def prepare(corpus: Path, last: int, *overrides: str) -> Path:
    data = corpus.parent / "data"
    arguments = ["--corpus-yaml", str(ROOT / "egs/custom/corpus.yaml"), "--corpus-dir", str(corpus)]
    for program, own in ((prepare_manifests, arguments), (prepare_cuts, []), (prepare_lang, []))[:last]:
        program([*own, "--data-dir", str(data), *overrides])
    return data


def rows(table: str) -> dict[str, list[str]]:
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| ")]
    return {label: values for label, *values in cells}


def test_the_table_counts_every_utterance(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = prepare(corpus, 3, "data.min_utterance_seconds=1.15")
    out, readme = capsys.readouterr().out, (data / "README.md").read_text()
    found = rows(readme)
    assert found[""] == ["train", "dev", "test"]
    dropped = [line.split("\t") for line in (data / "dropped.tsv").read_text().splitlines()]
    counts = {label: [int(v) for v in values] for label, values in found.items() if label.startswith("dropped")}
    assert len(dropped) == sum(map(sum, counts.values())) and len(counts) == 5
    cuts = {part: list(CutSet.from_file(data / "cuts" / f"{part}.jsonl.gz")) for part in found[""]}
    assert found["kept"] == [str(len(c)) for c in cuts.values()]
    moved = [int(n) for n in found["moved to other parts (-: from train)"]]
    for column, (part, kept) in enumerate(cuts.items()):
        read, lost = int(found["utterances read"][column]), sum(n[column] for n in counts.values())
        assert read - lost - moved[column] == len(kept), part
        assert found["hours"][column] == f"{sum(c.duration for c in kept) / 3600:.2f}"
        tokens = read_token_counts(data / "lang_bpe_500" / "num_tokens" / f"{part}.tsv")
        rate = sum(tokens.values()) / sum(c.duration for c in kept)
        assert float(found["tokens per second (lang.vocab_size=500)"][column]) == pytest.approx(rate, abs=1e-3)
    assert sum(int(n) for n in found["utterances read"]) == 17 and sum(moved) == 0 and moved[0] > 0
    assert "8000 Hz: 1" in " ".join(found["sampling rates"]) and "2: 1" in " ".join(found["channels"])
    assert sum(int(n or 0) for n in found["nearly silent (below -70 dB of full scale)"]) == 1
    assert sum(line in out for line in readme.splitlines() if line.startswith("| ")) == len(found)


def test_each_stage_adds_what_it_knows(corpus: Path) -> None:
    first = rows((prepare(corpus, 1) / "README.md").read_text())
    assert "kept" in first and not any("tokens per second" in label for label in first)
    data = prepare(corpus, 3, "lang.vocab_size=12")
    prepare_lang(["--data-dir", str(data), "lang.vocab_size=14"])
    assert {"tokens per second (lang.vocab_size=12)", "tokens per second (lang.vocab_size=14)"} < set(
        rows((data / "README.md").read_text())
    )
    again = rows((prepare(corpus, 1) / "README.md").read_text())
    assert any("tokens per second" in label for label in again), "later stages do not run again if the manifests are the same"
    table = corpus / "train.tsv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    assert not any("tokens" in label for label in rows((prepare(corpus, 2) / "README.md").read_text()))  # those were other data


def test_characters_other_than_letters_are_shown(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "test.tsv").write_text("t.wav\tfour, [noise] 5\n")
    data = prepare(corpus, 1)
    assert "- test: 1 of 1 transcripts" in capsys.readouterr().out
    assert [line for line in (data / "README.md").read_text().splitlines() if line.startswith("- ")][0].endswith(", 5 [ ]")


def test_channels_that_became_utterances_are_counted(corpus: Path) -> None:
    found = rows((prepare(corpus, 2, "data.channel=both") / "README.md").read_text())
    assert sum(int(n) for n in found["more, as data.channel=both"]) == 1


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    for content in ({"parts": {"train": 3}}, {"parts": 1}, {"parts": {"train": {"dropped": 1}}}):
        (tmp_path / "summary.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"summary.json.*stage 1"):
            Summary(tmp_path).write()
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json"):
        Summary(tmp_path)


def test_shared_speakers_are_warned_of_in_the_users_own_sets_only(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(corpus, 1)  # dev is split off
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "speakers are both" in line]
    assert line.startswith("warning: 1 ") and all(word in line for word in ("train", "test", "s0"))
    lines = [line.split("\t")[0] + "\tONE\ts1\n" for line in (corpus / "train.tsv").read_text().splitlines()[:12]]
    (corpus / "train.tsv").write_text("".join(lines))  # one speaker: dev has to share it
    prepare(corpus, 1)
    assert "speakers are both" not in capsys.readouterr().err


def test_names_of_parts_are_text_in_the_table(tmp_path: Path) -> None:
    hostile = {"a|b`c`": 1, "<img src=x onerror=y>": 2, "[x](z)\n| forged |": 3}
    summary = Summary(tmp_path, {"corpus": "<b>\n# forged", "parts": {}})
    for part, silent in hostile.items():
        summary.add_cuts(part, [1.0], silent, [])
    summary.write()
    lines = (tmp_path / "README.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {5} and not any("forged" in line for line in lines[1:4])
    assert not re.search(r"(?<!\\)[<`\[]", "".join(lines)) and r"a\|b\`c\`" in table[0]
