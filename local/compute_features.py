"""Stage 4 of prepare.sh (features.type=precomputed): log-mel features of every cut, training cuts at three speeds.

Reads data/<corpus>/cuts. Writes data/<corpus>/features/<part>/*.f16 and, when they are complete, <part>.jsonl.gz: the
cuts that point to them. Speed-perturbed copies are stored like other cuts; their ids end in `_sp0.9` and `_sp1.1`.
Features of an earlier run are used again if cut, extractor and audio file have not changed.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local.common.children import process_pool
from local.common.cli import make_parser, program
from local.common.errors import UserError, reason
from local.common.locks import writes
from local.common.progress import Progress
from local.common.text_files import is_file
from local.common.visible import visible
from local.config import load_config
from local.config.schema import Config, FeaturesConfig
from local.corpus.audio_files import in_order
from local.corpus.corpus_yaml import load_corpus
from local.corpus.manifest_lines import read_manifest, write_manifest
from local.corpus.shard_store import ShardStore, is_remote, shard_store
from local.data.batch import check_lost
from local.data.durations import SPEEDS, at_speed, num_frames
from local.data.feature_store import Float16ArchiveWriter, holds
from local.data.features import make_extractor

import torch
from lhotse import MonoCut
from lhotse.cut import Cut
from lhotse.utils import fastcopy

CHUNK = 50  # cuts handed to a process at a time
Failure = tuple[str, str]  # cut id, reason

_own = threading.local()  # a worker may have several threads under Dask, and each needs its own archive


@dataclass(frozen=True)
class Extraction:
    """The work on a chunk of cuts, with all that a worker process needs besides these. Archives go to `folder`."""

    features: FeaturesConfig
    folder: Path
    store: ShardStore

    def __call__(self, cuts: list[Cut]) -> tuple[list[Cut], list[Failure]]:
        """Store the features of some cuts; return the cuts with their features, and the failures."""
        if getattr(_own, "folder", None) != self.folder:  # one extractor and one archive for all chunks of this worker
            torch.set_num_threads(1)
            name = f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.f16"
            _own.folder, _own.extractor = self.folder, make_extractor(self.features)
            _own.writer = Float16ArchiveWriter(self.folder / name)
        done, failed = [], []
        for cut in cuts:
            try:
                done.append(self.store.with_audio_loaded(cut).compute_and_store_features(_own.extractor, _own.writer))
            except Exception as e:
                if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OSError(e.errno, e.strerror, _own.writer.storage_path) from None  # a full disk ends the stage
                failed.append((cut.id, reason(e)))
        _own.writer.flush()
        return done, failed


@contextmanager
def workers(num_jobs: int, dask: str = "") -> Iterator[tuple[Executor, int]]:
    """Yield an executor (processes, or the Dask cluster at `dask`) and its size. Raises `UserError` if it has no workers."""
    if not dask:
        with process_pool(num_jobs, "features") as pool:
            yield pool, num_jobs
        return
    try:
        from distributed import Client

        client = Client(dask, timeout=30)
    except ImportError:
        raise UserError("--dask needs the package 'distributed': .venv/bin/pip install distributed") from None
    except (OSError, ValueError) as e:  # asyncio's TimeoutError among them
        raise UserError(f"--dask {dask}: no scheduler there: {reason(e)}") from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise UserError(f"--dask {dask}: the scheduler has no workers")
        yield client.get_executor(pure=False), threads


def stored_features(manifest: Path, features: FeaturesConfig) -> dict[str, Cut]:
    """Return the cuts of an earlier run by id, those whose features have the channels and rate of `features`."""
    asked = (features.num_mel_bins, features.sampling_rate)
    try:
        cuts = list(read_manifest(manifest, MonoCut, "stage 4 (features) of prepare.sh")) if manifest.is_file() else []
    except UserError as e:
        print(f"warning: {e}; computing its features again", file=sys.stderr)
        return {}
    stored = [(cut.features, cut) for cut in cuts if cut.features is not None]
    return {cut.id: cut for found, cut in stored if (found.num_features, found.sampling_rate) == asked}


def still_good(old: Cut | None, cut: Cut) -> bool:
    """Return whether the features stored for `old` are those of `cut`: the same span of the same audio, in older files."""
    if old is None or (old.start, old.duration, old.channel) != (cut.start, cut.duration, cut.channel):
        return False
    f, archive = old.features, Path(old.features.storage_path)
    expected = (Float16ArchiveWriter.name, cut.start, cut.duration, num_frames(cut.duration))
    if (f.storage_type, f.start, f.duration, f.num_frames) != expected or old.recording.to_dict() != cut.recording.to_dict():
        return False
    if not is_file(archive) or not holds(archive, f.storage_key, (f.num_frames, f.num_features)):
        return False
    sources = [s for s in cut.recording.sources if s.type == "file" or s.type == "shar" and not is_remote(s.source)]
    files = [Path(s.source if s.type == "file" else s.source.rpartition("#")[0]) for s in sources]
    return all(f.is_file() and f.stat().st_mtime < archive.stat().st_mtime for f in files)


def compute_part(
    cuts: Sequence[Cut], part: str, folder: Path, cfg: Config, pool: Executor, num_jobs: int, store: ShardStore
) -> list[Failure]:
    """Store the features of `cuts`; name the failures on stderr and return them.

    Raises `UserError` if no cut has features, or fewer than data.max_lost allows; <part>.partial.jsonl.gz then keeps them for
    the next run. lhotse's `compute_and_store_features` is not used: one unreadable file would end a worker's whole share.
    """
    features, manifest, archives = cfg.features, folder / f"{part}.jsonl.gz", folder / part
    partial = folder / f"{part}.partial.jsonl.gz"
    stored = {**stored_features(manifest, features), **stored_features(partial, features)}
    done = {cut.id: stored[cut.id].features for cut in cuts if still_good(stored.get(cut.id), cut)}
    missing = [cut for cut in cuts if cut.id not in done]
    if done and missing:
        print(f"{part}: features of {len(done)} cuts are already there")
    archives.mkdir(parents=True, exist_ok=True)
    failed: list[Failure] = []
    chunks = [missing[first : first + CHUNK] for first in range(0, len(missing), CHUNK)]
    extract = Extraction(features, archives.resolve(), store)
    with Progress(len(missing), f"features of {part}", "cuts") as shown:
        for extracted, bad in in_order(pool, extract, chunks, 4 * num_jobs):
            done |= {cut.id: cut.features for cut in extracted}
            failed += bad
            shown.update(len(extracted) + len(bad))
    for name, why in failed:
        print(f"warning: {part}: no features for {visible(name)}: {why}", file=sys.stderr)
    if not done:
        raise UserError(f"part '{part}': none of its {len(cuts)} cuts has features; {failed[-1][0]}: {failed[-1][1]}")
    kept = partial if len(failed) > cfg.data.max_lost * len(cuts) else manifest
    write_manifest(kept, (fastcopy(cut, features=done[cut.id]) for cut in cuts if cut.id in done))
    if kept == partial:
        check_lost(part, len(failed), len(cuts), cfg.data.max_lost, f"utterance {failed[-1][0]}: {failed[-1][1]}")
    partial.unlink(missing_ok=True)
    used = {Path(f.storage_path).name for f in done.values()}
    for archive in archives.iterdir():
        if archive.name not in used:
            archive.unlink()
    return failed


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Store the features of every part, and of the noise."""
    parser = make_parser(__doc__, data_dir=True)
    parser.add_argument("--nj", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--dask", default="", metavar="HOST:PORT", help="scheduler of a Dask cluster with the same folders")
    args = parser.parse_args(argv)
    writes(args.data_dir, wait=True, alone=True)
    cfg = load_config(args.conf, args.overrides)
    corpus = load_corpus(args.data_dir / "corpus.yaml")
    store = shard_store(args.data_dir, cfg.data, corpus)
    parts = corpus.parts() + ([] if cfg.augment.musan is None else ["musan"])
    for part in parts:
        manifest = args.data_dir / "cuts" / f"{part}.jsonl.gz"
        cuts: list[Cut] = list(read_manifest(manifest, Cut, "stage 2 (cuts) of prepare.sh"))
        if part in corpus.train and cfg.augment.speed_perturb:
            cuts += [at_speed(cut, speed) for speed in SPEEDS for cut in cuts]
        if not cuts:
            raise UserError(f"{manifest}: it has no utterance; let stage 2 (cuts) of prepare.sh make it again (--force)")
        # new workers for each part, so that its archives are closed
        with workers(args.nj, args.dask) as (pool, num_jobs):
            failed = compute_part(cuts, part, args.data_dir / "features", cfg, pool, num_jobs, store)
        print(f"{part}: features of {len(cuts) - len(failed)} cuts, {sum(c.duration for c in cuts) / 3600:.2f} h")


if __name__ == "__main__":
    main()
