"""Stage "decode": every asked search over every test part, on one pass of the encoder.

local/decode.py --checkpoint exp/tiny/averaged.pt --data-dir data/tiny --exp-dir exp/tiny [--conf FILE] [--sets test ...]
    [decode.beam=8 ...]

The checkpoint is all it needs besides the prepared data. It writes EXP/decode/<method>/<set>.jsonl, one utterance a line
in the order of ids: {"id", "ref", "hyp", "tokens", "times", "score"}, times being frames of the encoder's output; and
<set>.stats.json beside it, whose `seconds` are the encoder's and that search's alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from local.atomic import atomic_write
from local.checkpoint import load_averaged
from local.config import DecodeConfig
from local.datamodule import AsrDataModule, Batch
from local.errors import UserError, cli
from local.progress import Progress
from local.tokens import Tokenizer
from model.encoder.subsampling import subsampled
from model.search import Hypothesis, get_search
from model.transducer import Transducer

FRAME_SECONDS = 0.01  # of audio per feature frame


def search_options(options: DecodeConfig, method: str) -> dict[str, Any]:
    """The keyword arguments of one search, from section `decode` of the config."""
    common = {"temperature": options.temperature, "blank_penalty": options.blank_penalty}
    if method == "greedy_search":
        return {**common, "max_sym_per_frame": options.max_sym_per_frame}
    if method == "modified_beam_search":
        return {**common, "beam": options.beam}
    limits = {"beam": options.fast_beam, "max_contexts": options.max_contexts, "max_states": options.max_states}
    # A user wants what was heard, also of audio that stops within a word.
    return {**common, **limits, "backend": options.fast_beam_backend, "allow_partial": True}


@dataclass
class Decoder:
    """Runs the encoder once and every search on its output, and adds up the time of each."""

    model: Transducer
    options: DecodeConfig
    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.searches = {m: (get_search(m), search_options(self.options, m)) for m in self.options.methods}
        # Whatever is compiled or loaded at the first call should not count as time of the first set.
        nothing = torch.zeros(1, 2, self.model.encoder.d_model, device=self.device)
        for search, options in self.searches.values():
            search(self.model, nothing, torch.tensor([2]), **options)
        self.reset()

    def reset(self) -> None:
        """Start counting time anew."""
        self.seconds = dict.fromkeys(["encoder", *self.searches], 0.0)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start

    @torch.no_grad()
    def run(self, x: torch.Tensor, x_lens: torch.Tensor) -> dict[str, list[Hypothesis]]:
        """Features (N, T, F) and their lengths (N,) -> per method one hypothesis per utterance."""
        x, x_lens = x.to(self.device), x_lens.to(self.device)
        with self._clock("encoder"):
            out, out_lens, _ = self.model.encoder(*with_tail(x, x_lens, self.options.tail_frames))
            out_lens = out_lens.masked_fill(subsampled(x_lens) < 1, 0)  # too short for the front end: nothing was said
        results = {}
        for method, (search, options) in self.searches.items():
            with self._clock(method):
                results[method] = search(self.model, out, out_lens, **options)
        return results

    def run_fitting(self, x: torch.Tensor, x_lens: torch.Tensor, ids: list[str]) -> dict[str, list[Hypothesis]]:
        """`run`, in halves where the memory does not suffice. `UserError` naming an utterance that alone is too long."""
        try:
            return self.run(x, x_lens)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            reason = str(e).strip().split("\n")[0][:200]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(ids) == 1:
            raise UserError(f"utterance {ids[0]}: not enough memory to decode its {int(x_lens[0])} frames: {reason}")
        print(f"warning: not enough memory for {len(ids)} utterances at once; halved", file=sys.stderr)
        half = len(ids) // 2
        results: dict[str, list[Hypothesis]] = {method: [] for method in self.searches}
        for rows in (slice(None, half), slice(half, None)):
            part = self.run_fitting(x[rows, : int(x_lens[rows].max())], x_lens[rows], ids[rows])
            for method, hypotheses in part.items():
                results[method] += hypotheses
        return results


def with_tail(x: torch.Tensor, x_lens: torch.Tensor, tail: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Appends `tail` frames of quiet to features (N, T, F), so that tokens emitted late still come out.

    Quiet is the least that each channel reached in the utterance itself: to digital silence, which a room never has, a model
    that was not trained with it answers with words that nobody said.
    """
    if tail == 0:
        return x, x_lens
    beyond = (torch.arange(x.shape[1], device=x.device) >= x_lens.unsqueeze(1)).unsqueeze(2)
    quiet = x.masked_fill(beyond, torch.inf).amin(1, keepdim=True)
    x = torch.where(beyond, quiet, x)
    return torch.cat([x, quiet.expand(-1, tail, -1)], dim=1), x_lens + tail


def is_out_of_memory(e: BaseException) -> bool:
    """Whether an exception says that the device's or the machine's memory is used up."""
    if isinstance(e, MemoryError):
        return True
    text = str(e)
    return any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory"))


def record(batch: Batch, row: int, hypothesis: Hypothesis, tokenizer: Tokenizer) -> dict[str, Any]:
    """One line of the output."""
    return {
        "id": batch["ids"][row],
        "ref": batch["texts"][row],
        "hyp": tokenizer.decode(hypothesis.tokens),
        "tokens": hypothesis.tokens,
        "times": hypothesis.times,
        "score": hypothesis.score if math.isfinite(hypothesis.score) else None,
    }


def decode_set(decoder: Decoder, data: AsrDataModule, name: str, exp_dir: Path, checkpoint: Path) -> None:
    """Decodes one part and writes its files. `UserError` when none of its utterances can be read."""
    decoder.reset()
    batches = data.test_dataloader(name)
    records: dict[str, list[dict[str, Any]]] = {method: [] for method in decoder.searches}
    frames = 0
    with Progress(batches.num_cuts, f"decoding {name}", "utt") as bar:
        for batch in batches:
            results = decoder.run_fitting(batch["inputs"], batch["input_lens"], batch["ids"])
            for method, hypotheses in results.items():
                records[method] += [record(batch, i, h, data.tokenizer) for i, h in enumerate(hypotheses)]
            frames += batch["num_frames"]
            bar.update(len(batch["ids"]))
    if not frames:
        raise UserError(f"{name}: none of its {batches.num_cuts} utterances could be read")
    if batches.skipped:
        print(f"warning: {name}: {batches.skipped} of {batches.num_cuts} utterances left out", file=sys.stderr)
    seconds, audio = decoder.seconds, frames * FRAME_SECONDS
    for method, lines in records.items():
        total = seconds["encoder"] + seconds[method]
        stats = {
            "seconds": total,
            "encoder_seconds": seconds["encoder"],
            "search_seconds": seconds[method],
            "audio_seconds": audio,
            "utterances": len(lines),
            "skipped": batches.skipped,
            "threads": torch.get_num_threads(),
            "device": device_name(decoder.device),
            "checkpoint": str(checkpoint),
            "options": {**decoder.searches[method][1], "tail_frames": decoder.options.tail_frames},
        }
        folder = exp_dir / "decode" / method
        write(folder / f"{name}.stats.json", json.dumps(stats, indent=2) + "\n")
        lines.sort(key=lambda line: line["id"])
        write(folder / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        print(f"{name}: {len(lines)} utterances by {method}, RTF {total / audio:.4f}", flush=True)


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def write(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


@cli
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="averaged.pt, or a checkpoint of training")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--conf", help="takes section `decode` from this YAML instead of the checkpoint's config")
    parser.add_argument("--sets", nargs="+", metavar="SET", default=[], help="default: the corpus's test parts")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_args()
    sets = [s for s in args.sets if "=" not in s]  # overrides that follow --sets end up among its values
    overrides = args.overrides + [s for s in args.sets if "=" in s]
    model, cfg, tokenizer = load_averaged(args.checkpoint, overrides, args.conf)
    if cfg.decode.num_threads:
        torch.set_num_threads(cfg.decode.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = AsrDataModule(cfg, args.data_dir, tokenizer)
    decoder = Decoder(model.to(device), cfg.decode, device)
    for name in sets or data.corpus.test:
        decode_set(decoder, data, name, args.exp_dir, args.checkpoint)


if __name__ == "__main__":
    main()
