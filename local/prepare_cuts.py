"""Stage 3 of prepare.sh: one cut per utterance, at the model's sampling rate, those left out that it cannot use.

Reads data/<corpus>/manifests and lang; writes data/<corpus>/cuts/<part>.jsonl.gz and data/<corpus>/dropped.tsv, which
lists what stages 1 and 3 left out. Training parts lose utterances that are too short, too long, written in characters
the model lacks, or that have more tokens than frames; other parts keep all but the last kind, which no search can emit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.errors import UserError
from local.config import load_config
from local.config.schema import Config
from local.corpus.corpus_yaml import load_corpus
from local.corpus.dropped import MAX_SHOWN, Dropped, read_dropped, report_dropped, write_dropped
from local.corpus.manifest_lines import find_problem, read_manifest
from local.data.durations import NUM_TOKENS, SPEEDS, fits, num_frames
from local.data.tokenizer import UNK_ID, Tokenizer
from model.encoder.subsampling import subsampled

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.utils import fastcopy

STAGE = "stage 1 of prepare.sh"


def make_cuts(data_dir: Path, part: str, sampling_rate: int) -> Iterator[MonoCut]:
    """A cut per supervision, with the supervision's id, its recording resampled (lazily) to `sampling_rate` Hz."""
    folder = data_dir / "manifests"
    path = folder / f"recordings_{part}.jsonl.gz"
    recordings = {r.id: r for r in read_manifest(path, Recording, STAGE)}
    for segment in read_manifest(folder / f"supervisions_{part}.jsonl.gz", SupervisionSegment, STAGE):
        if segment.recording_id not in recordings:
            raise UserError(f"{path}: recording {segment.recording_id[:80]} of {segment.id[:80]} is not in it")
        channel = segment.channel[0] if isinstance(segment.channel, list) else segment.channel
        cut = MonoCut(
            id=segment.id,
            start=segment.start,
            duration=segment.duration,
            channel=channel,
            supervisions=[fastcopy(segment.with_offset(-segment.start), channel=channel)],
            recording=recordings[segment.recording_id],
        )
        if wrong := find_problem(cut):
            raise UserError(f"{folder}: supervisions and recordings of {part} do not go together: {wrong}")
        yield cut if cut.sampling_rate == sampling_rate else cut.resample(sampling_rate)


def reason_to_drop(cut: MonoCut, tokens: list[int], train: bool, tokenizer: Tokenizer, cfg: Config) -> tuple[str, str]:
    """(kind, particulars) of why this utterance cannot be used; ("", "") where it can."""
    if train and cut.duration < cfg.data.min_utterance_seconds:
        return "shorter than data.min_utterance_seconds", f"{cut.duration:.2f} s"
    if train and cut.duration > cfg.data.max_utterance_seconds:
        return "longer than data.max_utterance_seconds", f"{cut.duration:.2f} s"
    if train and UNK_ID in tokens:
        characters = " ".join(tokenizer.unknown_characters(cut.supervisions[0].text))
        return "characters outside the model", characters
    frames = subsampled(num_frames(cut.duration))
    if frames < 1:
        return "shorter than one frame after subsampling", f"{cut.duration:.2f} s"
    if train and len(tokens) > frames:
        return "more tokens than frames after subsampling", f"{len(tokens)} tokens, {frames} frames"
    return "", ""


def select(
    cuts: Iterator[MonoCut], part: str, train: bool, tokenizer: Tokenizer, cfg: Config, dropped: list[Dropped]
) -> list[MonoCut]:
    """The usable cuts, each with its number of tokens in `custom`; the others go to `dropped`.

    Names dev and test utterances with unknown characters: they are kept, and count as errors in scoring.
    """
    kept: list[MonoCut] = []
    unknown: list[str] = []
    too_fast = 0
    for cut in cuts:
        text = cut.supervisions[0].text
        tokens = tokenizer.encode([text])[0]
        kind, detail = reason_to_drop(cut, tokens, train, tokenizer, cfg)
        if kind:
            dropped.append(Dropped(cut.id, part, kind, detail))
            continue
        if UNK_ID in tokens:
            unknown.append(f"{cut.id} ({' '.join(tokenizer.unknown_characters(text))})")
        cut.custom = {NUM_TOKENS: len(tokens)}
        kept.append(cut)
        if train and cfg.augment.speed_perturb:
            too_fast += sum(not fits(cut, speed) for speed in SPEEDS)
    if unknown:
        names = ", ".join(unknown[:MAX_SHOWN]) + (", ..." if len(unknown) > MAX_SHOWN else "")
        print(f"{part}: {len(unknown)} utterances have characters outside the model, kept for scoring: {names}")
    if too_fast:
        print(f"{part}: {too_fast} speed-perturbed copies would have more tokens than frames and are not made")
    return kept


@program
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--conf", type=Path)
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    args = parser.parse_args(argv)
    cfg = load_config(args.conf, args.overrides)
    corpus = load_corpus(args.data_dir / "corpus.yaml")
    tokenizer = Tokenizer.from_file(args.data_dir / "lang" / "bpe.model")
    earlier = read_dropped(args.data_dir / "manifests" / "dropped.tsv", STAGE)
    dropped: list[Dropped] = []
    for part in corpus.parts():
        cuts = make_cuts(args.data_dir, part, cfg.features.sampling_rate)
        kept = select(cuts, part, part in corpus.train, tokenizer, cfg, dropped)
        if not kept:
            last = f"the last left out: {dropped[-1].line()}" if dropped else "its manifest is empty"
            raise UserError(f"part '{part}': no utterance is left; {last}")
        with atomic_write(args.data_dir / "cuts" / f"{part}.jsonl.gz") as tmp:
            CutSet.from_cuts(kept).to_file(tmp)
        print(f"{part}: {len(kept)} cuts, {sum(c.duration for c in kept) / 3600:.2f} h")
    listing = args.data_dir / "dropped.tsv"
    write_dropped(listing, earlier + dropped)
    report_dropped(dropped, listing)


if __name__ == "__main__":
    main()
