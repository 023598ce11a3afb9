"""Checks of texts: characters without tokens, repeated transcripts, LM text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from local.common.errors import UserError
from local.health import text
from local.health.text import check_characters, check_lm_text, check_repeated_texts
from tests.health.prepared_data import Folder, Spoken, run, words, write_data

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_data(tmp_path, {"train": words("train", 120), "dev": words("dev", 60)})


def lm_text(folder: Folder, lines: list[str]) -> str:
    path = folder.path.parent / "lm.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"lm.text={path}"


def test_characters_is_quiet(folder: Folder) -> None:
    assert run(check_characters, folder) == []


def test_characters_fires(tmp_path: Path) -> None:
    train = [*words("train", 97), *(Spoken(f"odd-{n}", "ÄÖ ONE") for n in range(3))]
    dev = [*words("dev", 28), Spoken("x-1", "ONE 7 \x1b"), Spoken("x-2", "TWO 7")]
    first, second = run(check_characters, write_data(tmp_path, {"train": train, "dev": dev}))
    assert "3 of 100" in first.what and "odd-0" in first.what and "Ä Ö" in first.what
    assert "2 of 30" in second.what and "x-1" in second.what and "7" in second.what
    assert "\x1b" not in str(second)


def test_repeated_texts_is_quiet(folder: Folder) -> None:
    assert run(check_repeated_texts, folder) == []


def test_repeated_texts_fires(tmp_path: Path) -> None:
    same = [replace(u, text="ONE") if n % 10 else u for n, u in enumerate(words("train", 100))]
    (found,) = run(check_repeated_texts, write_data(tmp_path, {"train": same, "dev": words("dev", 60)}))
    assert "of 100" in found.what and "'train'" in found.what and "'ONE'" in found.what


def test_lm_text_is_quiet(folder: Folder) -> None:
    assert run(check_lm_text, folder) == []  # without LM text
    lines = ["one two three four five"] * 50 + ["ONE TWO"]  # lang.normalise makes capitals
    assert run(check_lm_text, folder, lm_text(folder, lines)) == []


def test_lm_text_fires_for_characters_without_tokens(folder: Folder) -> None:
    lines = ["ONE TWO THREE FOUR FIVE"] * 48 + ["", "CHAPTER 7", "QUELLE ÉTÉ"]
    (found,) = run(check_lm_text, folder, lm_text(folder, lines))
    assert "2 of 50" in found.what and "line 50" in found.what and "7" in found.what


def test_lm_text_fires_for_missing_words_and_names_their_case(folder: Folder) -> None:
    (found,) = run(check_lm_text, folder, lm_text(folder, ["ONE TWO THREE"]))
    spoken = " ".join(u.text for u in words("train", 120)).split()
    share = 100 * sum(word in ("FOUR", "FIVE") for word in spoken) / len(spoken)
    assert f"{share:.0f} %" in found.what and "FIVE" in found.what and "lang.normalise" not in found.fix
    other = lm_text(folder, ["One Two Three Four Five ONE"])
    found = run(check_lm_text, folder, other, "lang.normalise=none")[-1]
    assert "lang.normalise" in found.fix


def test_lm_text_fires_for_transcripts_of_dev(folder: Folder) -> None:
    dev = [u.text for u in words("dev", 60)]
    lines = ["ONE TWO THREE FOUR FIVE", *dev]
    (found,) = run(check_lm_text, folder, lm_text(folder, lines))
    assert "'dev'" in found.what and "lm.txt" in found.what


def test_lm_text_is_quiet_if_the_transcripts_are_those_of_train_or_short(tmp_path: Path) -> None:
    texts = ["ONE TWO THREE FOUR FIVE ONE", "TWO"]
    parts = {part: [replace(u, text=texts[n % 2]) for n, u in enumerate(words(part, 60))] for part in ("train", "dev")}
    parts["dev"][1].text = "FIVE FOUR"
    folder = write_data(tmp_path, parts)
    assert run(check_lm_text, folder, lm_text(folder, [*texts, "FIVE FOUR", "THREE"])) == []


def test_lm_text_is_read_to_a_limit_unless_all_is_asked_for(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LINES", 10)
    late = lm_text(folder, ["ONE TWO THREE FOUR FIVE"] * 10 + ["7"])
    found = list(check_lm_text(folder.path, folder.cfg(late), False))
    assert [f.level for f in found] == ["note"] and "10 lines" in found[0].what
    assert [f.level for f in check_lm_text(folder.path, folder.cfg(late), True)] == ["warning"]


def test_lm_text_that_is_empty_or_no_text_is_named(folder: Folder) -> None:
    (found,) = run(check_lm_text, folder, lm_text(folder, ["", " "]))
    assert found.level == "error" and "lm.txt" in found.what
    assert run(check_lm_text, folder, "lm.text=/no/such/file") == []  # the checks of the configuration say it
    (folder.path.parent / "lm.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="lm.txt:1"):
        run(check_lm_text, folder, f"lm.text={folder.path.parent / 'lm.txt'}")
