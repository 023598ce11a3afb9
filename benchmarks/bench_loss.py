"""Measure time and memory of the loss backends.

    .venv/bin/python -m benchmarks.bench_loss --backends native,k2,torchaudio --mode random|sorted|fixed|growth

Batches have the lengths of a corpus, as in the benchmark published with k2's pruned loss: `random`, 30 utterances drawn at
random, or `sorted`, utterances of similar length up to 10,000 frames; --scale makes these smaller for a CPU. `fixed` takes
--shapes; `growth` doubles and quadruples N, T and S of one shape. Each backend runs in its own process, k2 in the
interpreter of its own environment; they take turns step by step, and the median step counts. Writes
loss_<mode>_<device>_<precision>.{json,md,png} to --out.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.loss_report import plot, table
from benchmarks.worker import ROOT, Worker, hardware, write_results
from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.errors import UserError

import numpy as np

GROWTH = [(4, 300, 50, 500, 5), (8, 300, 50, 500, 5), (16, 300, 50, 500, 5), (4, 600, 50, 500, 5), (4, 1200, 50, 500, 5)]
GROWTH += [(4, 300, 50, 500, 10), (4, 300, 50, 500, 20)]  # N, T, U, C, S
SHARED_LENGTHS = Path("../shared/bench/librispeech_shapes.npz")
Lengths = list[tuple[int, int]]


def parse_args() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default="native,k2,torchaudio")
    parser.add_argument("--mode", choices=["random", "sorted", "fixed", "growth"], default="random")
    parser.add_argument("--lengths", type=Path, default=SHARED_LENGTHS, help=".npz with T_U (utterances, 2)")
    parser.add_argument("--data-dir", type=Path, help="a prepared corpus; use its training lengths instead")
    parser.add_argument("--vocab-size", type=int, default=500, help="lang.vocab_size of the tokens of --data-dir")
    parser.add_argument("--shapes", nargs="+", default=["8,300,50,500", "4,300,50,5000"], help="N,T,U,C[,S] for `fixed`")
    parser.add_argument("--scale", type=float, help="factor on utterances or frames per batch (default: 0.2 on a CPU, else 1)")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps per batch and backend")
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--width", type=int, default=512, help="width of encoder, decoder and joiner")
    parser.add_argument("--prune-range", type=int, default=5)
    parser.add_argument("--precision", choices=["float32", "bf16", "fp16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--k2-python", type=Path, default=ROOT / ".venv-k2" / "bin" / "python")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


def corpus_lengths(args: argparse.Namespace) -> Lengths:
    """Return (T, U) of every utterance, T after subsampling. Raises UserError if a file is missing."""
    if args.data_dir is None:
        if not args.lengths.is_file():
            raise UserError(f"{args.lengths}: no such file; give --lengths FILE or --data-dir data/<corpus>")
        return [(int(t), int(u)) for t, u in np.load(args.lengths)["T_U"]]
    from local.data.durations import num_frames
    from local.data.token_counts import UNUSABLE, counts_file, read_token_counts
    from model.encoder.subsampling import subsampled

    import yaml

    corpus = args.data_dir / "corpus.yaml"
    if not corpus.is_file():
        raise UserError(f"{corpus}: no such file; prepare the corpus first (./prepare.sh)")
    lengths = []
    for part in yaml.safe_load(corpus.read_text(encoding="utf-8"))["train"]:
        counts = read_token_counts(counts_file(args.data_dir / f"lang_bpe_{args.vocab_size}", part))
        with gzip.open(args.data_dir / "cuts" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as f:
            for line in f:
                cut = json.loads(line)
                if counts[cut["id"]] != UNUSABLE:
                    lengths.append((subsampled(num_frames(cut["duration"])), counts[cut["id"]]))
    return lengths


def make_batches(lengths: Lengths, mode: str, count: int, scale: float, seed: int) -> list[Lengths]:
    """Return `count` batches, drawn at random from all batches of the mode."""
    rng = random.Random(seed)
    if mode == "random":
        size = max(1, round(30 * scale))
        return [rng.sample(lengths, min(size, len(lengths))) for _ in range(count)]
    frames = max(1, round(10_000 * scale))
    batches: list[Lengths] = [[]]
    for t, u in sorted(lengths):
        # sorted by length: the new utterance is the longest, and the others are padded to its length
        if batches[-1] and (len(batches[-1]) + 1) * t > frames:
            batches.append([])
        batches[-1].append((t, u))
    return rng.sample(batches, min(count, len(batches)))


def requests(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one request per batch."""
    common = {"kind": "step", "width": args.width}
    shapes = GROWTH if args.mode == "growth" else [tuple(int(x) for x in shape.split(",")) for shape in args.shapes]
    if args.mode in ("fixed", "growth"):
        shapes = [shape if len(shape) == 5 else (*shape, args.prune_range) for shape in shapes]
        batches = [([(t, u)] * n, c, s) for n, t, u, c, s in shapes]
    else:
        scale = args.scale or (0.2 if args.device == "cpu" else 1.0)
        lengths = make_batches(corpus_lengths(args), args.mode, args.batches, scale, args.seed)
        batches = [(batch, args.classes, args.prune_range) for batch in lengths]
    return [
        {**common, "lengths": batch, "classes": c, "s_range": s, "seed": args.seed + i}
        for i, (batch, c, s) in enumerate(batches)
    ]


def take_turns(workers: list[Worker], request: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return per backend `seconds` by part of its median step, all `steps`, `mib` by part and the losses; or its error."""
    answers: list[list[dict[str, Any]]] = [[] for _ in workers]
    for i in range(repeats):
        for worker, got in zip(workers, answers, strict=True):
            if not any("error" in a for a in got):
                got.append(worker.ask({**request, "memory": i == 0}))
    results = []
    for got in answers:
        if "error" in got[-1]:
            results.append(got[-1])
            continue
        steps = [sum(a["seconds"].values()) for a in got]
        median = got[steps.index(sorted(steps)[len(steps) // 2])]
        results.append({**got[0], "seconds": median["seconds"], "steps": steps})
    return results


def differences(workers: list[Worker], request: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the largest relative difference of each backend's losses to the float64 definition, on two utterances.

    They are the two shortest. All backends take the definition's ranges, because windows of equal mass differ by rounding
    alone, so any may be chosen. The pruned loss of `torchaudio` is compared with the full one.
    """
    short = {**request, "lengths": sorted(request["lengths"])[:2], "memory": False}
    answers = (worker.ask({**short, "kind": "exact"}) for worker in workers)
    exact = next((answer for answer in answers if "error" not in answer), None)
    if exact is None:
        return {}
    result: dict[str, dict[str, float]] = {}
    for worker in workers:
        got = worker.ask({**short, "ranges": exact["ranges"]})
        if "error" in got:  # the records say so
            continue
        full = worker.backend == "torchaudio"
        result[worker.backend] = {
            name: max(abs(a - b) / abs(b) for a, b in zip(got[name], exact[against], strict=True))
            for name, against in (("simple", "simple"), ("pruned", "full" if full else "pruned"))
        }
    return result


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return everything that is saved: one record per batch and backend."""
    todo = requests(args)
    options = ["--device", args.device, "--threads", str(args.threads), "--precision", args.precision]
    workers = [Worker(backend, "loss_worker.py", options, args.k2_python) for backend in args.backends.split(",")]
    records = []
    for i, request in enumerate(todo):
        lengths = request["lengths"]
        shape = {
            "N": len(lengths),
            "T": max(t for t, _ in lengths),
            "U": max(u for _, u in lengths),
            "C": request["classes"],
            "S": request["s_range"],
        }
        for worker, answer in zip(workers, take_turns(workers, request, args.repeats), strict=True):
            record = {"backend": worker.backend, **shape, **answer}
            records.append(record)
            outcome = record.get("error")
            if not outcome:
                outcome = f"{sum(record['seconds'].values()):.3f} s, {max(record['mib'].values()):.0f} MiB"
            print(f"batch {i + 1}/{len(todo)} {shape} {worker.backend}: {outcome}", flush=True)
    result = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "options": {k: str(v) for k, v in vars(args).items() if k not in ("out", "k2_python", "lengths", "data_dir")},
        "versions": {worker.backend: worker.versions for worker in workers},
        "differences": differences(workers, todo[0]),
        "records": records,
    }
    for worker in workers:
        worker.close()
    return result


@program
def main() -> None:
    """Run the program."""
    args = parse_args()
    result = measure(args)
    stem = f"loss_{args.mode}_{args.device.split(':')[0]}_{args.precision}"
    text = table(result)
    print("\n" + text)
    write_results(args.out, stem, result, text)
    with atomic_write(args.out / f"{stem}.png") as tmp:
        plot(result, tmp)
    print(f"written: {args.out}/{stem}.{{json,md,png}}")


if __name__ == "__main__":
    main()
