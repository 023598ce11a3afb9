"""Draw the pictures of README.md: the path from audio to WER, and the gradient by layer before and after the filter.

    .venv/bin/python -m studies.readme_figures --exp-dir exp/tiny --out docs/pictures

Write OUT/path.png and OUT/gradients.png. The second one shows the numbers of EXP/diagnose/sequences.tsv, which
local/diagnose.py writes; docs/gradients.md has the command that made the committed picture.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from local.common.atomic import atomic_write
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.html_page import new_figure, save_figure

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160  # 1280 pixels for the 8 inches of a picture: GitHub shows it at 800
LAYER = "encoder.encoder.layers."
WORST = 3  # utterances in colour
COLOURS = ("tab:red", "tab:orange", "tab:purple")
STAGES = (  # stage, what it does, what it writes
    ("prepare", "audio to\nfeatures, tokens", "data/<corpus>/"),
    ("train", "pruned RNN-T\nloss", "checkpoints/\ntrain.csv"),
    ("average", "weights of the\nlast epochs", "averaged.pt"),
    ("lm, tune", "LM, scales\nchosen on dev", "lm/lm.pt\ntuned.yaml"),
    ("decode", "greedy and\nbeam searches", "decode/<method>/\n<set>.jsonl"),
    ("score", "WER, CER,\nerror reports", "wer.md, errors/"),
)
BLUE, GREEN, GREY = "#dce8f7", "#dff0dc", "#f2f2f2"


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, size: float = 9.0) -> None:
    """Draw a rounded box with its lower left corner at (x, y); the first line of its text is bold."""
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.8"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="0.35", linewidth=0.9))
    first, *rest = text.split("\n")
    line = 2.55 * size / 9.0
    top = y + height / 2 + line * len(rest) / 2
    for i, words in enumerate((first, *rest)):
        weight = "bold" if i == 0 else "normal"
        ax.text(x + width / 2, top - i * line, words, ha="center", va="center", fontsize=size, fontweight=weight)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow between two points."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.25", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0})


def draw_path() -> Figure:
    """Return the picture of the stages of run.sh with the files that they write, and of the model below."""
    figure = new_figure(3.9, 8.0, DPI, facecolor="white")
    ax = figure.subplots()
    ax.set(xlim=(0, 100), ylim=(0, 48.0), aspect="equal")
    ax.axis("off")
    ax.text(0.5, 46.4, "./run.sh: one stage after the other, each reads what the one before wrote", fontsize=9.5, va="center")
    width, step = 13.8, 17.2
    for i, (name, action, files) in enumerate(STAGES):
        x = 0.2 + i * step
        box(ax, x, 34.2, width, 9.6, f"{name}\n{action}", BLUE)
        ax.text(
            x + width / 2, 32.9, files, ha="center", va="top", fontsize=8.0, color="0.25", family="monospace", linespacing=1.3
        )
        if i:
            arrow(ax, (x - step + width + 0.2, 39.0), (x - 0.2, 39.0))
    ax.text(0.5, 24.2, "The model: a streaming LSTM transducer", fontsize=9.5, va="center")
    box(ax, 0.2, 11.6, 14.5, 9.6, "features\n80 log-mel bins,\n100 frames/s", GREY)
    box(ax, 18.2, 11.6, 14.5, 9.6, "front end\n3 convolutions,\n25 frames/s", GREEN)
    box(
        ax,
        36.2,
        9.2,
        24.0,
        13.4,
        "encoder, 12 layers of\ngradient filter\nLSTM + residual\nfeed-forward + residual\nBasicNorm",
        GREEN,
    )
    box(ax, 36.2, 0.6, 24.0, 6.4, "decoder\nembeds the last 2 tokens", GREEN)
    box(ax, 65.0, 11.6, 15.0, 9.6, "joiner\ntanh(enc + dec),\nlinear", GREEN)
    box(ax, 84.0, 17.2, 15.8, 6.6, "training\npruned RNN-T loss", BLUE)
    box(ax, 84.0, 8.8, 15.8, 6.6, "decoding\nbest tokens", BLUE)
    for start, end in (
        ((14.9, 16.4), (18.0, 16.4)),
        ((32.9, 16.4), (36.0, 16.4)),
        ((60.4, 16.4), (64.8, 16.4)),
        ((60.4, 3.8), (70.5, 11.4)),
        ((80.2, 17.4), (83.8, 20.0)),
        ((80.2, 15.4), (83.8, 12.6)),
    ):
        arrow(ax, start, end)
    return figure


def read_norms(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the gradient's norm at every LSTM layer's input, before and after its filter: (layers, utterances) each.

    sequences.tsv has the norm at a module's output and its amplification; their product is the norm at its input.
    Raise `UserError` if the file is missing or the model had no filter.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; local/diagnose.py writes it")
    found: dict[str, dict[int, list[float]]] = {"lstm": defaultdict(list), "gradient_filter": defaultdict(list)}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            layer, _, part = row["module"].removeprefix(LAYER).partition(".")
            if part in found and row["amplification"]:
                found[part][int(layer)].append(float(row["gradient_norm"]) * float(row["amplification"]))
    if not found["gradient_filter"]:
        raise UserError(f"{path} has no gradient filter; run local/diagnose.py with gradient.control=filter")
    before, after = (np.array([norms[layer] for layer in sorted(norms)]) for norms in found.values())
    return before, after


def draw_gradients(before: NDArray[np.float64], after: NDArray[np.float64]) -> Figure:
    """Return one panel each for before and after the filter: one grey line per utterance, the worst ones in colour."""
    figure = new_figure(3.6, 8.0, DPI, facecolor="white")
    worst = np.argsort(-before.max(axis=0))[:WORST]
    panels = figure.subplots(1, 2, sharey=True)
    for ax, values, title in zip(panels, (before, after), ("before the filter", "after the filter"), strict=True):
        values = np.where(values > 0, values, np.nan)
        layers = range(len(values))
        for i in range(values.shape[1]):
            ax.plot(layers, values[:, i], color="0.8", linewidth=0.7, label="one utterance" if i == 0 else None)
        for i, colour in zip(worst, COLOURS, strict=False):
            ax.plot(layers, values[:, i], color=colour, linewidth=1.8, marker="o", markersize=4)
        ax.plot(layers, np.nanmedian(values, axis=1), color="black", linewidth=2.2, label="median utterance")
        ax.plot([], [], color=COLOURS[0], linewidth=1.8, marker="o", markersize=4, label=f"the {WORST} worst utterances")
        ax.set_yscale("log")
        ax.set_xticks(layers, [f"layer {i}" for i in layers])
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("LSTM layer (backpropagation runs from right to left)", fontsize=9)
        ax.tick_params(labelsize=9)
        ax.grid(alpha=0.3)
    panels[0].set_ylabel("norm of the gradient at the layer's input", fontsize=9)
    panels[1].legend(fontsize=8.5, loc="upper right")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette of 64 colours, a quarter of the size of one with all of them."""
    from PIL import Image  # comes with matplotlib

    picture = io.BytesIO()
    save_figure(figure, picture)
    with atomic_write(path) as tmp:
        Image.open(picture).convert("RGB").quantize(64).save(tmp, format="png", optimize=True)


@program
def main(argv: list[str] | None = None) -> None:
    """Draw both pictures."""
    parser = make_parser(__doc__, conf=False, exp_dir=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures, such as docs/pictures")
    args = parser.parse_args(argv)
    norms = read_norms(args.exp_dir / "diagnose" / "sequences.tsv")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, figure in (("path", draw_path()), ("gradients", draw_gradients(*norms))):
        save(figure, args.out / f"{name}.png")
        print(f"wrote {args.out / name}.png")


if __name__ == "__main__":
    main()
