"""Time of one training step by part, memory, and its share of the measured matrix-product rate.

    benchmarks/bench_step.py --sizes small,published --precisions float32,bf16 --threads 2
    benchmarks/bench_step.py --device cuda --sizes published --utterances 40,166

Features are random. `small` is conf/model/small.yaml with 28 tokens, on 20 utterances of 300 frames and 18 tokens.
`published` is conf/base.yaml with 500 tokens, on 4 utterances of 1200 frames and 60 tokens. --utterances changes their
number. A float32 product of 4096 x 512 x 500 is timed before every step. `scaled` is the time of a step on a machine that
makes this product at 65 GFLOP/s; the reference takes 0.649 s (small) and 20.8 s (published) there. Writes
step_<device>.{json,md} to --out.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.step_worker import PARTS, PRODUCTS, SIZES
from benchmarks.worker import ROOT, Worker, hardware, write_results
from local.common.cli import make_parser, program
from local.common.errors import UserError

REFERENCE_RATE = 65e9  # FLOP/s of the machine that timed the steps of the reference
REFERENCE_SECONDS = {"small": 0.649, "published": 20.8}


def parse_args() -> argparse.Namespace:
    """Return the options. Raises `UserError` for an unknown size."""
    parser = make_parser(__doc__, conf=False)
    parser.add_argument("--sizes", default="small,published")
    parser.add_argument("--utterances", default="0", help="per batch, one or several numbers; 0: that of the size")
    parser.add_argument("--precisions", default="float32,bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each case; the result is the median")
    parser.add_argument(
        "--products", choices=list(PRODUCTS), default="auto", help="library of float32 products; auto: as in training"
    )
    parser.add_argument("--data-dir", type=Path, help="a prepared corpus; use its training batches instead")
    parser.add_argument("--vocab-size", type=int, default=500, help="lang.vocab_size of the tokens of --data-dir")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    for size in args.sizes.split(","):
        if size not in SIZES:
            raise UserError(f"--sizes: '{size}' must be one of {', '.join(SIZES)}")
    return args


def products(size: str, utterances: int = 0) -> float:
    """Return the floating-point operations of the matrix products and convolutions of one step.

    The backward pass counts twice the forward pass. Of the head, only the projections and the output layer within the
    pruning bounds count.
    """
    from local.config import load_config
    from model.encoder.subsampling import Conv2dSubsampling, subsampled

    conf, classes, n, frames, tokens = SIZES[size]
    n = utterances or n
    cfg = load_config(conf, [])
    enc, t, f, channels, total = cfg.model.encoder, frames, cfg.features.num_mel_bins, 1, 0.0
    for width, stride in zip(Conv2dSubsampling.CHANNELS, Conv2dSubsampling.STRIDES, strict=True):
        t, f = (t - 3) // stride + 1, (f - 3) // stride + 1
        total += n * t * f * width * channels * 9
        channels = width
    rows, d, h = n * subsampled(frames), enc.d_model, enc.rnn_hidden_size
    layer = d * 4 * h * 2 + (h * d if h != d else 0) + 2 * d * enc.dim_feedforward
    joiner = cfg.model.joiner.dim
    total += rows * (channels * f * d + enc.num_layers * layer + d * (classes + joiner))
    total += rows * cfg.loss.prune_range * joiner * classes
    total += n * (tokens + 1) * cfg.model.decoder.dim * (classes + joiner)
    return 2 * 3 * total


def measure(worker: Worker, size: str, utterances: int, precision: str, repeats: int, real: bool) -> dict[str, Any]:
    """Return medians of the parts, of the whole step and of the rates, which are timed in turn with the steps."""
    for _ in range(2):
        _asked(worker, "time")  # the first compiles and warms up
    memory = _asked(worker, "memory")["mib"]
    answers = [_asked(worker, "time") for _ in range(repeats)]
    parts = {name: statistics.median(a["seconds"][name] for a in answers) for name in PARTS}
    steps = [sum(v for k, v in a["seconds"].items() if k != "data") for a in answers]
    rates = {name: statistics.median(a["rates"][name] for a in answers) for name in ("float32", "bf16", "layers")}
    seconds = statistics.median(steps)
    name = f"{size} x {utterances}" if utterances else size
    record = {"size": name, "precision": precision, "seconds": seconds, "steps": steps, "parts": parts, "mib": memory}
    record |= {"rates": rates, "scaled": seconds * rates["float32"] / REFERENCE_RATE, "versions": worker.versions}
    if not real:
        record["share"] = products(size, utterances) / seconds / rates["layers"]
    if not real and not utterances and "gpu" not in worker.versions:
        record["against"] = record["scaled"] / REFERENCE_SECONDS[size]
    return record


def _asked(worker: Worker, kind: str) -> dict[str, Any]:
    answer = worker.ask({"kind": kind})
    if "error" in answer:
        raise UserError(f"the measuring process failed: {answer['error']}")
    return answer


def table(result: dict[str, Any]) -> str:
    """Return Markdown with a column per case."""
    records = result["records"]
    rows: list[tuple[str, list[str]]] = [(f"{p}, ms", [f"{1000 * r['parts'][p]:.1f}" for r in records]) for p in PARTS]
    rows += [
        ("step without data, s", [f"{r['seconds']:.3f}" for r in records]),
        ("fastest and slowest, s", [f"{min(r['steps']):.3f}, {max(r['steps']):.3f}" for r in records]),
        ("float32 product, GFLOP/s", [f"{r['rates']['float32'] / 1e9:.0f}" for r in records]),
        ("bfloat16 product, GFLOP/s", [f"{r['rates']['bf16'] / 1e9:.0f}" for r in records]),
        ("the layers' own product, GFLOP/s", [f"{r['rates']['layers'] / 1e9:.0f}" for r in records]),
        ("peak of a step, MiB", [f"{r['mib']:.0f}" for r in records]),
    ]
    if all("against" in r for r in records):
        rows.append(("scaled to 65 GFLOP/s in float32, s", [f"{r['scaled']:.3f}" for r in records]))
        rows.append(("scaled / the reference's", [f"{r['against']:.2f}" for r in records]))
    if all("share" in r for r in records):
        rows.append(("share of the rate of the layers' own product", [f"{r['share']:.2f}" for r in records]))
    versions = records[0]["versions"]
    return "\n".join(
        [
            "# One training step",
            "",
            f"{result['date']}, {versions.get('gpu', result['hardware'])}, {versions['threads']} threads; "
            f"python {versions['python']}, torch {versions['torch']}, numba {versions['numba']}. Medians; those of the parts "
            "need not add up to that of the step.",
            "",
            "| | " + " | ".join(f"{r['size']}, {r['precision']}" for r in records) + " |",
            "|---|" + "--:|" * len(records),
            *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows),
            "",
            "The running average is updated every 100 steps; the table has a hundredth of its time.",
            "",
        ]
    )


@program
def main() -> None:
    """Measure all cases and write the table."""
    args = parse_args()
    records = []
    cases = itertools.product(args.sizes.split(","), map(int, args.utterances.split(",")), args.precisions.split(","))
    for size, utterances, precision in cases:
        options = ["--size", size, "--precision", precision, "--threads", str(args.threads), "--products", args.products]
        options += ["--device", args.device, "--utterances", str(utterances)]
        options += ["--data-dir", str(args.data_dir), "--vocab-size", str(args.vocab_size)] if args.data_dir else []
        worker = Worker("native", "step_worker.py", options, Path(sys.executable))
        records.append(measure(worker, size, utterances, precision, args.repeats, args.data_dir is not None))
        worker.close()
        print(f"{records[-1]['size']} {precision}: {records[-1]['seconds']:.3f} s, {records[-1]['mib']:.0f} MiB", flush=True)
    result = {"date": datetime.date.today().isoformat(), "hardware": hardware(), "records": records}
    text = table(result)
    print("\n" + text)
    write_results(args.out, f"step_{args.device}", result, text)
    print(f"written: {args.out}/step_{args.device}.{{json,md}}")


if __name__ == "__main__":
    main()
