"""How fast is recognition in chunks, by torch as in local/stream.py and by ONNX Runtime with the exported graphs?

    .venv/bin/python -m benchmarks.bench_stream [--chunks 0.04 0.16 0.32 0.64] [--threads 1 2] [--streams 1 16]
        [--checkpoint EXP/averaged.pt --audio FILE ...]

Measures encoder and greedy search of the published size with random weights, or of a checkpoint: the RTF, seconds of work per
second of audio of one stream; with several streams they share the encoder's calls. The backends take turns; medians count.
"weights read" is the time to read every weight as often as one stream's products do: what the memory allows.

With --audio also the latency of one stream, whose audio arrives in real time in pieces of 20 ms on a simulated clock:
  first token: from the arrival of the last sample that the first frame of its chunk needs, to the result that has a token;
  final: from the arrival of the last sample to the last result, with the quiet frames that follow.
Features are part of the latency, not of the RTF. An anchor: sherpa-onnx with the same architecture, int8 and 2 threads has a
published RTF of 0.152. Writes stream.{json,md}.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.stream_worker import BACKENDS, make_model
from benchmarks.worker import ROOT, Worker, hardware, write_results
from local.common.cli import program
from local.common.errors import UserError
from local.decoding.streaming import frames_per_chunk
from local.deploy.int8 import write_int8
from local.deploy.transducer_graphs import write_graphs

READ = "weights read"


def ask(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """Return the worker's answer. Raises `UserError` if it failed."""
    got = worker.ask(request)
    if "error" in got:
        raise UserError(f"{worker.backend}: {got['error']}")
    return got


def measure(graphs: Path, chunk: float, threads: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per backend and number of streams: chunk, threads, streams, backend, rtf and, with audio, latencies."""
    options = ["--graphs", str(graphs), "--chunk", str(frames_per_chunk(chunk)), "--threads", str(threads)]
    options += ["--checkpoint", str(args.checkpoint)] if args.checkpoint else []
    options += ["--audio", *map(str, args.audio)] if args.audio else []
    options += ["--sizes", *args.sizes] if args.sizes else []
    workers = [Worker(backend, "stream_worker.py", options, Path()) for backend in BACKENDS]
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for streams in args.streams:
            for worker in workers:
                # more streams make more work per second of audio; the seconds of all together stay the same
                seconds = max(chunk, args.seconds / (1 if streams == 1 else 4))
                got = ask(worker, {"streams": streams, "seconds": seconds})
                found.setdefault((streams, worker.backend), []).append(got)
        if threads == 1 and 1 in args.streams:
            found.setdefault((1, READ), []).append(ask(workers[0], {"read": args.seconds}))
    base: dict[str, Any] = {"chunk": chunk, "threads": threads}
    rows = [{**base, "streams": n, "backend": b, **medians(v), "all": v} for (n, b), v in found.items()]
    if args.audio:
        for worker in workers:
            (row,) = [r for r in rows if (r["streams"], r["backend"]) == (1, worker.backend)]
            got = ask(worker, {"latency": True})["latencies"]
            for name in ("first", "final"):
                known = [g[name] for g in got if g[name] is not None]
                row[name] = statistics.median(known) if known else None
    for worker in workers:
        worker.close()
    return rows


def medians(found: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: statistics.median(f[name] for f in found) for name in ("rtf", "cpu")}


def table(rows: list[dict[str, Any]], args: argparse.Namespace, loads: tuple[float, float]) -> str:
    """Return the results as Markdown."""
    what = args.checkpoint.name if args.checkpoint else "the published size, random weights"
    lines = ["# Streaming", "", f"{datetime.date.today().isoformat()}, {hardware()}; {what}; greedy search; medians of"]
    lines[-1] += f" {args.rounds} rounds in turns; load of the machine {loads[0]:.1f} before, {loads[1]:.1f} after."
    lines += ["", "RTF: seconds per second of audio of one stream; in brackets those of the processor, which other programs on"]
    lines += ["the machine lengthen less. Latency: milliseconds, one stream, " + ", ".join(BACKENDS) + "."]
    columns = [*BACKENDS, READ]
    for streams in args.streams:
        with_latency = bool(args.audio) and streams == 1
        lines += ["", f"## {streams} stream{'s' * (streams > 1)} at once", ""]
        lines.append(f"| chunk (s) | threads | {' | '.join(columns)} |" + " first token | final |" * with_latency)
        lines.append("|--:|--:|" + "--:|" * len(columns) + "--:|--:|" * with_latency)
        for chunk in args.chunks:
            for threads in args.threads:
                of = {r["backend"]: r for r in rows if (r["streams"], r["chunk"], r["threads"]) == (streams, chunk, threads)}
                cells = [f"{of[b]['rtf']:.3f} ({of[b]['cpu']:.3f})" if b in of else "" for b in columns]
                if with_latency:
                    cells += [" / ".join(milliseconds(of[b][name]) for b in BACKENDS) for name in ("first", "final")]
                lines.append(f"| {chunk} | {threads} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def milliseconds(seconds: float | None) -> str:
    """Return a latency for the table; "-" if there was no token."""
    return "-" if seconds is None else f"{1000 * seconds:.0f}"


@program
def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=float, nargs="+", default=[0.04, 0.16, 0.32, 0.64], metavar="SECONDS")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of audio per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--audio", type=Path, nargs="*", default=[], help="recordings for the latency")
    parser.add_argument("--sizes", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the model without a checkpoint")
    parser.add_argument("--name", default="stream", help="of the two files in --out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    if args.checkpoint and args.sizes:
        raise UserError("--sizes: the model has the sizes of --checkpoint; leave one of the two out")
    if args.audio and 1 not in args.streams:
        raise UserError("--audio: the latency is that of one stream; add 1 to --streams")
    before = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    for chunk in args.chunks:
        with tempfile.TemporaryDirectory() as folder:
            model, _ = make_model(args.checkpoint, args.sizes)
            write_graphs(model, Path(folder), frames_per_chunk(chunk))
            write_int8(Path(folder))
            del model
            for threads in args.threads:
                rows += measure(Path(folder), chunk, threads, args)
                print(f"chunk {chunk} s, {threads} threads: done", flush=True)
    loads = (before, os.getloadavg()[0])
    text = table(rows, args, loads)
    print("\n" + text)
    write_results(args.out, args.name, {"rows": rows, "loads": loads, "hardware": hardware()}, text)


if __name__ == "__main__":
    main()
