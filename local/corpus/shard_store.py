"""lhotse Shar: utterances in shards, `cuts.000000.jsonl.gz` with `recording.000000.tar`, on a disk or in an object store.

Preparation notes the place of each recording in its tar (source `TAR#OFFSET+SIZE`, lhotse's type `shar`), so that shards are
used like single files, not as a stream. A remote shard (`s3://...`, `https://...`, `pipe:COMMAND`) is fetched as a whole into
a folder of bounded size; `local.data.training_cuts` takes shards in groups, so that each is fetched once per epoch.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from local.common.atomic import atomic_write
from local.common.errors import UserError, reason
from local.common.text_files import read_lines
from local.config.schema import DataConfig
from local.corpus.archives import members_of, open_tar

from filelock import FileLock
from lhotse import AudioSource, Recording
from lhotse.cut import Cut, MixedCut
from lhotse.serialization import decode_json_line, deserialize_item, open_best
from lhotse.utils import fastcopy, is_valid_url

LIST = ".shar"  # ending of a file that lists the `cuts` files of shards
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {000000..000119}
TAR = re.compile(r"recording\.(\d+)\.tar")
CUTS = re.compile(r"\bcuts\.(\d+)\.jsonl(\.gz)?(?=\W*$)")
GIGABYTE = 10**9


def is_remote(location: str) -> bool:
    """Return whether it is a URL or a command rather than a path."""
    return location.startswith("pipe:") or is_valid_url(location)


def shards_of(source: Path) -> list[tuple[str, str]]:
    """Return (cuts, tar) of every shard in a folder, or in a list of `cuts` files; {000..119} stands for numbers.

    In a folder, a file that lacks its other half is a shard, too.

    Raises `UserError` if there is no shard, or a line is not a `cuts.<number>.jsonl[.gz]`; the message names it.
    """
    if source.is_dir():
        names = [p.name for p in source.iterdir()]
        numbered = {match[1]: f"cuts.{match[1]}.jsonl.gz" for name in names if (match := TAR.fullmatch(name))}
        numbered |= {match[1]: name for name in names if (match := CUTS.fullmatch(name))}
        cuts = sorted(str(source / name) for name in numbered.values())
    else:
        cuts = [c for line in read_lines(source) if line.strip() for c in _expand(line.strip())]
        cuts = [c if is_remote(c) else str(source.parent / c) for c in cuts]
    if not cuts:
        raise UserError(f"{source}: it has no shard")
    shards = []
    for location in cuts:
        if not CUTS.search(location):
            raise UserError(f"{source}: '{location[:200]}' does not end in cuts.<number>.jsonl.gz")
        shards.append((location, CUTS.sub(r"recording.\1.tar", location)))
    return shards


def _expand(line: str) -> list[str]:
    found = NUMBERS.search(line)
    if not found:
        return [line]
    first, last = found.groups()
    return [line.replace(found[0], f"{i:0{len(first)}d}") for i in range(int(first), int(last) + 1)]


class ShardStore:
    """Finds the files of shards and fetches remote ones into `folder`.

    Above `limit` GB the least recently used files are removed. Several processes may use one folder.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        """Use `folder` for up to `limit` GB of remote shards."""
        self.folder, self.limit = folder, limit

    def local(self, location: str) -> Path:
        """Return the file's path; fetch it if it is remote. Raises `OSError` or `ValueError` if that fails."""
        if not is_remote(location):
            return Path(location)
        name = hashlib.sha256(location.encode()).hexdigest()[:16]
        name += "".join(Path(location.rstrip("/")).suffixes[-2:])[-16:]  # lhotse and gzip need the endings
        path = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{name}.lock"):
            if not path.is_file():
                self._fetch(location, path)
            path.touch()  # the least recently used file is removed first
        return path

    def _fetch(self, location: str, path: Path) -> None:
        try:
            with atomic_write(path) as tmp, open_best(location, "rb") as source, tmp.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
                if out.tell() == 0:  # a command failed
                    raise ValueError("it is empty")
        except Exception as e:  # each library of an object store raises its own
            raise ValueError(f"{location} cannot be fetched: {reason(e)}") from None
        files = sorted((p for p in self.folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime)
        total = sum(p.stat().st_size for p in files)
        for old in files:
            if total <= self.limit * GIGABYTE or old == path:
                break
            total -= old.stat().st_size
            old.unlink(missing_ok=True)  # processes that have it open can still read it

    def read(self, source: str) -> bytes:
        """Return the bytes of `TAR#OFFSET+SIZE`. Raises `ValueError` if the tar is too short."""
        location, _, place = source.rpartition("#")
        offset, size = map(int, place.split("+"))
        with self.local(location).open("rb") as f:
            f.seek(offset)
            data = f.read(size)
        if len(data) < size:
            raise ValueError(f"{location} ends before byte {offset + size}")
        return data

    def with_audio(self, recording: Recording) -> Recording:
        """Return the recording with its bytes in memory if they are in a shard, else the recording itself."""
        if all(source.type != "shar" for source in recording.sources):
            return recording
        sources = [AudioSource("memory", s.channels, self.read(s.source)) if s.type == "shar" else s for s in recording.sources]
        return fastcopy(recording, sources=sources)

    def with_audio_loaded(self, cut: Cut) -> Cut:
        """Return the cut with `with_audio` applied to its recording."""
        if isinstance(cut, MixedCut) or not cut.has_recording:
            return cut
        recording = self.with_audio(cut.recording)
        return cut if recording is cut.recording else fastcopy(cut, recording=recording)


def shard_store(data_dir: Path, data: DataConfig) -> ShardStore:
    """Return the store of remote shards for data_dir."""
    return ShardStore(data_dir / "shards", data.shard_cache)


def recordings_in(tar: Path, location: str) -> Iterator[tuple[str, Recording | None]]:
    """Yield (id of the cut, recording) of a shard's tar, with its place in `location` as source; None for a cut without audio.

    Raises `ValueError` or `tarfile.TarError` after the last complete one if the file is damaged.
    """
    with tar.open("rb") as packed, open_tar(packed) as archive:
        members = members_of(archive)
        for data, meta in zip(members, members, strict=False):  # the audio, then lhotse's description of it
            name = str(Path(data.name).with_suffix(""))
            if meta.name.endswith(".nometa"):
                yield name, None
                continue
            file = archive.extractfile(meta) if meta.isreg() else None
            recording = deserialize_item(decode_json_line((file.read() if file else b"").decode("utf-8")))
            if not isinstance(recording, Recording) or len(recording.sources) != 1:
                raise ValueError(f"{meta.name} does not describe a recording")
            place = f"{location}#{data.offset_data}+{data.size}"
            source = AudioSource("shar", recording.sources[0].channels, place)
            yield name, fastcopy(recording, id=name, sources=[source])
