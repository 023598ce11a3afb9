"""Compare the optimisers on the language model and on the recogniser, each at three learning rates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from local.artifacts.language_model import lm_sizes
from local.common.html_page import Page, new_figure
from local.common.text_files import iterate_lines
from local.config.schema import Config
from local.corpus.corpus_yaml import load_corpus
from local.data.tokenizer import Tokenizer, lang_dir
from local.data.transcripts import read_texts
from local.training.lm_text import TokenText, tokenize
from local.training.lm_trainer import CLIP_NORM
from model.build import build_model
from model.lm import LstmLm
from model.optim import make_optimizer
from studies.short_training import (
    POOL,
    Row,
    Speech,
    draw_curves,
    extremes,
    held_out_losses,
    number,
    run_all,
    small_config,
    train,
    train_recogniser,
    write_csv,
)

import numpy as np
import torch
from torch import Tensor

LM, RECOGNISER = "language model", "recogniser"
FACTOR = 4.0  # between neighbouring rates
# The middle of the three rates, found on the tiny corpus. The recogniser's loss is a sum over the batch, the language
# model's is a mean over tokens, so rates differ for optimisers whose step depends on the gradient's size.
MIDDLE_RATE = {
    LM: {"eve": 1.6e-2, "adam": 1.6e-2, "rmsprop": 1.6e-3, "adagrad": 0.16, "sgd": 8.0, "momentum": 0.8},
    RECOGNISER: {"eve": 3e-3, "adam": 3e-3, "rmsprop": 3e-4, "adagrad": 1e-2, "sgd": 1e-3, "momentum": 1e-4},
}
STEPS = {LM: 200, RECOGNISER: 100}
SIZE = 8  # utterances per batch of the recogniser
POINTS = 10  # measurements of the held-out loss after the first
HELD_OUT_SENTENCES = 256


@dataclass(frozen=True)
class OptimiserRun:
    """One training. cfg: complete, with optimiser and rate. texts: training and held-out text of the language model."""

    task: str
    cfg: Config
    data_dir: Path
    steps: int
    texts: tuple[TokenText, TokenText] | None = None


def section(page: Page, cfg: Config, data_dir: Path, steps: dict[str, int] = STEPS) -> None:
    """Train the language model and a small recogniser with every optimiser at three learning rates, on the CPU.

    Write optimisers.csv and optimisers.png to page.folder and add a part to the page. steps: batches of each task.

    Raises:
        UserError: data_dir is not prepared.
    """
    texts = _texts(cfg, data_dir)
    jobs = []
    for task in (RECOGNISER, LM):  # the longest first, so that no core works alone at the end
        for name, middle in MIDDLE_RATE[task].items():
            for rate in (middle / FACTOR, middle, middle * FACTOR):
                own = small_config(cfg, f"optim.name={name}", f"optim.lr={rate:.6g}")
                jobs.append(OptimiserRun(task, own, data_dir, steps[task], texts if task == LM else None))
    results = run_all(run, jobs, "optimisers")
    rows = [row for result in results for row in result]
    write_csv(page.folder / "optimisers.csv", rows)
    page.heading("Optimisers")
    lm = jobs[-1].cfg.lm
    page.text(
        f"Every optimiser trains two models at three constant learning rates, each {FACTOR:g} times the one before. All runs "
        "of a model start from the same weights and see the same batches. The models are a language model on the training "
        f"transcripts ({lm.num_layers} layer of {lm.hidden} cells, {steps[LM]} batches of {lm.batch_tokens} tokens, gradient "
        f"clipped at {CLIP_NORM:g} as in the recipe) and a recogniser ({jobs[0].cfg.model.encoder.num_layers} layers, "
        f"{steps[RECOGNISER]} batches of {SIZE} utterances, gradient.control={cfg.gradient.control}). Losses are measured on "
        "one held-out batch in evaluation mode, in nats per token and per output frame. The upper plots show the rate with "
        "the lowest final loss, the lower plots show all rates. There is only one seed: small differences mean little."
    )
    finals = {task: final_losses([row for row in rows if row["task"] == task]) for task in (LM, RECOGNISER)}
    _plot(page, rows, finals)
    _table(page, finals)


def run(job: OptimiserRun) -> list[Row]:
    """Run one training and return its rows of optimisers.csv."""
    every = max(job.steps // POINTS, 1)
    rows = _run_lm(job, every) if job.task == LM else _run_recogniser(job, every)
    name = {"task": job.task, "optimiser": job.cfg.optim.name, "lr": job.cfg.optim.lr}
    return [{**name, **row} for row in rows]


def _texts(cfg: Config, data_dir: Path) -> tuple[TokenText, TokenText]:
    """Return the training transcripts, and the first sentences of the dev parts, as tokens."""
    tokenizer = Tokenizer.from_file(lang_dir(data_dir, cfg.lang) / "bpe.model")
    transcripts = lang_dir(data_dir, cfg.lang) / "transcript.txt"
    parts = load_corpus(data_dir / "corpus.yaml", cfg.data).dev
    dev = read_texts(data_dir, parts)[:HELD_OUT_SENTENCES]
    train_text = tokenize(itertools.islice(iterate_lines(transcripts), POOL), tokenizer, str(transcripts))
    return train_text, tokenize(dev, tokenizer, f"dev parts {', '.join(parts)}")


def _run_lm(job: OptimiserRun, every: int) -> list[Row]:
    assert job.texts is not None
    cfg, (text, dev) = job.cfg, job.texts
    vocab_size = Tokenizer.from_file(lang_dir(job.data_dir, cfg.lang) / "bpe.model").vocab_size
    torch.manual_seed(cfg.train.seed)
    model = LstmLm(**lm_sizes(cfg, vocab_size))
    held_out = dev.collate(np.arange(len(dev.lens)))
    batches = _lm_batches(text, cfg)

    def per_token(tokens: Tensor, lens: Tensor) -> Tensor:
        return model(tokens, lens).sum() / (lens.sum() + len(lens))

    @torch.no_grad()
    def measure(step: int) -> Row:
        model.eval()
        loss = float(per_token(*held_out))
        model.train()
        return {"loss": loss}

    optimizer = make_optimizer(model.parameters(), cfg.optim)
    return train(
        model, optimizer, lambda step: per_token(*next(batches)), measure, steps=job.steps, every=every, clip_norm=CLIP_NORM
    )


def _lm_batches(text: TokenText, cfg: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches (tokens, lens) without end, newly drawn in each epoch."""
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(1000003 * cfg.train.seed + epoch)
        yield from map(text.collate, text.batches(cfg.lm.batch_tokens, generator))


def _run_recogniser(job: OptimiserRun, every: int) -> list[Row]:
    cfg = job.cfg
    speech = Speech(cfg, job.data_dir)
    held_out = speech.held_out()
    torch.manual_seed(cfg.train.seed)
    model = build_model(cfg, speech.tokenizer.vocab_size)

    def measure(step: int) -> Row:
        return {"loss": held_out_losses(model, held_out, cfg.loss)["loss"]}

    optimizer = make_optimizer(model.parameters(), cfg.optim)
    return train_recogniser(model, optimizer, speech, cfg, SIZE, measure, steps=job.steps, every=every)


def final_losses(rows: list[Row]) -> dict[str, dict[float, float]]:
    """Return the loss of each run's last row, by optimiser and rate. rows: the rows of one task."""
    finals: dict[str, dict[float, float]] = {}
    for row in rows:
        finals.setdefault(row["optimiser"], {})[row["lr"]] = row["loss"]
    return finals


def best_rate(finals: dict[float, float]) -> float:
    """Return the rate with the lowest final loss; non-finite losses come last."""
    return min(finals, key=lambda rate: finals[rate] if math.isfinite(finals[rate]) else math.inf)


def _plot(page: Page, rows: list[Row], finals: dict[str, dict[str, dict[float, float]]]) -> None:
    figure = new_figure(9.0)
    panels = figure.subplots(2, 2)
    for (above, below), (task, by_name) in zip(panels.T, finals.items(), strict=True):
        best = {name: best_rate(by_rate) for name, by_rate in by_name.items()}
        curves: dict[str, list[tuple[float, float]]] = {f"{name}, {rate:.3g}": [] for name, rate in best.items()}
        for row in rows:
            if row["task"] == task and row["lr"] == best[row["optimiser"]]:
                curves[f"{row['optimiser']}, {row['lr']:.3g}"].append((row["step"], row["loss"]))
        draw_curves(above, curves)
        unit = "token" if task == LM else "output frame"
        above.set(title=task, xlabel="trained batches", ylabel=f"held-out loss (nats per {unit})")
        above.legend(title="optimiser, rate", loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
        middle = MIDDLE_RATE[task]
        draw_curves(below, {name: [(rate / middle[name], loss) for rate, loss in by_name[name].items()] for name in by_name})
        below.set(xlabel="learning rate / middle rate", ylabel=f"final loss (nats per {unit})")
        below.set_xscale("log")
        below.set_xticks([1 / FACTOR, 1, FACTOR], [f"1/{FACTOR:g}", "1", f"{FACTOR:g}"])
        below.xaxis.minorticks_off()
    caption = "Top: held-out loss against trained batches at each optimiser's best rate. Bottom: final loss against the rate."
    page.figure(figure, "optimisers", caption)


def _table(page: Page, finals: dict[str, dict[str, dict[float, float]]]) -> None:
    for task, by_name in finals.items():
        head = [
            task,
            "best rate",
            "final loss",
            *(f"loss at {factor} rate" for factor in (f"1/{FACTOR:g}", "middle", f"{FACTOR:g} x")),
        ]
        best = {name: best_rate(by_rate) for name, by_rate in by_name.items()}
        rows = []
        for name, by_rate in by_name.items():
            rows.append([name, f"{best[name]:.3g}", number(by_rate[best[name]]), *map(number, by_rate.values())])
        page.table(head, rows)
        loss = {name: by_rate[best[name]] for name, by_rate in by_name.items()}
        edge = [name for name, by_rate in by_name.items() if best[name] in (min(by_rate), max(by_rate))]
        note = f" For {', '.join(edge)}, the best rate is the smallest or largest: others may be better." if edge else ""
        page.text(f"{task[0].upper()}{task[1:]}, final loss: {extremes(loss)}.{note}")
