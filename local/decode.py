"""Stage "decode": run every method on every test part, with one pass of the encoder.

.venv/bin/python -m local.decode --checkpoint exp/tiny/averaged.pt --data-dir data/tiny --exp-dir exp/tiny [--conf FILE]
    [--tuned exp/tiny/tuned.yaml] [--trained-in exp/tiny] [--sets test ...] [decode.beam=8 ...]

It needs the checkpoint and prepared data; methods with a language model also need EXP/lm. All of it is loaded and checked
before any result is replaced. For each method and set it writes EXP/decode/<method>/<set>.jsonl, one utterance per line in
the order of ids: {"id", "ref", "hyp", "tokens", "times", "score", "confidences", "words"}. `times` are frames of the encoder's
output; the words' times are seconds. Lines of an oracle method have the n-best list too ("nbest"). <set>.stats.json beside it
has the cost of the encoder and that method alone, and what made the set ("made_by"). <set>.hyp.trn, <set>.ref.trn and
<set>.ctm are for sclite; those of an oracle method have its best entries. An earlier result of another average or other
options moves to EXP/decode_earlier.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import git_commit, load_file, model_from, weights_hash
from local.artifacts.decoded_sets import write_set
from local.artifacts.tuned_settings import with_tuned
from local.common.cli import choose_device, make_parser, program
from local.common.errors import UserError
from local.common.locks import reads, writes
from local.config.methods import METHODS
from local.config.schema import DecodeConfig
from local.data.datamodule import AsrDataModule, Batches
from local.data.durations import FRAME_SECONDS
from local.data.prepared_corpus import other_folders
from local.data.text import TextNormaliser
from local.data.tokenizer import Tokenizer, lang_dir
from local.decoding.batch_decoder import BatchDecoder, with_progress
from local.decoding.feature_floor import ensure_floor
from local.decoding.known_text import check_known, compare_tokens
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from local.decoding.sclite import sclite_files
from local.decoding.word_times import levels_of, rounded, timed_words
from local.scoring.align import Wanted, unit_of
from local.scoring.hypotheses import best_entry
from model.search import Hypothesis

import numpy as np
import torch


def result_of(hypothesis: Hypothesis, tokenizer: Tokenizer, level: np.ndarray) -> dict[str, Any]:
    """Return a hypothesis as plain values, as one line of the output holds it. level: of the audio, by `level_of`."""
    return {
        "hyp": tokenizer.decode(hypothesis.tokens),
        "tokens": hypothesis.tokens,
        "times": hypothesis.times,
        "score": hypothesis.score if math.isfinite(hypothesis.score) else None,
        "confidences": [rounded(confidence) for confidence in hypothesis.confidences],
        "words": timed_words(hypothesis, tokenizer, level),
    }


def decode_set(
    decoder: BatchDecoder,
    batches: Batches,
    name: str,
    tokenizer: Tokenizer,
    exp_dir: Path,
    origin: dict[str, Any],
    speakers: dict[str, str],
    wanted: Wanted,
    more: dict[str, Any],
) -> None:
    """Decode one part and write its files. Raises `UserError` if none of its utterances can be read.

    origin: "made_by" without options. speakers: of the part, by id. wanted: key score.unit. more: what else goes into the
    stats.
    """
    decoder.usage.reset()
    lines: dict[str, list[dict[str, Any]]] = {method: [] for method in decoder.recognisers}
    frames = 0
    for batch in with_progress(batches, "decoding", name):
        levels = levels_of(batch.inputs, batch.input_lens, decoder.model.encoder.feature_floor)
        for method, hypotheses in decoder.run(batch.inputs, batch.input_lens, batch.ids).items():
            for utterance, ref, level, hypothesis in zip(batch.ids, batch.texts, levels, hypotheses, strict=True):
                line = {"id": utterance, "ref": ref, **result_of(hypothesis, tokenizer, level)}
                if decoder.recognisers[method].method.oracle:
                    line["nbest"] = [result_of(entry, tokenizer, level) for entry in hypothesis.nbest or [hypothesis]]
                lines[method].append(line)
        frames += batch.num_frames
    for method, found in lines.items():
        stats = statistics(decoder, method, frames * FRAME_SECONDS)
        stats |= {"utterances": len(found), "skipped": batches.skipped, "checkpoint": origin["checkpoint"], **more}
        date = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        stats["made_by"] = {**origin, "options": stats["options"], "date": date}
        found.sort(key=lambda line: line["id"])
        unit = unit_of((line["ref"] for line in found), wanted)
        best = [{**line, **best_entry(line, "", unit)} if "nbest" in line else line for line in found]
        write_set(exp_dir / "decode" / method / f"{name}.jsonl", found, stats, sclite_files(best, speakers))
        rtf = stats["seconds"] / stats["audio_seconds"]
        print(f"{name}: {len(found)} utterances by {method}, RTF {rtf:.4f}", flush=True)


def statistics(decoder: BatchDecoder, method: str, audio_seconds: float) -> dict[str, Any]:
    """Return one method's cost on one part, and its options."""
    seconds, peak, device = decoder.usage.seconds, decoder.usage.peak_mib, decoder.device
    return {
        "seconds": seconds["encoder"] + seconds[method],
        "encoder_seconds": seconds["encoder"],
        "search_seconds": seconds[method],
        "audio_seconds": audio_seconds,
        "peak_memory_mib": round(max(peak["encoder"], peak[method]), 1),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "options": {
            **decoder.recognisers[method].options,
            "tail_frames": decoder.tail_frames,
            "feature_floor": decoder.model.encoder.feature_floor is not None,
        },
    }


def origin_of(path: Path, content: dict[str, Any], tuned: bool, max_utterances: int) -> dict[str, Any]:
    """Return what made a decoded set, except options and date.

    "label" is "epoch-7-avg-3", or "epoch-7" for a checkpoint of training; "-tuned" if local/tune.py chose settings, "-first-10"
    if only 10 utterances are decoded. "weights" is a hash: a model that was trained again can have the same label.
    """
    older = re.sub(r"\W+", "-", str(content.get("averaged", path.stem)))  # older files have no label
    marks = ("-tuned" if tuned else "") + (f"-first-{max_utterances}" if max_utterances else "")
    return {
        "checkpoint": str(path),
        "average": str(content.get("averaged") or f"weights of {path.name}"),
        "label": str(content.get("label") or older) + marks,
        "weights": weights_hash(content["model"]),
        "commit": git_commit(),
    }


def make_recognisers(resources: Resources, options: DecodeConfig, leave_out: bool) -> dict[str, Recogniser]:
    """Return decode.methods ready to run. leave_out: without those that lack a file, each named by a line.

    Raises `UserError` naming the file that is missing, or if no method is left.
    """
    found = {}
    for name in options.methods:
        if leave_out and (lacking := resources.missing(METHODS[name], options.of_method(name))):
            print(f"{name} is left out: {lacking}")
            continue
        found[name] = Recogniser(name, resources, options)
    if not found:
        raise UserError("key 'decode.methods': every method lacks a file; decode.methods=[greedy_search] needs none")
    return found


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, data_dir=True, exp_dir=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="averaged.pt, or a checkpoint of training")
    parser.add_argument("--tuned", type=Path, help="settings chosen by local/tune.py; they replace those of --conf")
    parser.add_argument(
        "--trained-in",
        type=Path,
        metavar="EXP",
        help="the experiment of the checkpoint: its lm/ is used, and methods that lack a file are left out",
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        metavar="SET",
        default=[],
        help="parts instead of data.test_parts; dev: all of dev_parts; PART@NAME: of another corpus of data.mix",
    )
    args = parser.parse_intermixed_args(argv)
    writes(args.exp_dir, new=True)
    reads(args.data_dir)
    # argparse takes overrides that follow --sets for its values.
    overrides = args.overrides + [s for s in args.sets if "=" in s]
    content = load_file(args.checkpoint)
    model, cfg, tokenizer = model_from(content, args.checkpoint, overrides, args.conf)
    if args.tuned:
        cfg.decode = with_tuned(cfg.decode, args.tuned, overrides)
    origin = origin_of(args.checkpoint, content, args.tuned is not None, cfg.decode.max_utterances)
    del content  # a checkpoint of training also holds the optimiser's state
    device = choose_device(cfg.decode.num_threads)
    for other in other_folders(cfg.data, args.data_dir):
        reads(other)
    data = AsrDataModule(cfg, args.data_dir, tokenizer)
    names = data.test_sets([s for s in args.sets if "=" not in s])
    if not names:
        raise UserError(f"{args.data_dir / 'corpus.yaml'}: key 'test' is empty; name parts to decode by --sets")
    for corpus in data.corpora:
        if own := [name for name in names if data.place(name)[0] is corpus]:
            check_known(data.references(own), tokenizer, args.checkpoint, corpus.data_dir)
    compare_tokens(tokenizer, args.checkpoint, args.data_dir)
    parts = {name: data.test_dataloader(name) for name in names}
    folder, lang = args.trained_in or args.exp_dir, lang_dir(args.data_dir, cfg.lang)
    resources = Resources(model.to(device), tokenizer, device, folder, lang, clean=TextNormaliser(cfg.lang))
    recognisers = make_recognisers(resources, cfg.decode, leave_out=args.trained_in is not None)
    ensure_floor(model, cfg, tokenizer, args.checkpoint, args.data_dir)
    decoder = BatchDecoder(model, recognisers, cfg.decode.tail_frames, device)
    for name, batches in parts.items():
        corpus, part = data.place(name)
        more: dict[str, Any] = {"prepared": [str(corpus.data_dir), part]} if corpus.mark else {}
        speakers = data.speakers(name)
        decode_set(decoder, batches, name, tokenizer, args.exp_dir, origin, speakers, cfg.score.unit, more)


if __name__ == "__main__":
    main()
