"""Stage 2 of prepare.sh: one cut per utterance, at the model's sampling rate, of one channel (data.channel).

Reads data/<corpus>/manifests. Writes data/<corpus>/cuts/<part>.jsonl.gz, and data/<corpus>/dropped.tsv, which lists what
stages 1 and 2 left out. Training parts lose utterances outside data.min_utterance_seconds and data.max_utterance_seconds;
all parts lose those shorter than one frame after subsampling. Nothing here depends on the tokens: experiments with
different tokens share the cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.errors import UserError, first_of
from local.common.locks import writes
from local.config import load_config
from local.config.schema import Channel, Config
from local.corpus.audio_files import SILENT
from local.corpus.corpus_yaml import load_corpus
from local.corpus.dropped import Dropped, read_dropped, report_dropped, write_dropped
from local.corpus.manifest_lines import read_manifest, write_manifest
from local.corpus.pairs import Pair
from local.data.channels import TAKEN, channels_of, is_silent, make_cuts
from local.data.durations import has_frame
from local.data.summary import Summary

from lhotse import MonoCut, Recording, SupervisionSegment

STAGE = "stage 1 (manifests) of prepare.sh"


def read_pairs(data_dir: Path, part: str) -> list[Pair]:
    """Return the utterances of a part. Raises `UserError` if the manifests are damaged."""
    folder = data_dir / "manifests"
    path = folder / f"recordings_{part}.jsonl.gz"
    recordings = {r.id: r for r in read_manifest(path, Recording, STAGE)}
    pairs = []
    for segment in read_manifest(folder / f"supervisions_{part}.jsonl.gz", SupervisionSegment, STAGE):
        if segment.recording_id not in recordings:
            raise UserError(f"{path}: recording {segment.recording_id[:80]} of {segment.id[:80]} is missing")
        pairs.append((recordings[segment.recording_id], segment))
    return pairs


def report_channels(part: str, pairs: Sequence[Pair], cuts: Sequence[MonoCut], channel: Channel) -> int:
    """Say which channels are taken, and which cuts are nearly silent; return the number of these."""
    if several := sum(len(channels_of(segment)) > 1 for _, segment in pairs):
        print(f"{part}: {several} of {len(pairs)} utterances have several channels: data.channel={channel} {TAKEN[channel]}")
    silent = [cut.id for cut in cuts if is_silent(cut.supervisions[0])]
    if silent:
        hint = "; see data.channel" if several else ""
        what = f"nearly silent (below {SILENT:g} dB)"
        print(f"{part}: {len(silent)} of {len(cuts)} utterances are {what}: {first_of(silent)}{hint}")
    return len(silent)


def reason_to_drop(cut: MonoCut, train: bool, cfg: Config) -> str:
    """Return why the utterance cannot be used; "" if it can."""
    if train and cut.duration < cfg.data.min_utterance_seconds:
        return "shorter than data.min_utterance_seconds"
    if train and cut.duration > cfg.data.max_utterance_seconds:
        return "longer than data.max_utterance_seconds"
    return "" if has_frame(cut.duration) else "shorter than one frame after subsampling"


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Write the cuts of every part."""
    args = make_parser(__doc__, data_dir=True).parse_args(argv)
    writes(args.data_dir, wait=True, alone=True)
    cfg = load_config(args.conf, args.overrides)
    corpus = load_corpus(args.data_dir / "corpus.yaml")
    earlier = read_dropped(args.data_dir / "manifests" / "dropped.tsv", STAGE)
    dropped: list[Dropped] = []
    listing = args.data_dir / "dropped.tsv"
    summary = Summary(args.data_dir)
    empty = []
    for part in corpus.parts():
        pairs = read_pairs(args.data_dir, part)
        kept = []
        for cut in make_cuts(pairs, cfg.features.sampling_rate, cfg.data.channel, f"{args.data_dir}/manifests, {part}"):
            if why := reason_to_drop(cut, part in corpus.train, cfg):
                dropped.append(Dropped(cut.id, part, why, f"{cut.duration:.2f} s"))
            else:
                kept.append(cut)
        if not kept:
            last = f"the last one dropped: {dropped[-1].line()}" if pairs else "its manifest is empty"
            empty.append(f"part '{part}': no utterance is left; {last}")
            continue
        write_manifest(args.data_dir / "cuts" / f"{part}.jsonl.gz", kept)
        print(f"{part}: {len(kept)} cuts, {sum(c.duration for c in kept) / 3600:.2f} h")
        silent = report_channels(part, pairs, kept, cfg.data.channel)
        summary.add_cuts(part, [cut.duration for cut in kept], silent, dropped)
    write_dropped(listing, earlier + dropped)
    report_dropped(dropped, listing)
    if empty:
        raise UserError("; ".join(empty))
    summary.write()


if __name__ == "__main__":
    main()
