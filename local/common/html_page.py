"""Write self-contained HTML pages of text, tables and plots; each plot is also a PNG file beside the page, 1200 pixels wide."""

from __future__ import annotations

import base64
import html
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from local.common.atomic import atomic_write, write_text
from local.common.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DPI = 12.0, 100  # inches and dots per inch: 1200 pixels
STYLE = """
body { max-width: 1200px; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .2em .8em; border-bottom: 1px solid #ccc; text-align: right; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; line-height: 1.4; }
img { max-width: 100%; }
figure { margin: 1.5em 0; }
figcaption { color: #555; }
"""


def new_figure(height: float = 5.0, width: float = WIDTH, dpi: int = DPI, **style: Any) -> Figure:
    """Return an empty matplotlib figure of this size in inches; what is written in it is text, never a formula.

    It needs no display. All figures come from here: in others, `$` in an id would begin a formula, and a wrong one raises.
    """
    import matplotlib  # takes half a second
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False
    return Figure(figsize=(width, height), dpi=dpi, **{"layout": "constrained", **style})


def save_figure(figure: Figure, path: Path | IO[bytes], dpi: float | None = None) -> None:
    """Write a figure as PNG. Ticks of logarithmic axes get numbers such as 0.01 and 1e-05: their own are formulas."""
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
        figure.savefig(path, format="png", dpi=dpi or figure.dpi)


def _escape(text: str) -> str:
    return html.escape(visible(text, keep="\n"), quote=True)


class Page:
    """Collect the parts of a page in their order. `write` makes the file; the PNG files are written at once."""

    def __init__(self, title: str, folder: Path) -> None:
        """Start an empty page. folder: for the page and the PNG files; it is made if missing."""
        self.title, self.folder = title, folder
        self.parts: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def heading(self, text: str) -> None:
        """Add the title of a section."""
        self.parts.append(f"<h2>{_escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self.parts.append(f"<p>{_escape(text)}</p>")

    def formula(self, text: str) -> None:
        """Add lines as they are, in a fixed-width font."""
        self.parts.append(f"<pre>{_escape(text)}</pre>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table of texts. The first column is aligned left, the others right."""
        lines = ["<tr>" + "".join(f"<th>{_escape(c)}</th>" for c in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{_escape(c)}</td>" for c in row) + "</tr>" for row in rows]
        self.parts.append("<table>\n" + "\n".join(lines) + "\n</table>")

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """Write FOLDER/<name>.png and show the same picture in the page, with `caption` below it."""
        path = self.folder / f"{name}.png"
        with atomic_write(path) as tmp:
            save_figure(figure, tmp)
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{_escape(caption)}">'
        self.parts.append(f"<figure>{image}<figcaption>{_escape(caption)}</figcaption></figure>")

    def write(self, name: str) -> Path:
        """Write FOLDER/<name>.html, which needs no other file, and return its path."""
        title = _escape(self.title)
        path = self.folder / f"{name}.html"
        head = f'<meta charset="utf-8">\n<title>{title}</title>\n<style>{STYLE}</style>'
        body = "\n".join([f"<h1>{title}</h1>", *self.parts])
        page = f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
        write_text(path, page)
        return path
