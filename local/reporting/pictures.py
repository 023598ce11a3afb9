"""A picture of an utterance: its log-mel features, with the words at their times above, and the tokens at theirs below."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.common.html_page import escape
from local.common.text_files import read_lines
from local.config.schema import FeaturesConfig
from local.data.durations import FRAME_SECONDS
from local.data.features import make_extractor
from local.data.tokenizer import SPACE
from local.decoding.word_times import TOKEN_SECONDS
from local.reporting.audio import LONGEST, UNREADABLE, samples_of
from local.reporting.experiment import Experiment, Row
from local.scoring.speech import Speech

import numpy as np
import torch
from PIL import Image

SHADES = 16  # of the picture: four bits per pixel
DARKEST, BRIGHTEST = 2, 99.8  # percentiles of the features
PER_FRAME = 2.5  # units of width; a frame is 10 ms
HEIGHT, LINE = 120, 13  # units: of the features, and of a line of text
LINES = 4  # of tokens, in turn, so that they do not cover each other
DEFAULTS = FeaturesConfig("precomputed", 80, 16000)  # of conf/base.yaml


@dataclass(frozen=True)
class Painter:
    """Make pictures of the utterances of one experiment.

    extractor: of its features, from audio at `rate` Hz. tokens: the text of each; empty if unknown.
    """

    extractor: Any
    rate: int
    tokens: tuple[str, ...]

    def picture(self, speech: Speech, row: Row, method: str) -> str:
        """Return the picture as HTML; "" if the audio cannot be read. row: the line of a decoded set. method: that made it."""
        if speech.duration > LONGEST:
            return ""
        try:
            samples = samples_of(speech, self.rate)
            x = self.extractor.extract(torch.from_numpy(samples).unsqueeze(0), self.rate)
        except (*UNREADABLE, AssertionError, RuntimeError):  # the extractor refuses what is shorter than a window
            return ""
        marks = self.token_marks(row) or word_marks(row)
        return drawn(np.asarray(x), marks, speech.words, f"Log-mel features; tokens of {method}")

    def token_marks(self, row: Row) -> list[Mark]:
        """Return the tokens of a hypothesis; none if they do not make its text, as those of another model do not."""
        numbers, times, sure = (row.get(key) for key in ("tokens", "times", "confidences"))
        if not (isinstance(numbers, list) and isinstance(times, list) and len(numbers) == len(times)):
            return []
        try:
            texts = [self.tokens[number] for number in numbers]
            confidences = [float(c) for c in sure] if sure else [None] * len(texts)
            marks = [(TOKEN_SECONDS * float(t), text, c) for t, text, c in zip(times, texts, confidences, strict=True)]
        except (IndexError, TypeError, ValueError):
            return []
        return marks if "".join(texts).replace(SPACE, " ").split() == row["hyp"].split() else []


Mark = tuple[float, str, "float | None"]  # second, text, confidence from 0 to 1


def make_painter(experiment: Experiment) -> Painter:
    """Return the painter for an experiment, with the features and the tokens of its config.yaml."""
    section = experiment.config.get("features")
    features = DEFAULTS
    if isinstance(section, dict) and all(isinstance(section.get(k), int) for k in ("num_mel_bins", "sampling_rate")):
        features = FeaturesConfig("precomputed", section["num_mel_bins"], section["sampling_rate"])
    found = experiment.lang_dir and experiment.lang_dir / "tokens.txt"
    try:
        extractor = make_extractor(features)
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError):  # of a config.yaml that others wrote
        features, extractor = DEFAULTS, make_extractor(DEFAULTS)
    return Painter(extractor, features.sampling_rate, read_tokens(found) if found and found.is_file() else ())


def read_tokens(path: Path) -> tuple[str, ...]:
    """Return the tokens of tokens.txt in the order of their numbers; none if the file is damaged."""
    try:
        pairs = [line.rsplit(" ", 1) for line in read_lines(path)]
        return tuple(text for text, _ in sorted(pairs, key=lambda pair: int(pair[1])))
    except (UserError, ValueError, IndexError):
        return ()


def word_marks(row: Row) -> list[Mark]:
    """Return the words of a hypothesis at their ends, for one whose tokens are unknown."""
    try:
        return [(float(w["end"]), str(w["word"]), float(w["confidence"])) for w in row.get("words") or ()]
    except (KeyError, TypeError, ValueError):
        return []


def drawn(x: np.ndarray, marks: Sequence[Mark], words: Sequence[tuple[str, float, float]], label: str) -> str:
    """Return features (T, F) as a picture with the reference's `words` above, if known, and the marks below."""
    width, unit = PER_FRAME * len(x), PER_FRAME / FRAME_SECONDS
    top = LINE + 4 if words else 2
    bottom = top + HEIGHT
    parts = [f'<image y="{top}" width="{width:g}" height="{HEIGHT}" preserveAspectRatio="none" href="{png(x)}"/>']
    for word, start, end in words:
        parts.append(f'<path class="said" d="M{unit * start:.0f} {top - 3}H{unit * end:.0f}"/>')
        parts.append(f'<text x="{unit * start:.0f}" y="{top - 6}">{escape(word)}</text>')
    for number, (second, text, sure) in enumerate(marks):
        place, y = f"{unit * second:.0f}", bottom + LINE * (1 + number % LINES)
        parts.append(f'<path d="M{place} {top}V{bottom}"/>')
        shown = escape(text) + ("" if sure is None else f'<tspan class="sure"> {100 * sure:.0f}</tspan>')
        parts.append(f'<text x="{place}" y="{y}">{shown}</text>')
    height = bottom + LINE * min(LINES, len(marks)) + 4
    size = f'width="{width + 40:.0f}" height="{height}"'  # the last token's text is longer than its time
    return f'<div class="scroll"><svg class="mel" {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg></div>'


def png(x: np.ndarray) -> str:
    """Return features (T, F) as the address of a small PNG, time to the right, that is in the address itself."""
    low, high = np.percentile(x, (DARKEST, BRIGHTEST))
    shades = np.clip((x - low) / max(high - low, 1e-6) * SHADES, 0, SHADES - 1).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(shades.T[::-1]))
    image.putpalette(palette())
    file = io.BytesIO()
    image.save(file, "PNG", bits=4)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@cache
def palette() -> bytes:
    """Return the colours of the shades, three bytes each."""
    from matplotlib import colormaps  # takes half a second

    return (255 * colormaps["magma"](np.linspace(0, 1, SHADES))[:, :3]).astype(np.uint8).tobytes()
