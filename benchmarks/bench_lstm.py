"""Forward and backward pass of one LSTM layer, and training steps, with train.lstm standard and merged.

    .venv/bin/python -m benchmarks.bench_lstm --device cuda
    .venv/bin/python -m benchmarks.bench_lstm --size small --utterances 20 --threads 1

A case is PRECISION:LSTM. On a GPU, these are bf16:standard, bf16:merged and fp16:merged by default. fp16:parts is a layer
alone: its batch is split into parts of at most 128 sequences, padded to a multiple of 8, for cuDNN's persistent algorithm.
Sizes are those of bench_step.py; --frames are frames of features. The cases take turns, and medians count. Differences are
norms relative to those of float64, the largest of the layer's output and gradients. On a GPU, each layer and the steps of the
largest batch are also made under torch's profiler. Seconds of a CPU are of the processor, all threads together: others may
use the machine. With the defaults it takes about three minutes on a GPU. Writes lstm_<device>.{json,md} to --out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.step_worker import SIZES, Step, random_batches, wait
from benchmarks.worker import ROOT, hardware, write_results
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.meter import Meter
from local.config import load_config
from local.training.losses import AUTOCAST_TYPES
from local.training.step import make_scaler
from model.encoder.subsampling import subsampled
from model.layers.scaled import ScaledRNN

import torch
from torch import Tensor

CASES = {
    "cpu": "float32:standard,float32:merged,bf16:standard,bf16:merged",
    "cuda": "bf16:standard,bf16:merged,fp16:merged,fp16:parts",
}
PRECISIONS, LSTMS = ("float32", *AUTOCAST_TYPES), ("standard", "merged", "parts")
PERSISTENT = (8, 128)  # cuDNN's persistent algorithm takes multiples of the first, up to the second
WARM_UP, SCALE_STEPS = 2, 60  # steps before the timed ones; at most, until float16's scale of the loss is found
Work = Callable[[], dict[str, float]]


def parse_args() -> argparse.Namespace:
    """Return the options. Raises `UserError` for an unknown size or case, or fp16 without a GPU."""
    parser = make_parser(__doc__, conf=False)
    parser.add_argument("--size", choices=list(SIZES), default="published")
    parser.add_argument("--utterances", default="40,80,88,128,166", help="per batch, one or several numbers")
    parser.add_argument("--frames", type=int, default=1200, help="of each utterance")
    parser.add_argument("--cases", help="PRECISION:LSTM, separated by commas")
    parser.add_argument("--no-steps", action="store_true", help="measure layers alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9, help="of each case; the result is the median")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    args.cases = (args.cases or CASES[args.device]).split(",")
    for case in args.cases:
        precision, _, lstm = case.partition(":")
        if precision not in PRECISIONS or lstm not in LSTMS:
            raise UserError(f"--cases: '{case}' must be one of {', '.join(PRECISIONS)}, ':', one of {', '.join(LSTMS)}")
        make_scaler(precision, torch.device(args.device))
    return args


class Layer:
    """One LSTM layer in training, on random input of N sequences of T frames."""

    def __init__(self, args: argparse.Namespace, utterances: int) -> None:
        """Make the layer, its input and the gradient of its output."""
        encoder = load_config(SIZES[args.size][0], []).model.encoder
        torch.manual_seed(0)
        self.device = torch.device(args.device)
        self.rnn = ScaledRNN("lstm", encoder.d_model, encoder.rnn_hidden_size, encoder.d_model).to(self.device)
        shape = subsampled(args.frames), utterances, encoder.d_model
        self.x, self.grad = (torch.randn(shape).to(self.device) for _ in range(2))
        self.now = clock(self.device)

    def run(self, case: str) -> dict[str, float]:
        """Run `case` forwards and backwards; return the seconds of both."""
        times, _ = self._run(case)
        return times

    def difference(self, case: str) -> float:
        """Return how far output and gradients of `case` are from float64's: the largest relative norm."""
        _, found = self._run(case)
        tensors = self.x, self.grad, self.rnn
        self.x, self.grad, self.rnn = self.x.double(), self.grad.double(), self.rnn.double()
        _, exact = self._run("float32:standard")  # without autocast: in float64
        self.x, self.grad, self.rnn = tensors[0], tensors[1], tensors[2].float()
        norm = torch.linalg.vector_norm
        pairs = [(a, b) for a, b in zip(found, exact, strict=True) if b.dim() > 1]  # a scale's gradient nearly cancels
        return max(float(norm(a.double() - b) / norm(b)) for a, b in pairs)

    def _run(self, case: str) -> tuple[dict[str, float], list[Tensor]]:
        precision, lstm = case.split(":")
        x = self.x.clone().requires_grad_()
        wait(self.device)
        start = self.now()
        with torch.autocast(self.device.type, dtype=AUTOCAST_TYPES.get(precision), enabled=precision in AUTOCAST_TYPES):
            params = self.rnn.scaled_parameters()
            out = torch.cat([self._forward(part, params, lstm) for part in parts(x, lstm)], dim=1)
        wait(self.device)
        middle = self.now()
        grads = torch.autograd.grad(out, [x, *self.rnn.parameters()], self.grad.to(out.dtype))
        wait(self.device)
        return {"forward": middle - start, "backward": self.now() - middle}, [out.detach(), *grads]

    def _forward(self, x: Tensor, params: list[Tensor], lstm: str) -> Tensor:
        n = x.size(1)
        rows = padded(n) if lstm == "parts" else n
        x = torch.nn.functional.pad(x, (0, 0, 0, rows - n))
        h, c = x.new_zeros(1, rows, x.size(2)), x.new_zeros(1, rows, self.rnn.hidden_size)
        out, _, _ = self.rnn(x, h, c, params, merged=lstm != "standard")
        return out[:, :n]


def clock(device: torch.device) -> Callable[[], float]:
    """Return what tells the seconds: of the processor for a CPU, which others may use meanwhile."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def padded(rows: int) -> int:
    """Return the next multiple of sequences that the persistent algorithm takes."""
    return -(-rows // PERSISTENT[0]) * PERSISTENT[0]


def parts(x: Tensor, lstm: str) -> list[Tensor]:
    """Return x (T, N, C) in equal parts that the persistent algorithm takes, for case `parts`; else x itself."""
    count = -(-x.size(1) // PERSISTENT[1]) if lstm == "parts" else 1
    return list(x.tensor_split(count, dim=1))


def in_turn(works: dict[str, Work], repeats: int) -> dict[str, dict[str, float]]:
    """Call every work `repeats` times in turn; return the medians of its numbers, and the spread of their sum."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(work())
    result = {}
    for name, answers in found.items():
        totals = [sum(answer.values()) for answer in answers]
        medians = {part: statistics.median(answer[part] for answer in answers) for part in answers[0]}
        result[name] = {**medians, "all": statistics.median(totals), "fastest": min(totals), "slowest": max(totals)}
    return result


def launched(trace: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the kernels of a trace of torch's profiler: their number, busy and idle milliseconds, and whether one persists."""
    kernels = [e for e in trace if str(e.get("cat")).lower() == "kernel"]
    busy, end = 0.0, -float("inf")
    for event in sorted(kernels, key=lambda e: e["ts"]):
        busy += max(0.0, event["ts"] + event["dur"] - max(end, event["ts"]))  # kernels may overlap
        end = max(end, event["ts"] + event["dur"])
    span = end - min(e["ts"] for e in kernels) if kernels else 0.0
    persistent = any("persist" in e["name"].lower() for e in kernels)
    return {"kernels": len(kernels), "busy_ms": busy / 1000, "idle_ms": (span - busy) / 1000, "persistent": persistent}


def profiled(work: Work, device: torch.device) -> dict[str, Any]:
    """Return what `work` launches on a GPU; nothing on a CPU."""
    if device.type == "cpu":
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        wait(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return launched(json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"])


def measure_layers(args: argparse.Namespace, utterances: int) -> list[dict[str, Any]]:
    """Return a record of each case of one layer."""
    layer = Layer(args, utterances)
    works: dict[str, Work] = {case: (lambda case=case: layer.run(case)) for case in args.cases}  # type: ignore[misc]
    in_turn(works, WARM_UP)
    found = in_turn(works, args.repeats)
    return [
        {"case": case, "utterances": utterances, **found[case], "difference": layer.difference(case)}
        | profiled(work, layer.device)
        for case, work in works.items()
    ]


def measure_steps(args: argparse.Namespace, steps: dict[str, Step], utterances: int, profile: bool) -> list[dict[str, Any]]:
    """Return a record of the training step of each case, with its peak memory on a GPU."""
    _, classes, _, _, tokens = SIZES[args.size]
    works: dict[str, Work] = {}
    for case, step in steps.items():
        step.batches = random_batches(classes, utterances, args.frames, tokens)
        works[case] = lambda step=step: {k: v for k, v in step.run().items() if k != "data"}  # type: ignore[misc]
        warm_up(step)
    meter, peaks = Meter(torch.device(args.device)), {}
    for case, work in works.items():
        before = meter.in_use()
        with meter.of(case):
            work()
        peaks[case] = {"mib": meter.peak_mib[case] - before} if args.device == "cuda" else {}
    scales = {case: step.scaler.get_scale() for case, step in steps.items()}
    found = in_turn(works, args.repeats)
    return [
        {"case": case, "utterances": utterances, **found[case], **peaks[case]}
        | {"overflow": steps[case].scaler.get_scale() < scales[case]}
        | (profiled(work, steps[case].device) if profile else {})
        for case, work in works.items()
    ]


def warm_up(step: Step) -> None:
    """Make the first steps; with float16, until the scale of the loss no longer falls."""
    for i in range(SCALE_STEPS):
        scale = step.scaler.get_scale()
        step.run()
        if i + 1 >= WARM_UP and step.scaler.get_scale() >= scale:
            break


def table(title: str, records: list[dict[str, Any]], columns: dict[str, str]) -> list[str]:
    """Return Markdown with a row per record. columns: heading by name of a number; seconds are written as milliseconds."""
    if not records:
        return []
    known = {name: heading for name, heading in columns.items() if any(name in record for record in records)}
    first = {r["utterances"]: r["all"] for r in reversed(records)}  # of each batch, the first case
    lines = ["", f"## {title}", "", "| batch | case | " + " | ".join(known.values()) + " | x faster than the first case |"]
    lines.append("|--:|---|" + "--:|" * (len(known) + 1))
    for r in records:
        cells = [cell(name, r.get(name), known[name]) for name in known]
        lines.append(
            f"| {r['utterances']} | {r['case']} | " + " | ".join(cells) + f" | {first[r['utterances']] / r['all']:.2f} |"
        )
    return lines


def cell(name: str, value: Any, heading: str) -> str:
    """Return a number for a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "difference":
        return f"{value:.1e}"
    if heading.endswith("ms") and not name.endswith("_ms"):
        return f"{1000 * value:.1f}"
    return f"{value:.0f}" if isinstance(value, int) or name == "mib" else f"{value:.1f}"


COLUMNS = {
    **{name: f"{name}, ms" for name in ("forward", "backward", "encoder forward", "encoder backward")},
    **{"all": "all, ms", "fastest": "fastest, ms", "slowest": "slowest, ms", "difference": "from float64", "mib": "peak, MiB"},
    **{"kernels": "kernels", "busy_ms": "busy, ms", "idle_ms": "idle, ms", "persistent": "persistent", "overflow": "overflow"},
}


@program
def main() -> None:
    """Measure all cases and write the tables."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    batches = [int(n) for n in args.utterances.split(",")]
    layers = [record for n in batches for record in measure_layers(args, n)]
    print("\n".join(table("One layer", layers, COLUMNS)), flush=True)
    steps: dict[str, Step] = {}
    for case in args.cases:
        precision, lstm = case.split(":")
        if lstm != "parts" and not args.no_steps:
            steps[case] = Step(args.size, precision, device=args.device, lstm=lstm)
            steps[case].now = clock(steps[case].device)
    whole = [record for n in batches if steps for record in measure_steps(args, steps, n, profile=n == max(batches))]
    machine = torch.cuda.get_device_name() if args.device == "cuda" else hardware()
    seconds = "" if args.device == "cuda" else " Seconds of the processor, all threads together."
    lines = [
        "# The LSTM with its projection (standard) or with that within its recurrent weights (merged)",
        "",
        f"{datetime.date.today().isoformat()}, {machine}, {args.threads} threads; python {platform.python_version()}, torch "
        f"{torch.__version__}. Size `{args.size}`, {args.frames} frames of features, {subsampled(args.frames)} in the LSTM. "
        f"Medians of {args.repeats}, in turn.{seconds}",
        *table("One layer", layers, COLUMNS),
        *table("One training step", whole, COLUMNS),
        "",
    ]
    result = {"date": datetime.date.today().isoformat(), "hardware": machine, "layers": layers, "steps": whole}
    print("\n".join(lines))
    write_results(args.out, f"lstm_{args.device}", result, "\n".join(lines))
    print(f"written: {args.out}/lstm_{args.device}.{{json,md}}")


if __name__ == "__main__":
    main()
