"""Stage "decode": every asked method over every test part, on one pass of the encoder.

local/decode.py --checkpoint exp/tiny/averaged.pt --data-dir data/tiny --exp-dir exp/tiny [--conf FILE] [--sets test ...]
    [--tuned exp/tiny/tuned.yaml] [decode.beam=8 ...]

The checkpoint is all it needs besides the prepared data; methods with a language model take that of EXP/lm. It writes
EXP/decode/<method>/<set>.jsonl, one utterance a line in the order of ids: {"id", "ref", "hyp", "tokens", "times", "score",
"confidences", "words"}, times being frames of the encoder's output and the words' times seconds; and <set>.stats.json beside
it, whose `seconds` and `peak_memory_mib` are those of the encoder and that method alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_averaged
from local.artifacts.tuned_settings import with_tuned
from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.errors import UserError
from local.common.progress import Progress
from local.data.batch import Batch
from local.data.datamodule import AsrDataModule
from local.data.durations import FRAME_SECONDS
from local.data.tokenizer import Tokenizer, lang_dir
from local.decoding.batch_decoder import Decoder
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from local.decoding.word_times import rounded, timed_words
from model.search import Hypothesis

import torch


def record(batch: Batch, row: int, hypothesis: Hypothesis, tokenizer: Tokenizer) -> dict[str, Any]:
    """One line of the output."""
    return {
        "id": batch.ids[row],
        "ref": batch.texts[row],
        "hyp": tokenizer.decode(hypothesis.tokens),
        "tokens": hypothesis.tokens,
        "times": hypothesis.times,
        "score": hypothesis.score if math.isfinite(hypothesis.score) else None,
        "confidences": [rounded(confidence) for confidence in hypothesis.confidences],
        "words": timed_words(hypothesis, tokenizer),
    }


def decode_set(decoder: Decoder, data: AsrDataModule, name: str, exp_dir: Path, checkpoint: Path) -> None:
    """Decodes one part and writes its files. `UserError` when none of its utterances can be read."""
    decoder.usage.reset()
    batches = data.test_dataloader(name)
    records: dict[str, list[dict[str, Any]]] = {method: [] for method in decoder.recognisers}
    frames = 0
    with Progress(batches.num_cuts, f"decoding {name}", "utt") as bar:
        for batch in batches:
            results = decoder.run_fitting(batch.inputs, batch.input_lens, batch.texts, batch.ids)
            for method, hypotheses in results.items():
                records[method] += [record(batch, i, h, data.tokenizer) for i, h in enumerate(hypotheses)]
            frames += batch.num_frames
            bar.update(len(batch.ids))
    if not frames:
        raise UserError(f"{name}: none of its {batches.num_cuts} utterances could be read")
    if batches.skipped:
        print(f"warning: {name}: {batches.skipped} of {batches.num_cuts} utterances left out", file=sys.stderr)
    for method, lines in records.items():
        stats = statistics(decoder, method, frames * FRAME_SECONDS)
        stats |= {"utterances": len(lines), "skipped": batches.skipped, "checkpoint": str(checkpoint)}
        folder = exp_dir / "decode" / method
        write(folder / f"{name}.stats.json", json.dumps(stats, indent=2) + "\n")
        lines.sort(key=lambda line: line["id"])
        write(folder / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        rtf = stats["seconds"] / stats["audio_seconds"]
        print(f"{name}: {len(lines)} utterances by {method}, RTF {rtf:.4f}", flush=True)


def statistics(decoder: Decoder, method: str, audio_seconds: float) -> dict[str, Any]:
    """What one method cost on one part, and what it ran with."""
    seconds, peak = decoder.usage.seconds, decoder.usage.peak_mib
    return {
        "seconds": seconds["encoder"] + seconds[method],
        "encoder_seconds": seconds["encoder"],
        "search_seconds": seconds[method],
        "audio_seconds": audio_seconds,
        "peak_memory_mib": round(max(peak["encoder"], peak[method]), 1),
        "threads": torch.get_num_threads(),
        "device": device_name(decoder.device),
        "options": {**decoder.recognisers[method].options, "tail_frames": decoder.tail_frames},
    }


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def write(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="averaged.pt, or a checkpoint of training")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--conf", help="takes section `decode` from this YAML instead of the checkpoint's config")
    parser.add_argument("--tuned", type=Path, help="what local/tune.py chose; overrides --conf")
    parser.add_argument("--sets", nargs="+", metavar="SET", default=[], help="default: the corpus's test parts")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_args()
    sets = [s for s in args.sets if "=" not in s]  # overrides that follow --sets end up among its values
    overrides = args.overrides + [s for s in args.sets if "=" in s]
    model, cfg, tokenizer = load_averaged(args.checkpoint, overrides, args.conf)
    if args.tuned:
        cfg.decode = with_tuned(cfg.decode, args.tuned, overrides)
    if cfg.decode.num_threads:
        torch.set_num_threads(cfg.decode.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = AsrDataModule(cfg, args.data_dir, tokenizer)
    resources = Resources(model.to(device), tokenizer, device, args.exp_dir, lang_dir(args.data_dir, cfg.lang))
    recognisers = {method: Recogniser(method, resources, cfg.decode) for method in cfg.decode.methods}
    decoder = Decoder(model, recognisers, cfg.decode.tail_frames, device)
    if not sets and not data.corpus.test:
        raise UserError(f"{args.data_dir / 'corpus.yaml'}: key 'test' names no part; --sets names others to decode")
    for name in sets or data.corpus.test:
        decode_set(decoder, data, name, args.exp_dir, args.checkpoint)


if __name__ == "__main__":
    main()
