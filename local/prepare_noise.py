"""Second part of stage 2 of prepare.sh (augment.musan): noise to mix into the training speech, as cuts.

Reads every audio file below a folder (MUSAN's or any other), or a lhotse manifest of cuts (`.jsonl` or `.jsonl.gz`) of files.
Writes data/<corpus>/cuts/musan.jsonl.gz: windows of 10 s, without remainders of 5 s or less, as in icefall.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.errors import UserError, described, one_line
from local.common.locks import writes
from local.common.text_files import regular
from local.config import load_config
from local.corpus.audio_files import check_all, check_audio
from local.corpus.audio_reading import BadAudio, load_audio
from local.corpus.dropped import Dropped
from local.corpus.lhotse_manifests import items, relocate
from local.corpus.manifest_lines import write_manifest
from local.corpus.pairs import NOT_UTF8, undecoded
from local.corpus.screening import as_decoded
from local.corpus.transcript_files import walk

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy

WINDOW, SHORTEST, LONGEST = 10.0, 5.0, 7200.0  # seconds
PART = "noise"
MOST_NAMED = 20  # of those left out


def read_folder(folder: Path, num_jobs: int, left_out: list[Dropped]) -> list[Cut]:
    """Return a cut per audio file below `folder`; damaged files go to `left_out`. Uses `num_jobs` processes."""
    paths: list[Path] = []
    for path in sorted(place / name for place, _, names, _ in walk(folder, ()) for name in names):
        try:
            f"{path}{path.resolve()}".encode()
            paths.append(path)
        except UnicodeEncodeError:
            left_out.append(Dropped(str(path), PART, NOT_UTF8))
    cuts: list[Cut] = []
    for path, info in check_all(check_audio, paths, num_jobs, "noise"):
        if isinstance(info, BadAudio):
            left_out.append(Dropped(str(path), PART, info.kind, info.detail))
            continue
        recording = as_decoded(undecoded(str(path.relative_to(folder).with_suffix("")), str(path.resolve())), [info])
        cuts.append(recording.to_cut() if info.num_channels == 1 else recording.to_cut().to_mono()[0])
    return cuts


def read_cuts(manifest: Path, num_jobs: int, left_out: list[Dropped]) -> list[Cut]:
    """Return the cuts of a lhotse manifest that can be loaded; others go to `left_out`.

    Raises `UserError` naming the line where the file is damaged, or if it is not a manifest by its name.
    """
    if not manifest.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"augment.musan={manifest}: must be a folder of audio, or lhotse's cuts as .jsonl or .jsonl.gz")
    found = []
    for _, cut in items(manifest, DataCut, PART, left_out):
        recording = None if cut.recording is None else relocate(cut.recording, manifest.parent)
        found.append(fastcopy(cut, features=None, recording=recording))
    cuts: list[Cut] = []
    for cut, problem in check_all(try_to_load, found, num_jobs, "noise"):
        if isinstance(problem, BadAudio):
            left_out.append(Dropped(cut.id, PART, problem.kind, problem.detail))
        else:
            cuts.append(cut)
    return cuts


def try_to_load(cut: Cut) -> None:
    """Load a cut as training does. Raises `BadAudio` if that fails."""
    if cut.duration > LONGEST:
        raise BadAudio(f"longer than {LONGEST:g} s", f"{cut.duration:.0f} s")
    if cut.has_video:
        raise BadAudio("video, which cannot be cut into windows")
    try:
        load_audio(cut)
    except Exception as e:
        raise BadAudio("cannot be loaded", described(e)) from None


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Write the cuts of noise."""
    parser = make_parser(__doc__, data_dir=True)
    parser.add_argument("--nj", type=int, default=1, help="processes that decode audio (%(default)s)")
    args = parser.parse_args(argv)
    writes(args.data_dir, wait=True, alone=True)
    cfg = load_config(args.conf, args.overrides)
    if cfg.augment.musan is None:
        return
    source = Path(cfg.augment.musan)
    if not source.exists():
        raise UserError(f"augment.musan={source}: no such folder; stage 0 (audio) of prepare.sh downloads it")
    if not source.is_dir():
        regular(source)
    left_out: list[Dropped] = []
    cuts = CutSet((read_folder if source.is_dir() else read_cuts)(source, args.nj, left_out))
    for noise in left_out[:MOST_NAMED]:
        why = one_line(f"{noise.id}: {BadAudio(noise.kind, noise.detail)}")
        print(f"warning: noise left out: {why}", file=sys.stderr)
    if len(left_out) > MOST_NAMED:
        print(f"warning: {len(left_out)} noises of augment.musan={source} are left out", file=sys.stderr)
    rate = cfg.features.sampling_rate
    windows = [
        cut if cut.sampling_rate == rate else cut.resample(rate)
        for cut in cuts.drop_supervisions().cut_into_windows(WINDOW)
        if cut.duration > SHORTEST
    ]
    if not windows:
        why = f"; the last one left out: {left_out[-1].id}: {left_out[-1].kind}" if left_out else ""
        raise UserError(f"augment.musan={source}: it has no audio longer than {SHORTEST:g} s that can be used{why}")
    write_manifest(args.data_dir / "cuts" / "musan.jsonl.gz", windows)
    print(f"musan: {len(windows)} cuts, {sum(c.duration for c in windows) / 3600:.2f} h of noise")


if __name__ == "__main__":
    main()
