"""A page in headless Chromium: what it writes to its console, what it asks for, and how it looks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CONTRAST = """() => {
  const channels = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const worst = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.textContent.trim() !== "");
    if (!own || ["SCRIPT", "OPTION", "SELECT", "BUTTON"].includes(e.tagName) || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(channels(e instanceof SVGElement ? style.fill : style.color)), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) worst.push(e.tagName + " " + e.textContent.slice(0, 30) + " " + ratio.toFixed(2));
  }
  return worst;
}"""  # of WCAG 2, 1.4.3: at least 4.5


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; skip the test where it or playwright is absent."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium (package chromium of Debian), absent here")
    with api.sync_playwright() as p:
        # Root has no sandbox, nor have users in many containers. The pages are ours.
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> Iterator[Any]:
    """Open a file. At the end, check that nothing was asked of a network and that nothing failed or was said."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert said == []
    assert [unquote_to_bytes(url) for url in asked if not url.startswith("data:")] == [b"file://" + os.fsencode(path)]
    page.close()
