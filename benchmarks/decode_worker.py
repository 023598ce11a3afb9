"""Run searches over encoder outputs that are made once; bench_decode.py starts this program and asks it by JSON lines."""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

from benchmarks.worker import serve
from local.config import load_config
from model.build import build_model
from model.search import get_search
from tests.reference import Encoded, encode, load_reference_model, read_features

import torch

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy_search": {"max_sym_per_frame": 1},
    "modified_beam_search": {"beam": 4},
    "fast_beam_search": {"beam": 4.0, "max_contexts": 4, "max_states": 8},
}


def recorded_case(shared: Path) -> tuple[Any, Encoded, float]:
    """Return the recorded model, the digits' dev-clean-2 in batches of 30, and the seconds of the encoder."""
    model = load_reference_model(shared / "reference" / "digits_model.npz")
    features = read_features(shared / "speech" / "LibriSpeech-digits" / "dev-clean-2")
    encode(model, dict(list(features.items())[:2]))
    start = time.perf_counter()
    encoded = encode(model, features)
    return model, encoded, time.perf_counter() - start


def published_case() -> tuple[Any, Encoded, float]:
    """Return a random model of the published size with 500 tokens, 30 utterances of 12 s, and the seconds of the encoder."""
    torch.manual_seed(0)
    model = build_model(load_config(None, []), 500).eval()
    features = {f"{i:02d}": torch.randn(1200, 80, generator=torch.Generator().manual_seed(i)) for i in range(30)}
    start = time.perf_counter()
    encoded = encode(model, features)
    return model, encoded, time.perf_counter() - start


def matmul_rate() -> float:
    """Return the GFLOP/s of a float32 product of 4096 x 512 and 512 x 500."""
    a, b = torch.randn(4096, 512), torch.randn(512, 500)
    a @ b
    start = time.perf_counter()
    for _ in range(10):
        a @ b
    return 10 * 2 * 4096 * 512 * 500 / (time.perf_counter() - start) / 1e9


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["native", "k2"], required=True)
    parser.add_argument("--case", choices=["recorded", "published"], required=True)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, encoded, encoder_seconds = recorded_case(args.shared) if args.case == "recorded" else published_case()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        """Run a method over all batches; return its seconds, the speed of a matrix product, and the tokens by id."""
        method = request["method"]
        options = OPTIONS[method] | ({"backend": args.backend} if method == "fast_beam_search" else {})
        tokens: dict[str, list[int]] = {}
        rate = matmul_rate()
        start = time.perf_counter()
        for ids, out, lens in encoded:
            results = get_search(method)(model, out, lens, **options)
            tokens.update({i: r.tokens for i, r in zip(ids, results, strict=True)})
        return {"seconds": time.perf_counter() - start, "gflops": rate, "tokens": tokens}

    versions = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    serve({**versions, "encoder_seconds": round(encoder_seconds, 3)}, answer)


if __name__ == "__main__":
    main()
