"""Reports in headless Chromium: no error, no network, filters and sorting, audio, phones, dark mode, hostile texts."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_averaged
from local.common.visible import visible
from local.decoding.word_times import level_of, timed_words
from local.report import main as report
from local.wer import main as wer
from tests.conftest import ROOT
from tests.digits import DEV, digits_folder, features, hypotheses, references, write_digits_checkpoint
from tests.reference import read_audio
from tests.reporting.browser import CONTRAST, chromium, opened
from tests.reporting.fabricated import METHODS, Said, cut, make, write_report

import pytest

SHOTS = os.environ.get("REPORT_SHOTS")  # a folder for screenshots, to be looked at
EVERY = 4  # one of so many digits utterances
HACK = "window.hacked=1"
HOSTILE = (
    f"<script>{HACK}</script>",
    f"</script><script>{HACK}</script>",
    f"<img/src=x/onerror={HACK}>",
    f'"\'onfocus={HACK}/autofocus/x="',
    f"javascript:{HACK}",
    "<!--",
    "]]></svg></table>",
    "&lt;b&gt;&#x41;",
    "a\u202eb\u2066c\u200f",
    "\x1b[2J\x00\x07\x9b",
    "__proto__",
    "x" * 10_000,
)
SAID = (
    Said("u1", "anna", "GREEN LAMP RED", ("GREEN LAMP", "GREEN RED"), 1.5),
    Said("u2", "ben", "BLUE DOOR", ("GREEN DOOR", "GREEN DOOR"), 2.0),
    Said("u3", "anna", "RED", ("RED NOW PLEASE", "RED")),
    Said("u4", "ben", "שלום עולם", ("שלום", "שלום עולם")),
    Said("u5", "cleo", "GREEN", ("GREEN", "GREEN")),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return write_report(make(folder, SAID, {"\u2581GREEN": 0, "\u2581RED": 1, "\u2581DOOR": 2, "\u2581LAMP": 3}))


def ids(page: Any) -> list[str]:
    return page.locator("article:not([hidden]) h3").all_text_contents()


def check_whole(browser: Any, path: Path, name: str) -> None:
    """Check what every report must have; name: of its screenshots."""
    assert path.stat().st_size < 15e6
    for width in (1200, 400):
        for scheme in ("light", "dark"):
            with opened(browser, path, width, scheme) as page:
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                page.add_style_tag(content="article { content-visibility: visible !important }")
                assert page.evaluate(CONTRAST) == []
                if SHOTS:
                    page.screenshot(path=f"{SHOTS}/{name}_{width}_{scheme}.png", full_page=True)
    with opened(browser, path) as page:
        everything = ids(page)
        page.select_option("#f-sort", "id")
        assert sorted(everything) == ids(page) and len(everything) > 0
        page.fill("#f-text", everything[0])
        most = everything.count(everything[0]) + 1
        page.wait_for_function("n => document.querySelectorAll('article:not([hidden])').length <= n", arg=most)
        assert everything[0] in ids(page) and len(ids(page)) <= most
        page.locator("details[open] button[data-confusion]").first.click()
        assert 0 < len(ids(page)) <= len(everything) and page.input_value("#f-text") == ""
        page.click("#f-clear")
        assert ids(page) == sorted(everything)
        duration = "a => new Promise(r => { a.onloadedmetadata = () => r(a.duration); a.load(); })"
        assert page.locator("audio").first.evaluate(duration) > 0


def test_a_small_report(browser: Any, small: Path) -> None:
    check_whole(browser, small, "small")


def test_filters_and_sorting(browser: Any, small: Path) -> None:
    with opened(browser, small) as page:
        assert ids(page) == ["u1", "u2", "u3", "u4"] and page.inner_text("#f-count") == "4 of 4 wrong utterances"
        page.select_option("#f-speaker", "ben")
        assert ids(page) == ["u2", "u4"]
        page.select_option("#f-speaker", "")
        page.select_option("#f-kind", "i")
        assert ids(page) == ["u3"]
        page.select_option("#f-method", "1")  # modified_beam_search inserts nothing
        assert ids(page) == []
        page.select_option("#f-kind", "")
        assert ids(page) == ["u1", "u2"]
        page.select_option("#f-sort", "wer")
        assert ids(page) == ["u2", "u1"]
        page.select_option("#f-method", "")
        assert ids(page) == ["u3", "u2", "u1", "u4"]  # 2 of 1, 2 of 2, 2 of 3, 1 of 2 wrong
        page.select_option("#f-sort", "duration")
        assert ids(page) == ["u2", "u1", "u3", "u4"]
        page.select_option("#f-sort", "speaker")
        assert ids(page) == ["u1", "u3", "u2", "u4"]
        page.select_option("#f-kind", "e")
        assert ids(page) == ["u1", "u4"]


def test_a_confusion_shows_its_utterances_and_the_keyboard_reaches_it(browser: Any, small: Path) -> None:
    with opened(browser, small) as page:
        button = page.locator("details[open] tr", has_text="BLUE").locator("button")
        button.focus()
        page.keyboard.press("Enter")
        assert ids(page) == ["u2"] and button.get_attribute("aria-pressed") == "true"
        page.keyboard.press("Enter")
        assert len(ids(page)) == 4 and button.get_attribute("aria-pressed") == "false"


def test_marks_tokens_and_directions(browser: Any, small: Path) -> None:
    with opened(browser, small) as page:

        def marked(utterance: str, tag: str) -> list[str]:
            return page.locator("article", has_text=utterance).locator(f"td {tag}").all_text_contents()

        assert marked("u1", "del") == ["RED", "LAMP"] and marked("u2", "mark") == ["GREEN"]  # one line for both methods
        assert marked("u3", "ins") == ["NOW", "PLEASE"] and marked("u4", "del") == ["עולם"]
        tables = page.locator("table.aligned")
        assert [tables.nth(n).get_attribute("dir") for n in range(4)] == ["ltr", "ltr", "ltr", "rtl"]
        tokens = page.locator("article", has_text="u2").locator("svg.mel text").all_text_contents()
        assert tokens == ["\u2581GREEN 75", "\u2581DOOR 75"]


@pytest.mark.slow
def test_a_long_list_is_shown_by_the_hundred(browser: Any, tmp_path: Path) -> None:
    many = [Said(f"u{n:03d}", "s", "RED", ("RED" if n < 10 else "", "GREEN"), 0.2) for n in range(120)]
    with opened(browser, write_report(make(tmp_path, many))) as page:
        assert len(ids(page)) == 100 and page.inner_text("#f-count") == "120 of 120 wrong utterances"
        page.click("#f-more")
        assert len(ids(page)) == 120 and not page.locator("#f-more").is_visible()
        for order in ("id", "errors", "id"):
            page.select_option("#f-sort", order)
        assert ids(page) == [f"u{n:03d}" for n in range(100)]


def test_without_script_everything_is_shown(browser: Any, small: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(small.as_uri())
    assert page.locator("article").count() == 4 == page.locator("article:visible").count()
    assert not page.locator("#filter").is_visible() and page.locator("button:visible").count() == 0
    context.close()


@pytest.mark.slow
def test_hostile_texts_are_shown_as_text(browser: Any, tmp_path: Path) -> None:
    """Ids, speakers, references, hypotheses, tokens and the folder's name."""
    words = [text for text in HOSTILE if not text.isspace()]
    tokens = {f"\u2581{word}": n for n, word in enumerate(w for w in words if visible(w) == w)}
    utterances = [Said(text, text, f"{text} RED", (f"RED {text}", text), 0.5) for text in words]
    path = write_report(make(tmp_path, utterances, tokens, name="<b onclick=x>\u202e\udcff&amp;"))
    with opened(browser, path) as page:
        assert page.evaluate("window.hacked") is None
        assert sorted(page.locator("article h3").all_text_contents()) == sorted(map(visible, words))
        cells = set(page.locator("table.aligned td").all_text_contents())
        assert {visible(text) for text in words if len(text) < 200} < cells and max(map(len, cells)) < 250
        assert page.title() == visible(f"Report of {path.parent}") == page.inner_text("h1")
        assert [o for o in map(visible, words) if o not in page.locator("#f-speaker option").all_text_contents()] == []
        drawn = page.locator("svg.mel text").all_text_contents()
        assert all(any(visible(w) in text for text in drawn) for w in words if visible(w) == w)
        for text in words:
            page.select_option("#f-speaker", visible(text))
            assert ids(page) == [visible(text)]
        page.select_option("#f-speaker", "")
        for button in page.locator("button[data-confusion]:visible").all():
            button.click()
        assert page.evaluate("window.hacked") is None
        assert page.locator("body *[onclick], body *[onerror], body *[onfocus], body b, body img").count() == 0
    check_whole(browser, path, "hostile")


@pytest.mark.slow
def test_the_digits(browser: Any, shared: Path, tmp_path: Path, one_thread: None) -> None:
    """Human speech, recognised by the recorded model."""
    audio, texts = read_audio(digits_folder(shared, DEV), EVERY), references(shared)
    loaded = load_averaged(write_digits_checkpoint(shared, tmp_path / "model"))
    utterances = [Said(name, name.split("-")[0], texts[name], (), len(samples) / 16000) for name, samples in audio.items()]
    exp = make_folder(tmp_path, utterances, {p.stem: p for p in digits_folder(shared, DEV).rglob("*.flac")})
    levels = [level_of(x) for x in features(loaded[1].features, audio.values())]
    for method in METHODS:
        found = zip(utterances, levels, hypotheses(loaded, list(audio.values()), method), strict=True)
        rows = [
            {"id": u.id, "ref": u.ref, "hyp": loaded[2].decode(h.tokens), "words": timed_words(h, loaded[2], level)}
            for u, level, h in found
        ]
        (exp / "decode" / method).mkdir(parents=True)
        (exp / "decode" / method / "dev.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    wer(["--exp-dir", str(exp)])
    check_whole(browser, write_report(exp), "digits")


def make_folder(folder: Path, utterances: list[Said], audio: dict[str, Path]) -> Path:
    """Write the cuts of FOLDER/data and return FOLDER/exp, which is empty."""
    (folder / "data" / "cuts").mkdir(parents=True)
    (folder / "exp").mkdir()
    lines = "".join(json.dumps(cut(u, audio[u.id])) + "\n" for u in utterances)
    (folder / "data" / "cuts" / "dev.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return folder / "exp"


@pytest.mark.slow
def test_tiny(browser: Any, tmp_path: Path) -> None:
    exp, data = (Path(os.environ.get(f"TINY_{kind.upper()}", ROOT / kind / "tiny")) for kind in ("exp", "data"))
    if not (exp / "wer.json").is_file() or not (data / "cuts").is_dir():
        pytest.skip("needs exp/tiny and data/tiny, which ./run.sh makes")
    leave = shutil.ignore_patterns("checkpoints", "*.pt", ".lock", ".*")
    shutil.copytree(exp, tmp_path / "exp", ignore=leave)
    wer(["--exp-dir", str(tmp_path / "exp"), "--data-dir", str(data)])
    report(["--exp-dir", str(tmp_path / "exp"), "--data-dir", str(data)])
    check_whole(browser, tmp_path / "exp" / "report.html", "tiny")
