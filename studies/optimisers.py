"""Each optimiser on the language model and on the recogniser, at the best of three learning rates: loss curves."""

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
# The middle one of three rates, found with the tiny corpus. The recogniser's loss is a sum over the batch, the language
# model's a mean over tokens, hence the different rates where the gradient's size matters.
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
    """One training; `cfg` is complete, optimiser and rate included. `texts`: training and held-out text of the LM."""

    task: str
    cfg: Config
    data_dir: Path
    steps: int
    texts: tuple[TokenText, TokenText] | None = None


def section(page: Page, cfg: Config, data_dir: Path, steps: dict[str, int] = STEPS) -> None:
    """Train the language model and a small recogniser with every optimiser at three learning rates, on the CPU.

    steps: batches of each task. Writes optimisers.csv and optimisers.png to page.folder and adds a part to the page.
    Raises `UserError` where data_dir is not prepared.
    """
    texts = _texts(cfg, data_dir)
    jobs = []
    for task in (RECOGNISER, LM):  # the longest first, so that no core is left with one at the end
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
        f"Every optimiser trains two models, each at three constant learning rates a factor of {FACTOR:g} apart, from the same "
        f"first weights on the same batches: the language model of {lm.num_layers} layer of {lm.hidden} cells on the training "
        f"transcripts ({steps[LM]} batches of {lm.batch_tokens} tokens, gradient clipped at {CLIP_NORM:g} as in the recipe) "
        f"and a recogniser of {jobs[0].cfg.model.encoder.num_layers} layers ({steps[RECOGNISER]} batches of {SIZE} utterances; "
        f"gradient.control={cfg.gradient.control}). Losses are those of one held-out batch in evaluation: nats per token "
        "and per output frame. The curves are of the rate with the lowest loss at the end; below them are all rates. One "
        "seed only: small differences say little."
    )
    finals = {task: final_losses([row for row in rows if row["task"] == task]) for task in (LM, RECOGNISER)}
    _plot(page, rows, finals)
    _table(page, finals)


def run(job: OptimiserRun) -> list[Row]:
    """One training: its rows of optimisers.csv."""
    every = max(job.steps // POINTS, 1)
    rows = _run_lm(job, every) if job.task == LM else _run_recogniser(job, every)
    name = {"task": job.task, "optimiser": job.cfg.optim.name, "lr": job.cfg.optim.lr}
    return [{**name, **row} for row in rows]


def _texts(cfg: Config, data_dir: Path) -> tuple[TokenText, TokenText]:
    """The training transcripts, and the first sentences of the dev parts, as tokens."""
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
    """Endless batches (tokens, lens), drawn anew in each epoch."""
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
        return {"loss": held_out_losses(model, held_out, cfg.loss.simple_scale)["loss"]}

    optimizer = make_optimizer(model.parameters(), cfg.optim)
    return train_recogniser(model, optimizer, speech, cfg, SIZE, measure, steps=job.steps, every=every)


def final_losses(rows: list[Row]) -> dict[str, dict[float, float]]:
    """optimiser -> rate -> loss of the run's last row (nan where it was not finite), of the rows of one task."""
    finals: dict[str, dict[float, float]] = {}
    for row in rows:
        finals.setdefault(row["optimiser"], {})[row["lr"]] = row["loss"]
    return finals


def best_rate(finals: dict[float, float]) -> float:
    """The rate with the lowest final loss; those that are not finite come last."""
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
        above.set(title=task, xlabel="batches done", ylabel=f"held-out loss (nats per {unit})")
        above.legend(title="optimiser, rate", loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
        middle = MIDDLE_RATE[task]
        draw_curves(below, {name: [(rate / middle[name], loss) for rate, loss in by_name[name].items()] for name in by_name})
        below.set(xlabel="learning rate / the middle one", ylabel=f"loss at the end (nats per {unit})")
        below.set_xscale("log")
        below.set_xticks([1 / FACTOR, 1, FACTOR], [f"1/{FACTOR:g}", "1", f"{FACTOR:g}"])
        below.xaxis.minorticks_off()
    caption = "Held-out loss against batches done, at each optimiser's best rate; below, the loss at the end against the rate."
    page.figure(figure, "optimisers", caption)


def _table(page: Page, finals: dict[str, dict[str, dict[float, float]]]) -> None:
    for task, by_name in finals.items():
        head = [task, "best rate", "loss", f"at 1/{FACTOR:g} of the middle", "at the middle rate", f"at {FACTOR:g} times it"]
        best = {name: best_rate(by_rate) for name, by_rate in by_name.items()}
        page.table(head, [
            [name, f"{best[name]:.3g}", number(by_rate[best[name]]), *map(number, by_rate.values())]
            for name, by_rate in by_name.items()
        ])  # fmt: skip
        loss = {name: by_rate[best[name]] for name, by_rate in by_name.items()}
        edge = [name for name, by_rate in by_name.items() if best[name] in (min(by_rate), max(by_rate))]
        note = f" The best rate is at the edge of the three for {', '.join(edge)}: another may be better still." if edge else ""
        page.text(f"{task[0].upper()}{task[1:]}, loss at the end: {extremes(loss)}.{note}")
