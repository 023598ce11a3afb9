"""Stage 2 of prepare.sh: one cut per utterance, at the model's sampling rate.

Reads data/<corpus>/manifests. Writes data/<corpus>/cuts/<part>.jsonl.gz, and data/<corpus>/dropped.tsv, which lists what
stages 1 and 2 left out. Training parts lose utterances outside data.min_utterance_seconds and data.max_utterance_seconds;
all parts lose those shorter than one frame after subsampling. Nothing here depends on the tokens: experiments with
different tokens share the cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from local.common.atomic import atomic_write
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.config import load_config
from local.config.schema import Config
from local.corpus.corpus_yaml import load_corpus
from local.corpus.dropped import Dropped, read_dropped, report_dropped, write_dropped
from local.corpus.manifest_lines import find_problem, read_manifest
from local.data.durations import num_frames
from model.encoder.subsampling import subsampled

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.utils import fastcopy

STAGE = "stage 1 (manifests) of prepare.sh"


def make_cuts(data_dir: Path, part: str, sampling_rate: int) -> Iterator[MonoCut]:
    """Yield a cut per supervision, with its id, at `sampling_rate` Hz. Raises `UserError` if the manifests are damaged."""
    folder = data_dir / "manifests"
    path = folder / f"recordings_{part}.jsonl.gz"
    recordings = {r.id: r for r in read_manifest(path, Recording, STAGE)}
    for segment in read_manifest(folder / f"supervisions_{part}.jsonl.gz", SupervisionSegment, STAGE):
        if segment.recording_id not in recordings:
            raise UserError(f"{path}: recording {segment.recording_id[:80]} of {segment.id[:80]} is missing")
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
            raise UserError(f"{folder}: supervisions and recordings of {part} do not match: {wrong}")
        yield cut if cut.sampling_rate == sampling_rate else cut.resample(sampling_rate)


def reason_to_drop(cut: MonoCut, train: bool, cfg: Config) -> str:
    """Return why the utterance cannot be used; "" if it can."""
    if train and cut.duration < cfg.data.min_utterance_seconds:
        return "shorter than data.min_utterance_seconds"
    if train and cut.duration > cfg.data.max_utterance_seconds:
        return "longer than data.max_utterance_seconds"
    return "shorter than one frame after subsampling" if subsampled(num_frames(cut.duration)) < 1 else ""


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Write the cuts of every part."""
    args = make_parser(__doc__, data_dir=True).parse_args(argv)
    cfg = load_config(args.conf, args.overrides)
    corpus = load_corpus(args.data_dir / "corpus.yaml")
    earlier = read_dropped(args.data_dir / "manifests" / "dropped.tsv", STAGE)
    dropped: list[Dropped] = []
    for part in corpus.parts():
        kept = []
        for cut in make_cuts(args.data_dir, part, cfg.features.sampling_rate):
            if why := reason_to_drop(cut, part in corpus.train, cfg):
                dropped.append(Dropped(cut.id, part, why, f"{cut.duration:.2f} s"))
            else:
                kept.append(cut)
        if not kept:
            last = f"the last one dropped: {dropped[-1].line()}" if dropped else "its manifest is empty"
            raise UserError(f"part '{part}': no utterance is left; {last}")
        with atomic_write(args.data_dir / "cuts" / f"{part}.jsonl.gz") as tmp:
            CutSet.from_cuts(kept).to_file(tmp)
        print(f"{part}: {len(kept)} cuts, {sum(c.duration for c in kept) / 3600:.2f} h")
    listing = args.data_dir / "dropped.tsv"
    write_dropped(listing, earlier + dropped)
    report_dropped(dropped, listing)


if __name__ == "__main__":
    main()
