"""lhotse Shar: utterances in shards, `cuts.000000.jsonl.gz` with `recording.000000.tar`, on a disk or in an object store.

Preparation notes the place of each recording in its tar (source `TAR#OFFSET+SIZE`, lhotse's type `shar`), so that shards are
used like single files, not as a stream. A remote shard (`s3://...`, `https://...`, `pipe:COMMAND`) is fetched as a whole into
a folder of bounded size; `local.data.training_cuts` takes shards in groups, so that each is fetched once per epoch.

Commands are run, and URLs fetched, only if corpus.yaml has `options.commands: true`. Otherwise the author of a manifest could
run any program here.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from local.common.atomic import atomic_write
from local.common.errors import UserError, reason
from local.common.text_files import read_lines, regular
from local.config.schema import DataConfig
from local.corpus.archives import members_of, open_tar
from local.corpus.audio_reading import BadAudio, Source
from local.corpus.commands import MOST_BYTES, SECONDS, CommandFailed, run
from local.corpus.corpus_yaml import Corpus
from local.corpus.manifest_lines import find_problem

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
MOST_SHARDS = 100_000  # of a list: 10^8 utterances
SHARD_SECONDS, SHARD_BYTES = 3600.0, 50 * GIGABYTE  # limits for a shard that is fetched
FORBIDDEN = "needs a command or the network; options.commands: true in corpus.yaml allows both"


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
        cuts = []
        for number, line in enumerate(read_lines(source), 1):
            cuts += _expand(line.strip(), f"{source}:{number}", MOST_SHARDS - len(cuts)) if line.strip() else []
        cuts = [c if is_remote(c) else str(source.parent / c) for c in cuts]
    if not cuts:
        raise UserError(f"{source}: it has no shard")
    shards = []
    for location in cuts:
        if not CUTS.search(location):
            raise UserError(f"{source}: '{location[:200]}' does not end in cuts.<number>.jsonl.gz")
        shards.append((location, CUTS.sub(r"recording.\1.tar", location)))
    return shards


def _expand(line: str, where: str, most: int) -> list[str]:
    """Return the names that a line stands for. Raises `UserError` naming `where` if they are none, or more than `most`."""
    found = NUMBERS.search(line)
    if not found:
        return [line]
    first, last = found.groups()
    count = int(last) - int(first) + 1 if len(first) < 20 > len(last) else most + 1
    if not 0 < count <= most:
        raise UserError(f"{where}: {found[0][:80]} must stand for 1 to {most} shards; a list may have {MOST_SHARDS}")
    return [line.replace(found[0], f"{i:0{len(first)}d}") for i in range(int(first), int(last) + 1)]


class ShardStore:
    """Finds the audio of recordings: in files, shards and memory, and with `commands` also by commands and URLs.

    Remote shards are fetched into `folder`. Above `limit` GB the least recently used files are removed. Several processes may
    use one folder.
    """

    def __init__(self, folder: Path, limit: float, commands: bool = False) -> None:
        """Use `folder` for up to `limit` GB of remote shards. commands: whether commands may be run and URLs fetched."""
        self.folder, self.limit, self.commands = folder, limit, commands

    def local(self, location: str) -> Path:
        """Return the file's path; fetch it if it is remote.

        Raises `UserError` or `ValueError` if that fails, `BadAudio` if it is not allowed.
        """
        if not is_remote(location):
            return regular(Path(location))
        self._check_allowed(location)
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
            with atomic_write(path) as tmp, tmp.open("wb") as out:
                if location.startswith("pipe:"):
                    run(location.removeprefix("pipe:"), out, SHARD_SECONDS, SHARD_BYTES)
                else:
                    fetch(location, out, SHARD_SECONDS, SHARD_BYTES)
                if out.tell() == 0:
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
        if not (offset >= 0 and 0 <= size <= MOST_BYTES):
            raise ValueError(f"byte {offset} of {location} and {size} bytes from there are no audio")
        with self.local(location).open("rb") as f:
            f.seek(offset)
            data = f.read(size)
        if len(data) < size:
            raise ValueError(f"{location} ends before byte {offset + size}")
        return data

    def _check_allowed(self, what: str) -> None:
        if not self.commands:
            raise BadAudio(FORBIDDEN, what[:500])

    def open(self, source: AudioSource) -> Source:
        """Return the path of a file, or the bytes of other audio. Raises `BadAudio` naming what cannot be had."""
        name = name_of(source)
        try:
            if source.type == "file":
                return str(source.source)
            if source.type == "shar":
                return io.BytesIO(self.read(str(source.source)))
            if source.type == "memory":
                return io.BytesIO(source.source)  # type: ignore[arg-type]
            self._check_allowed(name)
            if source.type == "command":
                return output_of(str(source.source))
            if source.type == "url":
                fetch(str(source.source), out := io.BytesIO(), SECONDS, MOST_BYTES)
                return out
            raise BadAudio("unknown type of source", f"{source.type}: {name}")
        except BadAudio:
            raise
        except Exception as e:  # every object store has its own
            raise BadAudio("audio cannot be fetched", f"{reason(e)[:300]}: {name}") from None

    def with_audio(self, recording: Recording) -> Recording:
        """Return the recording with its bytes in memory if they are not in files; see `open`."""
        if all(source.type in ("file", "memory") for source in recording.sources):
            return recording
        return fastcopy(recording, sources=[in_memory(s, self.open(s)) for s in recording.sources])

    def with_audio_loaded(self, cut: Cut) -> Cut:
        """Return the cut with `with_audio` applied to its recording."""
        if isinstance(cut, MixedCut) or not cut.has_recording:
            return cut
        recording = self.with_audio(cut.recording)
        return cut if recording is cut.recording else fastcopy(cut, recording=recording)


def shard_store(data_dir: Path, data: DataConfig, corpus: Corpus) -> ShardStore:
    """Return the store of the audio of a corpus, with remote shards in data_dir."""
    return ShardStore(data_dir / "shards", data.shard_cache, corpus.commands)


def name_of(source: AudioSource) -> str:
    """Return the file, URL or command of a source, for messages."""
    return "audio inside the manifest" if source.type == "memory" else str(source.source)[:500]


def in_memory(source: AudioSource, audio: Source) -> AudioSource:
    """Return a source that reads the bytes that were fetched, so that no command is run again for each utterance."""
    return fastcopy(source, type="memory", source=audio.getvalue()) if isinstance(audio, io.BytesIO) else source


def output_of(command: str) -> io.BytesIO:
    """Return what a command writes. Raises `BadAudio` naming it if it fails, writes nothing or exceeds a limit."""
    out = io.BytesIO()
    try:
        run(command, out)
    except CommandFailed as e:
        raise BadAudio("command failed", f"{e}: {command[:500]}") from None
    if not out.tell():
        raise BadAudio("command wrote no audio", command[:500])
    return out


def fetch(url: str, out: BinaryIO, seconds: float, most: int) -> None:
    """Write the content of a URL to `out`. Raises `ValueError` above `most` bytes or `seconds`, and what libraries raise."""
    end, size = time.monotonic() + seconds, 0
    with open_best(url, "rb") as source:
        while data := source.read(1 << 20):
            out.write(data)
            size += len(data)
            if size > most or time.monotonic() > end:
                raise ValueError(f"stopped: more than {most} bytes, or {seconds:g} s")


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
            if wrong := find_problem(recording):
                raise ValueError(f"{meta.name}: {wrong}")
            place = f"{location}#{data.offset_data}+{data.size}"
            source = AudioSource("shar", recording.sources[0].channels, place)
            yield name, fastcopy(recording, id=name, sources=[source])
