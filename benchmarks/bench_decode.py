"""Measure the time of the searches, and check that they give the recorded tokens.

    .venv/bin/python -m benchmarks.bench_decode [--shared ../shared] [--k2-python .venv-k2/bin/python] [--repeats 7]

There are two cases: "recorded", the reference's model on dev-clean-2 of the digits (batches of 30), whose recorded seconds
are scaled by the speed of a matrix product on both machines; and "published", the published size with random weights on 30
utterances of 12 s. The methods take turns, k2's fast beam search in its own environment; the median pass counts. Writes
decode.{json,md}.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.worker import ROOT, Worker, hardware, write_results
from local.common.cli import program
from local.common.errors import UserError

METHODS = ("greedy_search", "modified_beam_search", "fast_beam_search")
RATE = "matmul_gflops_float32_4096x512x500"


def measure(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return by search ("fast_beam_search k2" included) the median seconds, the speed of a matrix product, and the tokens."""
    options = ["--case", case, "--shared", str(args.shared), "--threads", str(args.threads)]
    workers = [Worker(backend, "decode_worker.py", options, args.k2_python) for backend in args.backends.split(",")]
    passes: dict[str, list[dict[str, Any]]] = {}
    for i in range(args.repeats + 1):
        for worker in workers:
            for method in METHODS if worker.backend == "native" else METHODS[-1:]:
                got = worker.ask({"method": method})
                if "error" in got:
                    raise UserError(f"{case}, {method}, {worker.backend}: {got['error']}")
                if i > 0:  # the first pass compiles and fills caches
                    passes.setdefault(method if worker.backend == "native" else f"{method} k2", []).append(got)
        print(f"{case}: pass {i} of {args.repeats}", flush=True)
    versions = {worker.backend: worker.versions for worker in workers}
    for worker in workers:
        worker.close()
    searches = {
        name: {
            "seconds": statistics.median(g["seconds"] for g in got),
            "all_seconds": [g["seconds"] for g in got],
            "gflops": statistics.median(g["gflops"] for g in got),
            "tokens": got[-1]["tokens"],
        }
        for name, got in passes.items()
    }
    return {"versions": versions, "searches": searches}


def compare(result: dict[str, Any], shared: Path) -> None:
    """Add to each search of the recorded case the share of equal tokens and the recorded seconds, scaled."""
    recorded = json.loads((shared / "reference" / "digits_dev.json").read_text())
    for name, search in result["searches"].items():
        method = name.split()[0]
        # A recorded id is the utterance's id and a number that lhotse appended.
        expected = {key.rsplit("-", 1)[0]: tokens for key, tokens in recorded["tokens"][method].items()}
        search["equal"] = sum(search["tokens"].get(i) == tokens for i, tokens in expected.items()) / len(expected)
        search["recorded_seconds"] = recorded["seconds"][method] * recorded[RATE] / search["gflops"]


def table(results: dict[str, Any], args: argparse.Namespace) -> str:
    """Return both cases as Markdown."""
    lines = ["# Searches", "", f"{datetime.date.today().isoformat()}, {hardware()}, {args.threads} threads, median of"]
    lines[-1] += f" {args.repeats} passes in turn. Seconds of the search alone, without the encoder."
    for case, result in results.items():
        searches = result["searches"]
        greedy = searches.get(METHODS[0], {}).get("seconds")  # k2 has no greedy search
        extra = " reference, scaled (s) | ours / reference | equal tokens |" if case == "recorded" else ""
        lines += ["", f"## {case}", "", f"| search | seconds | x greedy | matrix product (GFLOP/s) |{extra}"]
        lines.append("|---|--:|--:|--:|" + "--:|--:|--:|" * bool(extra))
        for name, s in searches.items():
            times = f"{s['seconds'] / greedy:.2f}" if greedy else ""
            row = f"| {name} | {s['seconds']:.3f} | {times} | {s['gflops']:.0f} |"
            if extra:
                row += f" {s['recorded_seconds']:.3f} | {s['seconds'] / s['recorded_seconds']:.2f} | {100 * s['equal']:.1f} % |"
            lines.append(row)
        lines += ["", *(f"{b}: " + ", ".join(f"{k} {v}" for k, v in vs.items()) for b, vs in result["versions"].items())]
    return "\n".join(lines) + "\n"


@program
def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--cases", default="recorded,published")
    parser.add_argument("--backends", default="native,k2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--k2-python", type=Path, default=ROOT / ".venv-k2" / "bin" / "python")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    cases = args.cases.split(",")
    if "recorded" in cases and not (args.shared / "reference" / "digits_model.npz").is_file():
        raise UserError(f"{args.shared}/reference/digits_model.npz: no such file; give --shared, or --cases published")
    results = {case: measure(case, args) for case in cases}
    if "recorded" in results:
        compare(results["recorded"], args.shared)
    text = table(results, args)
    print("\n" + text)
    for result in results.values():
        for search in result["searches"].values():
            del search["tokens"]
    write_results(args.out, "decode", results, text)


if __name__ == "__main__":
    main()
