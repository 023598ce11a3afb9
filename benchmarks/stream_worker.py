"""Recognise streams in chunks with torch or ONNX Runtime; bench_stream.py starts this program and asks it by JSON lines."""

from __future__ import annotations

import argparse
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.worker import serve
from local.artifacts.checkpoint import load_averaged
from local.config import load_config
from local.config.schema import Config
from local.data.durations import FRAME_SECONDS
from local.decoding.live_audio import PIECE_SECONDS
from local.decoding.streaming import OVERLAP, STRIDE, FeatureStream
from local.deploy.transducer_graphs import GRAPHS
from model.build import build_model
from model.folding import fold
from model.search import get_stream
from model.transducer import Transducer

import lhotse
import numpy as np
import torch

BACKENDS = ("torch", "onnxruntime", "onnxruntime-int8")
VOCABULARY = 500


def make_model(checkpoint: Path | None, sizes: list[str]) -> tuple[Transducer, Config]:
    """Return a checkpoint's model, else one of the published size with random weights; `sizes` are its overrides."""
    if checkpoint is not None:
        return load_averaged(checkpoint)[:2]
    torch.manual_seed(0)
    cfg = load_config(None, sizes)
    model = build_model(cfg, VOCABULARY).eval()
    fold(model)
    return model, cfg


class Engine(ABC):
    """Encoder and greedy search over N streams, in chunks of a fixed length."""

    @abstractmethod
    def start(self, streams: int) -> None:
        """Begin N streams."""

    @abstractmethod
    def accept(self, x: torch.Tensor) -> int:
        """Take a chunk of features (N, chunk + 5, F); return the number of the first stream's tokens so far."""


class TorchEngine(Engine):
    """This recipe's own encoder and search, as in local/stream.py."""

    def __init__(self, model: Transducer) -> None:
        self.encoder, self.search = model.encoder, get_stream("greedy_search")(model)

    def start(self, streams: int) -> None:
        """Begin N streams."""
        self.search.start(streams)
        self.states: tuple[torch.Tensor, torch.Tensor] | None = None

    def accept(self, x: torch.Tensor) -> int:
        """Do what `Engine.accept` says."""
        with torch.no_grad():
            out, lens, self.states = self.encoder(x, torch.full((len(x),), x.size(1)), self.states)
        self.search.advance(out, lens)
        return len(self.search.results(final=False)[0].tokens)


class OnnxEngine(Engine):
    """The exported graphs in ONNX Runtime, with the search of a client."""

    def __init__(self, model: Transducer, graphs: Path, suffix: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        files = [str(graphs / f"{name}{suffix}.onnx") for name in GRAPHS]
        sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
        self.encoder, self.decoder, self.joiner = sessions
        self.quiet = (model.blank_id, model.unk_id)  # ids that make no token
        self.context, like = model.context_size, torch.zeros(1)
        self.initial: Callable[[int], list[np.ndarray]] = lambda n: [s.numpy() for s in model.encoder.initial_states(n, like)]

    def start(self, streams: int) -> None:
        """Begin N streams."""
        self.states = self.initial(streams)
        self.tokens = [[-1] * (self.context - 1) + [0] for _ in range(streams)]
        self._decode()

    def _decode(self) -> None:
        y = np.array([tokens[-self.context :] for tokens in self.tokens])
        (self.decoded,) = self.decoder.run(None, {"y": y})

    def accept(self, x: torch.Tensor) -> int:
        """Do what `Engine.accept` says."""
        out, *self.states = self.encoder.run(None, {"x": x.numpy(), "state0": self.states[0], "state1": self.states[1]})
        for t in range(out.shape[1]):
            (logits,) = self.joiner.run(None, {"encoder_out": out[:, t], "decoder_out": self.decoded})
            best = logits.argmax(1).tolist()
            for tokens, token in zip(self.tokens, best, strict=True):
                tokens += [token] if token not in self.quiet else []
            if not set(best) <= set(self.quiet):
                self._decode()
        return len(self.tokens[0]) - self.context


def timed(work: Callable[[], object], seconds: float) -> dict[str, float]:
    """Return the time that `work` takes, and that of the processor, per second of the `seconds` of audio that it is for."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"rtf": (time.perf_counter() - wall) / seconds, "cpu": (time.process_time() - cpu) / seconds}


def rtf(engine: Engine, streams: int, seconds: float, chunk: int, bins: int) -> dict[str, float]:
    """Return what `timed` does, per second of one of N streams, over random features in chunks of `chunk` frames of `bins`."""
    x = torch.randn(streams, chunk + OVERLAP, bins, generator=torch.Generator().manual_seed(0))
    engine.start(streams)
    engine.accept(x)
    count = max(1, round(seconds / (chunk * FRAME_SECONDS)))
    return timed(lambda: [engine.accept(x) for _ in range(count)], count * chunk * FRAME_SECONDS * streams)


def latency(engine: Engine, audio: torch.Tensor, chunk: int, cfg: Config) -> dict[str, float | None]:
    """Return the seconds to the first token and to the final result for audio (S,), as bench_stream.py defines them."""
    rate, tail = cfg.features.sampling_rate, cfg.decode.tail_frames
    stream, waiting, first, encoded, now = FeatureStream(cfg.features), torch.empty(0, cfg.features.num_mel_bins), None, 0, 0.0
    engine.start(1)
    pieces, arrived = [*audio.split(round(PIECE_SECONDS * rate)), None], 0
    for piece in pieces:
        arrived += 0 if piece is None else len(piece)
        now = max(now, arrived / rate)  # the time at which work on this piece begins
        began = time.perf_counter()
        waiting = torch.cat([waiting, stream.finish() if piece is None else stream.accept(piece)])
        if piece is None:  # quiet frames, as many as fill a chunk
            missing = tail + (OVERLAP - len(waiting) - tail) % chunk
            waiting = torch.cat([waiting, waiting[-1:].expand(missing, -1)])
        while len(waiting) >= chunk + OVERLAP:
            tokens = engine.accept(waiting[None, : chunk + OVERLAP])
            waiting, before = waiting[chunk:], encoded
            encoded += chunk
            if tokens and first is None:  # the window of a feature frame ends 17.5 ms after the frame's beginning
                needed = (before + OVERLAP + STRIDE - 1) * FRAME_SECONDS + 0.0175
                first = now + time.perf_counter() - began - min(needed, arrived / rate)
        now += time.perf_counter() - began
    return {"first": first, "final": now - len(audio) / rate}


def read_weights(model: Transducer, seconds: float, chunk: int) -> dict[str, float]:
    """Return what `timed` does, for reading each layer's weights as often as its products do, without the products."""
    steps, count = chunk // STRIDE, max(1, round(seconds / (chunk * FRAME_SECONDS)))
    layers = []
    for layer in model.encoder.encoder.layers:
        names = dict(layer.named_parameters())
        recurrent = [p.flatten() for n, p in names.items() if "weight_h" in n]
        layers.append((recurrent, [p.flatten() for n, p in names.items() if p.dim() == 2 and "weight_h" not in n]))
    used = [w for recurrent, others in layers for w in others + recurrent * steps]
    return timed(lambda: [torch.dot(w, w) for _ in range(count) for w in used], count * chunk * FRAME_SECONDS)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument("--graphs", type=Path, required=True)
    parser.add_argument("--chunk", type=int, required=True, help="feature frames")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--audio", type=Path, nargs="*", default=[])
    parser.add_argument("--sizes", nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, cfg = make_model(args.checkpoint, args.sizes)
    suffix = ".int8" if args.backend.endswith("int8") else ""
    engine = TorchEngine(model) if args.backend == "torch" else OnnxEngine(model, args.graphs, suffix, args.threads)
    recordings = [lhotse.Recording.from_file(path).resample(cfg.features.sampling_rate) for path in args.audio]
    audio = [torch.from_numpy(recording.load_audio()[0]) for recording in recordings]

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        """Measure what is asked: {"streams", "seconds"}, {"read": seconds} or {"latency": true}."""
        if "latency" in request:
            return {"latencies": [latency(engine, samples, args.chunk, cfg) for samples in audio]}
        if "read" in request:
            return read_weights(model, request["read"], args.chunk)
        return rtf(engine, request["streams"], request["seconds"], args.chunk, cfg.features.num_mel_bins)

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if args.backend != "torch":
        import onnxruntime

        versions["onnxruntime"] = onnxruntime.__version__
    serve(versions, answer)


if __name__ == "__main__":
    main()
