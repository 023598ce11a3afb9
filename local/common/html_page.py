"""Write self-contained HTML pages of text, tables and plots, legible on light and on dark ground.

A plot is a PNG file beside the page, 1200 pixels wide, that the page also holds, or a drawing in the page alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from local.common.atomic import atomic_write, write_text
from local.common.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DPI = 12.0, 100  # inches and dots per inch: 1200 pixels
STYLE = """
:root { color-scheme: light dark; --text: #222; --back: #fff; --soft: #595959; --line: #ccc; --box: #f3f3f3; --link: #0b57a4; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --back: #161616; --soft: #a9a9a9; --line: #444; --box: #242424; --link: #8ab8f0; }
}
body { max-width: 1200px; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif; }
body { color: var(--text); background: var(--back); overflow-wrap: anywhere; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.scroll { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .2em .8em; border-bottom: 1px solid var(--line); text-align: right; }
th.left, td.left { text-align: left; }
pre { background: var(--box); padding: .8em; overflow-x: auto; line-height: 1.4; }
img { max-width: 100%; }
figure { margin: 1.5em 0; }
figcaption, .note { color: var(--soft); }
.note { font-size: .875em; margin: .4em 0; }
figure.narrow { display: inline-block; vertical-align: top; width: min(100%, 34em); margin: 1em .5em 1em 0; }
.drawing svg { display: block; width: 100%; height: auto; }
.drawing svg * { stroke-linejoin: round; stroke-linecap: butt; }
.drawing text { fill: currentColor; }
@media (max-width: 600px) { body { margin: 1em auto; padding: 0 .7em; } th, td { padding: .2em .5em; } }
"""
# Nothing from outside: no address, only what is in the page, and audio files beside it.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data: file:; base-uri 'none'; form-action 'none'"
)
_drawings = itertools.count()  # names in one drawing must differ from those in others of the page


def new_figure(height: float = 5.0, width: float = WIDTH, dpi: int = DPI, **style: Any) -> Figure:
    """Return an empty matplotlib figure of this size in inches; what is written in it is text, never a formula.

    It needs no display. All figures come from here: in others, `$` in an id would begin a formula, and a wrong one raises.
    """
    import matplotlib  # takes half a second
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False
    return Figure(figsize=(width, height), dpi=dpi, **{"layout": "constrained", **style})


def save_figure(figure: Figure, path: Path | IO[Any], dpi: float | None = None, form: str = "png", **options: Any) -> None:
    """Write a figure as PNG, or in another `form`. Ticks of logarithmic axes get numbers such as 0.01: theirs are formulas."""
    from matplotlib.ticker import Formatter, LogFormatterMathtext

    class Plain(Formatter):
        def __init__(self, chooser: LogFormatterMathtext) -> None:
            self.chooser = chooser  # of the ticks that have a number

        def set_locs(self, locs: Any) -> None:
            self.chooser.set_locs(locs)

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if self.chooser(x, pos) else ""

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(found := axis.get_major_formatter(), LogFormatterMathtext):
            axis.set_major_formatter(Plain(found))
        if isinstance(found := axis.get_minor_formatter(), LogFormatterMathtext):
            axis.set_minor_formatter(Plain(found))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # matplotlib's font has no Chinese, for example
        figure.savefig(path, format=form, dpi=dpi or figure.dpi, **options)


def svg(figure: Figure) -> str:
    """Return a figure as an element of a page. It is transparent, and what is black in it has the colour of the page's text."""
    import matplotlib

    for axes in figure.axes:
        axes.patch.set_alpha(0)
        if (legend := axes.get_legend()) is not None:
            legend.get_frame().set(facecolor="none", edgecolor="none")
    for legend in figure.legends:
        legend.get_frame().set(facecolor="none", edgecolor="none")
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": str(next(_drawings)), "font.sans-serif": ["DejaVu Sans"]}
    with matplotlib.rc_context(settings):  # text stays text
        save_figure(figure, file, form="svg", transparent=True, metadata=nothing)
    text = visible(file.getvalue(), keep="\n")
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|(?<=<g) id=\"[\w.]+\"|\n *", " ", text, flags=re.DOTALL)
    return text[text.index("<svg") :].replace("#000000", "currentColor")


def escape(text: str, keep: str = "") -> str:
    """Return text from others as HTML that shows it, also within quotes; the characters in `keep` stay. See `visible`."""
    return html.escape(visible(text, keep), quote=True)


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]], style: str = "", left: Collection[int] = (0,)) -> str:
    """Return a table whose cells are HTML. It scrolls in a box of its own. style: its class. left: columns aligned left."""
    sides = [' class="left"' if i in left else "" for i in range(len(head))]
    lines = ["<tr>" + "".join(f'<th scope="col"{s}>{c}</th>' for s, c in zip(sides, head, strict=True)) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td{s}>{c}</td>" for s, c in zip(sides, row, strict=True)) + "</tr>" for row in rows]
    attribute = f' class="{style}"' if style else ""
    return f'<div class="scroll"><table{attribute}>\n' + "\n".join(lines) + "\n</table></div>"


class Page:
    """Collect the parts of a page in their order. `write` makes the file; the PNG files are written at once."""

    def __init__(self, title: str, folder: Path, style: str = "", script: str = "") -> None:
        """Start an empty page.

        folder: for the page and the PNG files; it is made if missing. style: CSS beside ours. script: JavaScript. No other
        script runs in the page: a policy names the hash of this one.
        """
        self.title, self.folder, self.style, self.script = title, folder, style, script
        self.parts: list[str] = []
        self.sections: list[tuple[str, str]] = []  # title, anchor
        folder.mkdir(parents=True, exist_ok=True)

    def section(self, title: str, anchor: str) -> None:
        """Add the title of a section that the table of contents lists. anchor: its id, of letters and `-`."""
        self.sections.append((title, anchor))
        self.parts.append(f'<h2 id="{anchor}">{escape(title)}</h2>')

    def heading(self, text: str) -> None:
        """Add the title of a section, or of a part of one that `section` began."""
        tag = "h3" if self.sections else "h2"
        self.parts.append(f"<{tag}>{_text(text)}</{tag}>")

    def text(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self.parts.append(f"<p>{_text(text)}</p>")

    def note(self, text: str) -> None:
        """Add an explanation in small print."""
        self.parts.append(f'<p class="note">{_text(text)}</p>')

    def formula(self, text: str) -> None:
        """Add lines as they are, in a fixed-width font."""
        self.parts.append(f"<pre>{_text(text)}</pre>")

    def html(self, text: str) -> None:
        """Add HTML as it is; whoever makes it has applied `escape` to what is in it."""
        self.parts.append(text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> None:
        """Add a table of texts. The columns `left` are aligned left, the others right."""
        self.parts.append(table_html([_text(c) for c in head], [[_text(c) for c in row] for row in rows], left=left))

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """Write FOLDER/<name>.png and show the same picture in the page, with `caption` below it."""
        path = self.folder / f"{name}.png"
        with atomic_write(path) as tmp:
            save_figure(figure, tmp)
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{_text(caption)}">'
        self.parts.append(f"<figure>{image}<figcaption>{_text(caption)}</figcaption></figure>")

    def drawing(self, figure: Figure, caption: str) -> None:
        """Show a figure in the page as lines and text, legible on light and dark ground; there is no file of it.

        Figures up to 7 inches wide can be read on a phone, and are side by side on a wide screen. Use colours of medium
        lightness, and black.
        """
        label = f'<figure class="narrow"><div class="drawing" role="img" aria-label="{_text(caption)}">'
        self.parts.append(f"{label}{svg(figure)}</div><figcaption>{_text(caption)}</figcaption></figure>")

    def contents(self) -> str:
        """Return the table of contents; "" without sections."""
        links = " ".join(f'<a href="#{anchor}">{escape(title)}</a>' for title, anchor in self.sections)
        return f'<nav class="contents" aria-label="Contents">{links}</nav>' if links else ""

    def write(self, name: str) -> Path:
        """Write FOLDER/<name>.html, which needs no other file, and return its path."""
        title = _text(self.title)
        path = self.folder / f"{name}.html"
        policy = POLICY
        if self.script:
            digest = base64.b64encode(hashlib.sha256(self.script.encode()).digest()).decode()
            policy += f"; script-src 'sha256-{digest}'"
        head = f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        head += '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        head += f"<title>{title}</title>\n<style>{STYLE}{self.style}</style>"
        body = "\n".join([f"<h1>{title}</h1>", self.contents(), *self.parts])
        body += f"\n<script>{self.script}</script>" if self.script else ""
        page = f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
        write_text(path, page)
        return path


def _text(text: str) -> str:
    return escape(text, keep="\n")
