"""Stage "diagnose": local/diagnose.py --conf FILE --data-dir data/tiny --exp-dir exp/tiny [key.sub=value ...]

A few training batches go through the model and back, without a step of the optimiser. EXP/diagnose/report.txt then says
in its first line in which layer the gradient explodes and for which utterances; report.tsv and sequences.tsv hold every
number, diagnose.html the plots.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_file, load_weights, newest_readable
from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.csv_table import write_table
from local.common.errors import UserError
from local.common.html_page import Page
from local.config import load_config
from local.config.schema import Config
from local.data.batch import Batch
from local.data.datamodule import AsrDataModule
from local.data.tokenizer import Tokenizer, lang_dir
from local.diagnosis import plots
from local.diagnosis.probe import Probe, recurrent_rms
from local.diagnosis.verdict import Verdict, number, verdict
from local.training.losses import forward_losses
from model.build import build_model
from model.transducer import Transducer, pruned_scale, training_loss

import torch
from torch import Tensor

CORRUPTIONS = ("loud", "noise", "transcript")
TRAINED = 2.0  # warm-ups done, for weights that do not say how long they were trained
MAX_SHOWN = 15  # rows of the tables in report.txt


def load_model(
    cfg: Config, tokenizer: Tokenizer, exp_dir: Path, path: Path | None
) -> tuple[Transducer, dict[str, int] | None, str]:
    """The model to look at, in training mode, the progress of its training where known, and whose weights it has.

    path: a checkpoint; None for the one with the most steps in exp_dir, or fresh weights where there is none.
    """
    torch.manual_seed(cfg.train.seed)
    model = build_model(cfg, tokenizer.vocab_size)
    found = (path, load_file(path)) if path else newest_readable(exp_dir / "checkpoints")
    if found is None:
        return model.train(), {"step": 0, "epoch": 1, "batch": 0}, f"an untrained model (seed {cfg.train.seed})"
    path, saved = found
    if saved.get("tokens", tokenizer.tokens) != tokenizer.tokens:
        raise UserError(f"{path} was trained with other tokens than the data's")
    load_weights(model, saved["model"], path)
    progress = saved.get("progress")
    return model.train(), progress, f"{path}" + (f", {progress['step']} batches trained" if progress else "")


def take_batches(data: AsrDataModule, progress: dict[str, int] | None, count: int) -> list[Batch]:
    """The `count` batches that training would take next; fewer where the corpus has no more. `UserError` for none."""
    epoch, batch = (progress["epoch"], progress["batch"]) if progress else (1, 0)

    def following() -> Iterator[Batch]:
        yield from data.train_dataloader(epoch, skip_batches=batch)
        yield from data.train_dataloader(epoch + 1)

    taken = list(itertools.islice(following(), count))
    if not taken:
        raise UserError(f"{data.data_dir}: the training parts hold no utterance")
    return taken


def scale_recurrent(model: Transducer, layer: str, factor: float) -> None:
    """Plant a fault: the recurrent matrix of one encoder layer (its number, from 0) times `factor`."""
    layers = model.encoder.encoder.layers
    if not layer.isdecimal() or int(layer) >= len(layers):
        raise UserError(f"--scale-recurrent {layer}: the encoder's layers are 0 to {len(layers) - 1}")
    with torch.no_grad():
        layers[int(layer)].lstm.weight_hh_l0.mul_(factor)  # type: ignore[union-attr,operator]


def corrupt(batches: Sequence[Batch], utterance: str, kind: str) -> str:
    """Plant a fault in one utterance (`first`: of the first batch) and return its id.

    loud: features times 100. noise: features of white noise of the same mean and deviation. transcript: random tokens.
    """
    utterance = batches[0].ids[0] if utterance == "first" else utterance
    batch = next((b for b in batches if utterance in b.ids), None)
    if batch is None:
        raise UserError(f"--corrupt {utterance}: not in these batches; they begin with {', '.join(batches[0].ids[:3])}")
    row = batch.ids.index(utterance)
    features = batch.inputs[row, : int(batch.input_lens[row])]
    generator = torch.Generator().manual_seed(1)
    if kind == "loud":
        features *= 100.0
    elif kind == "noise":
        mean, deviation = features.mean(), features.std()
        features.copy_(torch.randn(features.shape, generator=generator) * deviation + mean)
    else:
        tokens = batch.tokens[row, : int(batch.token_lens[row])]
        tokens.copy_(torch.randint(3, max(int(tokens.max()) + 1, 4), tokens.shape, generator=generator))
    return utterance


def measure(model: Transducer, cfg: Config, batches: Sequence[Batch], warmup: float) -> tuple[Probe, Tensor]:
    """The batches forwards and backwards under a probe, with the trainer's loss; -> probe, loss per encoder frame (N,).

    bf16 runs under autocast as in training; fp16 is looked at in float32, since its scaled gradients say no more.
    """
    device = next(model.parameters()).device
    precision = "bf16" if cfg.train.precision == "bf16" else "float32"
    losses = []
    with Probe(model) as probe:
        for batch in batches:
            probe.batch(batch.ids, batch.inputs.size(1), batch.input_lens, batch.token_lens)
            x = batch.inputs.to(device).detach().requires_grad_()  # so that the first layer's amplification is seen too
            found = forward_losses(model, replace(batch, inputs=x), warmup=warmup, precision=precision)
            loss = training_loss(found.simple, found.pruned, cfg.loss.simple_scale, pruned_scale(warmup))
            model.zero_grad(set_to_none=True)
            loss.sum().backward()
            losses.append(loss.detach().cpu() / probe.encoder_lens)
    return probe, torch.cat(losses)


def module_rows(probe: Probe) -> tuple[list[str], list[dict[str, Any]]]:
    """report.tsv: a row for each module's activations and one for its gradient, the largest amplification first."""
    rows = []
    for p in probe.modules.values():
        factors = p.amplification()
        ratios = {}
        if len(factors):
            ratios = {"amplification_max": float(factors.max()), "amplification_median": float(factors.median())}
        for kind, tensor in (("activation", p.output), ("gradient", p.gradient)):
            if tensor.norms:
                rows.append({"module": p.name, "tensor": kind, **ratios, **tensor.numbers()})
    head = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    return head, sorted(rows, key=lambda row: -row.get("amplification_max", 0.0))


def sequence_rows(probe: Probe, losses: Tensor) -> tuple[list[str], list[dict[str, Any]]]:
    """sequences.tsv: a row for each utterance and module."""
    rows = []
    for p in probe.modules.values():
        rms, factors = torch.cat(p.output.rms), p.amplification()
        norms = torch.cat(p.gradient.norms) if p.gradient.norms else None
        for i, name in enumerate(probe.ids):
            row: dict[str, Any] = {"utterance": name, "module": p.name, "loss_per_frame": float(losses[i])}
            row["activation_rms"] = float(rms[i])
            row["gradient_norm"] = "" if norms is None else float(norms[i])
            row["amplification"] = float(factors[i]) if len(factors) else ""
            rows.append(row)
    return list(rows[0]), rows


def report_tables(probe: Probe, found: Verdict, rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables of report.txt and of the page: title, head, rows of texts."""
    keys = ("amplification_max", "amplification_median", "rms", "positive", "sequence_p50", "sequence_p100", "channel_p5",
            "channel_p95", "time_p5", "time_p95", "top_direction", "effective_rank")  # fmt: skip
    tables = []
    findings = [("gradient explodes", found.explosions), ("gradient out of proportion", found.gradients),
                ("activations out of proportion", found.activations),
                ("a channel out of proportion", found.channels)]  # fmt: skip
    marked = [[what, f.module, number(f.largest), number(f.median), f.names()] for what, fs in findings for f in fs[:MAX_SHOWN]]
    if marked:
        tables.append(("What stands out", ["what", "module", "largest ratio", "median ratio", "where"], marked))
    for kind in ("gradient", "activation"):
        body = [[r["module"], *(number(r[k]) if k in r else "-" for k in keys)] for r in rows if r["tensor"] == kind]
        title = f"{kind.capitalize()} at each module's output, the largest amplification first"
        tables.append((title, ["module", *(k.replace("_", " ") for k in keys)], body))
    return tables


def write_report(folder: Path, probe: Probe, losses: Tensor, found: Verdict, notes: Sequence[str]) -> None:
    """report.txt, report.tsv, sequences.tsv, diagnose.html and its pictures."""
    head, rows = module_rows(probe)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "report.tsv", head, rows, "\t")
    write_table(folder / "sequences.tsv", *sequence_rows(probe, losses), "\t")
    tables = report_tables(probe, found, rows)
    lines = [found.line, "", *notes]
    page = Page("Diagnosis of the gradients", folder)
    for text in (found.line, *notes):
        page.text(text)
    judged = (found.explosions, found.gradients, found.activations, found.channels)
    marked = [f.utterances[0] for fs in judged for f in fs[:3]]
    marked = list(dict.fromkeys(marked + [u for f in found.explosions[:1] for u in f.utterances]))
    for name, figure, caption in (
        ("filter", plots.filter_heat_map(probe.modules, probe.ids, marked), "Gradient norm by layer and sequence"),
        ("depth", plots.depth_curves(probe.modules, probe.ids, marked), "Gradient norm against depth, a line a sequence"),
        (
            "amplification",
            plots.amplification_heat_map(probe.modules, probe.ids, marked),
            "Amplification by module and sequence",
        ),
        ("time", plots.time_curves(probe.modules), "Gradient against time"),
    ):
        page.figure(figure, name, caption)
    for title, table_head, body in tables:
        page.heading(title)
        page.table(table_head, body)
        widths = [max(map(len, column)) for column in zip(table_head, *body, strict=True)]
        lines += ["", title]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (table_head, *body)]
    page.write("diagnose")
    with atomic_write(folder / "report.txt") as tmp:
        tmp.write_text("\n".join(lines) + "\n", encoding="utf-8")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", help="YAML over conf/base.yaml")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="weights; else EXP's newest checkpoint, else an untrained model")
    parser.add_argument("--batches", type=int, default=4, help="training batches looked at (4)")
    planted = parser.add_argument_group("faults to plant, to see them found")
    planted.add_argument("--scale-recurrent", nargs=2, metavar=("LAYER", "FACTOR"), help="of an encoder layer, from 0")
    planted.add_argument("--corrupt", metavar="UTTERANCE", help="an id, or 'first'")
    planted.add_argument("--corruption", choices=CORRUPTIONS, default="loud",
                         help="loud: features x 100; noise: features of noise; transcript: random tokens (loud)")  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    return parser


@program
def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    cfg = load_config(args.conf, args.overrides)
    if args.batches < 1:
        raise UserError(f"--batches {args.batches}: at least 1 is meant")
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    tokenizer = Tokenizer.from_file(lang_dir(args.data_dir, cfg.lang) / "bpe.model")
    model, progress, weights = load_model(cfg, tokenizer, args.exp_dir, args.checkpoint)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    data = AsrDataModule(cfg, args.data_dir, tokenizer)
    if data.max_duration is None and progress:
        data.max_duration = progress.get("max_duration")  # what "auto" was in the training
    batches = take_batches(data, progress, args.batches)
    warmup = progress["step"] / cfg.train.warm_step if progress else TRAINED
    notes = [
        f"weights: {weights}",
        f"{len(batches)} batches, {sum(len(b) for b in batches)} utterances, {warmup:.3g} of the warm-up done",
    ]
    if args.scale_recurrent:
        layer, factor = args.scale_recurrent
        scale_recurrent(model, layer, float(factor))
        notes.append(f"planted: recurrent matrix of layer {layer} times {factor}")
    if args.corrupt:
        notes.append(f"planted: {corrupt(batches, args.corrupt, args.corruption)}, corrupted ({args.corruption})")
    torch.manual_seed(cfg.train.seed)  # of dropout, the same whatever was drawn before
    probe, losses = measure(model, cfg, batches, warmup)
    found = verdict(probe.modules, probe.ids, recurrent_rms(model))
    write_report(args.exp_dir / "diagnose", probe, losses, found, notes)
    print(found.line)
    print(f"the whole report: {args.exp_dir / 'diagnose'}/report.txt, diagnose.html")


if __name__ == "__main__":
    main()
