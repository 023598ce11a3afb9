"""Find the layer in which the gradient explodes and the utterances that cause it; `./run.sh diagnose` runs it.

.venv/bin/python -m local.diagnose [--conf FILE] --data-dir data/tiny --exp-dir exp/tiny [--batches 4] [key.sub=value ...]

It runs a few training batches forwards and backwards through the model, without an optimiser step. The first line of
EXP/diagnose/report.txt names layer and utterances; report.tsv and sequences.tsv have all numbers, diagnose.html the plots.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_file, load_weights, newest_readable, progress_of
from local.artifacts.new_model import new_model
from local.common.atomic import write_text
from local.common.cli import choose_device, make_parser, program
from local.common.csv_table import write_table
from local.common.errors import UserError, first_of
from local.common.html_page import Page
from local.common.locks import reads, writes
from local.common.visible import visible
from local.config import load_config
from local.config.schema import Config
from local.data.batch import Batch
from local.data.datamodule import AsrDataModule
from local.data.prepared_corpus import other_folders
from local.data.tokenizer import Tokenizer, lang_dir
from local.diagnosis import plots
from local.diagnosis.probe import Probe, recurrent_rms
from local.diagnosis.verdict import EXPLOSIONS, Verdict, number, verdict
from local.training.losses import forward_losses
from local.training.run_length import AFTER, warmed_up
from model.transducer import Transducer, pruned_scale, training_loss

import torch
from torch import Tensor

CORRUPTIONS = ("loud", "noise", "transcript")
COLUMNS = (  # of report.tsv, shown in report.txt
    *("amplification_max", "amplification_median", "rms", "positive", "sequence_p50", "sequence_p100", "channel_p5"),
    *("channel_p95", "time_p5", "time_p95", "top_direction", "effective_rank"),
)
MAX_SHOWN = 15  # rows of report.txt's first table per kind of finding


def load_model(
    cfg: Config, tokenizer: Tokenizer, exp_dir: Path, path: Path | None
) -> tuple[Transducer, dict[str, int] | None, str]:
    """Return the model in training mode, the progress of its training (None: unknown), and the origin of its weights.

    path: a checkpoint; None: the one with the most steps, or an untrained model. Raises `UserError` if its tokens differ.
    """
    torch.manual_seed(cfg.train.seed)
    model = new_model(cfg, tokenizer.vocab_size)
    found = (path, load_file(path)) if path else newest_readable(exp_dir / "checkpoints")
    if found is None:
        return model.train(), {"step": 0, "epoch": 1, "batch": 0}, f"an untrained model (seed {cfg.train.seed})"
    path, saved = found
    if saved.get("tokens", tokenizer.tokens) != tokenizer.tokens:
        raise UserError(f"{path} was trained with other tokens than those of --data-dir")
    load_weights(model, saved["model"], path)
    progress = progress_of(saved, path)
    return model.train(), progress, f"{path}" + (f", {progress['step']} batches trained" if progress else "")


def take_batches(data: AsrDataModule, progress: dict[str, int] | None, count: int) -> list[Batch]:
    """Return the `count` batches that training would use next, or fewer. Raises `UserError` if there is no utterance."""
    epoch, batch = (progress["epoch"], progress["batch"]) if progress else (1, 0)
    loaders = (data.train_dataloader(epoch + i, skip_batches=0 if i else batch) for i in range(2))
    taken = list(itertools.islice((batch for batch in itertools.chain.from_iterable(loaders) if len(batch)), count))
    if not taken:
        raise UserError(f"{data.data_dir}: the training parts have no utterance that could be loaded")
    return taken


def scale_recurrent(model: Transducer, layer: str, factor: float) -> None:
    """Plant a fault: multiply one encoder layer's recurrent matrix by `factor`. Raises `UserError` if `layer` is wrong."""
    layers = model.encoder.encoder.layers
    if not layer.isdecimal() or int(layer) >= len(layers):
        raise UserError(f"--scale-recurrent {layer}: the encoder has layers 0 to {len(layers) - 1}")
    with torch.no_grad():
        layers[int(layer)].lstm.weight_hh_l0.mul_(factor)  # type: ignore[union-attr,operator]


def corrupt(batches: Sequence[Batch], utterance: str, kind: str) -> str:
    """Plant a fault in `utterance` (`first`: the first) and return its id. Raises `UserError` if it is not in the batches.

    kind: `loud`, features times 100; `noise`, white noise with their mean and standard deviation; `transcript`, random tokens.
    """
    utterance = batches[0].ids[0] if utterance == "first" else utterance
    batch = next((b for b in batches if utterance in b.ids), None)
    if batch is None:
        raise UserError(f"--corrupt {utterance}: not in these batches; their first are {first_of(batches[0].ids, 3)}")
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
    """Run the batches forwards and backwards under a probe; return it and the trainer's loss per encoder frame (N,).

    bf16 runs under autocast as in training. fp16 runs in float32: its scaled gradients would show nothing else.
    """
    device = next(model.parameters()).device
    precision = "bf16" if cfg.train.precision == "bf16" else "float32"
    losses = []
    with Probe(model) as probe:
        for batch in batches:
            probe.batch(batch.ids, batch.inputs.size(1), batch.input_lens, batch.token_lens)
            x = batch.inputs.to(device).detach().requires_grad_()  # so that the first layer's amplification is seen too
            found = forward_losses(model, replace(batch, inputs=x), warmup=warmup, precision=precision)
            loss = training_loss(found, cfg.loss, pruned_scale(warmup))
            model.zero_grad(set_to_none=True)
            loss.sum().backward()
            losses.append(loss.detach().cpu() / probe.encoder_lens)
    return probe, torch.cat(losses)


def module_rows(probe: Probe) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and rows of report.tsv: two rows per module, activations and gradient, sorted by amplification."""
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
    """Return the columns and rows of sequences.tsv: one row per utterance and module."""
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
    """Return the tables of report.txt and of the page: title, head and rows as text."""
    tables = []
    marked = [
        [kind, f.module, number(f.largest), number(f.median), f.names()]
        for kind, findings in found.findings.items()
        for f in findings[:MAX_SHOWN]
    ]
    if marked:
        tables.append(("Findings", ["finding", "module", "largest ratio", "median ratio", "utterances"], marked))
    for kind in ("gradient", "activation"):
        body = [[r["module"], *(number(r[k]) if k in r else "-" for k in COLUMNS)] for r in rows if r["tensor"] == kind]
        title = f"{kind.capitalize()} at each module's output, the largest amplification first"
        tables.append((title, ["module", *(k.replace("_", " ") for k in COLUMNS)], body))
    return tables


def write_report(folder: Path, probe: Probe, losses: Tensor, found: Verdict, notes: Sequence[str]) -> None:
    """Write report.txt, report.tsv, sequences.tsv, diagnose.html and its plots to `folder`."""
    head, rows = module_rows(probe)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "report.tsv", head, rows, "\t")
    write_table(folder / "sequences.tsv", *sequence_rows(probe, losses), "\t")
    tables = report_tables(probe, found, rows)
    lines = [found.line, "", *notes]
    page = Page("Diagnosis of the gradients", folder)
    for text in (found.line, *notes):
        page.text(text)
    marked = [f.utterances[0] for findings in found.findings.values() for f in findings[:3]]
    marked = list(dict.fromkeys(marked + [u for f in found.findings[EXPLOSIONS][:1] for u in f.utterances]))
    measured = (probe.modules, probe.ids, marked)
    page.figure(plots.filter_heat_map(*measured), "filter", "Gradient norm by layer and sequence")
    page.figure(plots.depth_curves(*measured), "depth", "Gradient norm against depth, one line per sequence")
    page.figure(plots.amplification_heat_map(*measured), "amplification", "Amplification by module and sequence")
    page.figure(plots.time_curves(probe.modules), "time", "Gradient against time")
    for title, table_head, body in tables:
        page.heading(title)
        page.table(table_head, body)
        widths = [max(map(len, column)) for column in zip(table_head, *body, strict=True)]
        lines += ["", title]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (table_head, *body)]
    page.write("diagnose")
    write_text(folder / "report.txt", visible("\n".join(lines) + "\n", keep="\n"))


@program
def main(argv: list[str] | None = None) -> None:
    """Measure the batches, write the report and print its first line."""
    parser = make_parser(__doc__, data_dir=True, exp_dir=True)
    parser.add_argument("--checkpoint", type=Path, help="weights (default: EXP's newest checkpoint, or an untrained model)")
    parser.add_argument("--batches", type=int, default=4, help="number of training batches (4)")
    planted = parser.add_argument_group("faults to plant, which the report must find")
    scale = "multiply the recurrent matrix of this encoder layer (from 0) by the factor"
    planted.add_argument("--scale-recurrent", nargs=2, metavar=("LAYER", "FACTOR"), help=scale)
    planted.add_argument("--corrupt", metavar="UTTERANCE", help="corrupt this utterance: an id, or 'first'")
    kinds = "loud: features x 100; noise: features of noise; transcript: random tokens (loud)"
    planted.add_argument("--corruption", choices=CORRUPTIONS, default="loud", help=kinds)
    args = parser.parse_args(argv)
    writes(args.exp_dir, new=True)
    reads(args.data_dir)
    cfg = load_config(args.conf, args.overrides)
    for folder in other_folders(cfg.data, args.data_dir):
        reads(folder)
    if args.batches < 1:
        raise UserError(f"--batches {args.batches} must be at least 1")
    layer, factor = args.scale_recurrent or ("", "1")
    try:
        times = float(factor)
    except ValueError:
        raise UserError(f"--scale-recurrent: the factor must be a number, not '{visible(factor)}'") from None
    device = choose_device(cfg.train.num_threads)
    tokenizer = Tokenizer.from_file(lang_dir(args.data_dir, cfg.lang) / "bpe.model")
    model, progress, weights = load_model(cfg, tokenizer, args.exp_dir, args.checkpoint)
    model.to(device)
    data = AsrDataModule(cfg, args.data_dir, tokenizer)
    if data.max_duration is None and progress:
        data.max_duration = progress.get("max_duration")  # the training's value of "auto"
    batches = take_batches(data, progress, args.batches)
    warmup = warmed_up(progress["step"], progress.get("warm_batches", cfg.train.warm_step)) if progress else AFTER
    notes = [
        f"weights: {weights}",
        f"{len(batches)} batches, {sum(len(b) for b in batches)} utterances, {warmup:.3g} of the warm-up done",
    ]
    if args.scale_recurrent:
        scale_recurrent(model, layer, times)
        notes.append(f"planted: recurrent matrix of layer {layer} times {factor}")
    if args.corrupt:
        notes.append(f"planted: {visible(corrupt(batches, args.corrupt, args.corruption))}, corrupted ({args.corruption})")
    torch.manual_seed(cfg.train.seed)  # so that dropout does not depend on the planted faults
    probe, losses = measure(model, cfg, batches, warmup)
    found = verdict(probe.modules, probe.ids, recurrent_rms(model))
    write_report(args.exp_dir / "diagnose", probe, losses, found, notes)
    print(found.line)
    print(f"full report: {args.exp_dir / 'diagnose'}/report.txt, diagnose.html")


if __name__ == "__main__":
    main()
