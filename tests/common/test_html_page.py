"""Pages and plots: foreign text in them is text, neither markup nor a formula."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from local.common.html_page import Page, new_figure, save_figure
from tests.conftest import ROOT

import pytest

pytestmark = pytest.mark.filterwarnings("error")  # a letter that the font lacks is none
HOSTILE = r"$\frac{$ <script>alert(1)</script> & \x" + "\x1b[2J\u202e"


def texts(axis: object) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]  # type: ignore[attr-defined]


def test_a_page_shows_markup_as_text(tmp_path: Path) -> None:
    page = Page(HOSTILE, tmp_path)
    page.heading(HOSTILE)
    page.text(HOSTILE)
    page.formula(f"one\n{HOSTILE}")
    page.table([HOSTILE], [[HOSTILE]])
    figure = new_figure(2.0)
    figure.subplots().set_title(HOSTILE)
    page.figure(figure, "name", f'" onerror="x {HOSTILE}')
    text = page.write("page").read_text(encoding="utf-8")
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text and 'alt="&quot; onerror=&quot;x' in text
    assert text.count(r"&lt;script&gt;alert(1)&lt;/script&gt; &amp; \x\x1b[2J\u202e") == 9 and "<pre>one\n$" in text


def test_a_drawing_takes_the_colours_of_the_page(tmp_path: Path) -> None:
    """Its text is text, black is the page's colour, nothing is white; names within it differ from those of other drawings."""
    page = Page("a", tmp_path)
    page.section(HOSTILE, "first")
    for _ in range(2):
        figure = new_figure(2.0, 4.0)
        axes = figure.subplots()
        axes.plot([0, 1], [1e-7, 1e3], label=HOSTILE)
        axes.set(title=HOSTILE, yscale="log")
        axes.legend()
        page.drawing(figure, f'" onload="x {HOSTILE}')
    page.note(HOSTILE)
    text = page.write("page").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    names = [set(re.findall(r' id="([^"]*)"', drawing)) for drawing in drawings]
    assert len(drawings) == 2 and names[0] and not names[0] & names[1]
    assert "<script" not in text and "\x1b" not in text and 'aria-label="&quot; onload=&quot;x' in text
    assert text.count("&lt;script&gt;") >= 9 and '<a href="#first">' in text and '<h2 id="first">' in text
    for drawing in drawings:
        assert "currentColor" in drawing and not re.search("#000000|fill: #fff|<style|<metadata|http://[^w]", drawing)
        assert "$\\frac{$" in drawing and list(tmp_path.iterdir()) == [tmp_path / "page.html"]


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    without = Page("a", tmp_path).write("page").read_text(encoding="utf-8")
    assert "default-src 'none'" in without and "script-src" not in without and "<script" not in without
    script = "alert(1);\n// \u00e9"
    text = Page("a", tmp_path, "p { color: red }", script).write("page").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and f"<script>{script}</script>" in text and "p { color: red }" in text


def test_text_in_a_plot_is_no_formula(tmp_path: Path) -> None:
    """Every place for text; ticks of a logarithmic axis, which matplotlib writes as formulas, are plain numbers."""
    figure = new_figure(3.0)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [1e-7, 1e3], label=HOSTILE)
    left.set(title=HOSTILE, xlabel=HOSTILE, ylabel=HOSTILE, yscale="log")
    left.set_xticks([0, 1], [HOSTILE, "$x^2$"])
    left.legend(title=HOSTILE)
    right.text(0.5, 0.5, HOSTILE)
    right.set_xscale("log", base=2)
    figure.suptitle(HOSTILE)
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert texts(left.xaxis)[1] == "$x^2$" and {"1e-07", "1", "1000"} & set(texts(left.yaxis))
    assert not any("$" in label for axes in (left, right) for label in texts(axes.yaxis) + texts(right.xaxis))


@pytest.mark.parametrize("folder", ["local", "studies", "benchmarks", "egs"])
def test_all_figures_are_made_and_saved_in_one_place(folder: str) -> None:
    """There, `$` is switched off; a figure made elsewhere would read it as a formula."""
    made = re.compile(r"pyplot|\bFigure\(|\.savefig\(")
    found = [path for path in (ROOT / folder).rglob("*.py") if made.search(path.read_text(encoding="utf-8"))]
    assert found == [ROOT / "local" / "common" / "html_page.py"] * (folder == "local")
