"""Corpora of OpenSLR: where their archives are, what their checksums are, and how one is fetched and unpacked.

An archive is foreign: only files and folders inside its own folder come out of it, and only if it is the published one.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import shutil
import socket
import ssl
import sys
import tarfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.error import URLError

from local.common.errors import UserError, described
from local.common.progress import Progress, progress
from local.common.visible import unescaped, visible

from lhotse.utils import resumable_download

URL = "https://www.openslr.org/resources"
TIMEOUT = 60.0  # seconds without a byte from the server until the download has failed
LONGEST_READ = 1 << 20  # bytes of a tar at once: a header has 512, a long name a few thousand, a block of a file 16 KiB
MOST_MEMBERS = 1_000_000  # train-other-500 has 154,000
# Python 3.12, 3.11.4, 3.10.12 and newer have the filter; before, nothing but names and contents is taken.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {"set_attrs": False}


class Archive(NamedTuple):
    """A .tar.gz of OpenSLR: the number of its corpus, its name, the MD5 that OpenSLR publishes, the folder inside."""

    resource: int
    name: str
    md5: str
    folder: str


def _parts(resource: int, md5: dict[str, str]) -> dict[str, Archive]:
    return {part: Archive(resource, f"{part}.tar.gz", found, "LibriSpeech") for part, found in md5.items()}


# The checksums are OpenSLR's (md5sum.txt beside the archives of 12 and 31), as several public recipes have them.
LIBRISPEECH = _parts(
    12,
    {
        "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
        "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
        "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
        "test-other": "fb5a50374b501bb3bac4815ee91d3135",
        "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
        "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
        "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
    },
)
MINI_LIBRISPEECH = _parts(
    31, {"dev-clean-2": "6d7ab67ac6a1d2c993d050e16d61080d", "train-clean-5": "5df7d4e78065366204ca6845bb08f490"}
)
MUSAN = Archive(17, "musan.tar.gz", "0c472d4fc0c5141eca47ad1ffeb2a7df", "musan")


def get(archive: Archive, out: Path, part: str = "") -> None:
    """Download an archive to `out`, check it, unpack it, and move its folder to `out`; `part` in it replaces an older one.

    An earlier download continues where it stopped. Raises `UserError` if the network fails, or if the archive is not the
    published one or has what it must not have; then nothing but the archive has changed.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / archive.name
    download(f"{URL}/{archive.resource}/{archive.name}", path)
    if (found := md5_of(path)) != archive.md5:
        hint = "run the same command again to resume the download; if this message returns, remove the file first"
        raise UserError(f"{path} is not complete or not the published archive: MD5 {found}, not {archive.md5}; {hint}")
    unpacked = out / f".unpacked-{archive.name}"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a killed run
    unpacked.mkdir()
    try:
        unpack(path, unpacked)
        if not (unpacked / archive.folder / part).is_dir():
            raise UserError(f"{path}: it has no folder {archive.folder}/{part}; remove it and start again")
        move(unpacked / archive.folder, out / archive.folder, part)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def move(source: Path, target: Path, part: str) -> None:
    """Make a folder `target`, or move into it what it lacks of `source`, and `part` in any case."""
    if not target.exists():
        source.rename(target)
        return
    for item in source.iterdir():
        there = (target / item.name).resolve()
        if item.name == part and there.exists():
            shutil.rmtree(there)
        if not there.exists():
            shutil.move(item, there)


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, from where an earlier download stopped. Raises `UserError` if the network fails."""
    print(f"downloading {url} to {path}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # lhotse's function has no argument for it
    try:
        with redirect_stderr(unescaped(sys.stderr)):  # its bar moves the cursor
            resumable_download(url, filename=path)
    except (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as e:
        raise UserError(f"cannot download {url}: {e}; run the same command again to resume") from None
    finally:
        socket.setdefaulttimeout(before)


def md5_of(path: Path) -> str:
    """Return the MD5 of a file in hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, Progress(path.stat().st_size >> 20, f"MD5 of {path.name}", "MiB") as shown:
        while block := file.read(1 << 20):
            digest.update(block)
            shown.update()
    return digest.hexdigest()


class _Bounded:
    """A file of which no read is large: a tar's header can state a name of many GiB, which Python reads at once."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def open_tar(file: IO[bytes] | gzip.GzipFile) -> tarfile.TarFile:
    """Open a foreign tar, whose headers may state impossible sizes; `members_of` reads them."""
    return tarfile.open(fileobj=_Bounded(file), mode="r:")  # type: ignore[call-overload,no-any-return]


def members_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar one by one; none is remembered. Raises `tarfile.TarError` if it is damaged.

    Python would go back by a negative size, and so on for ever.
    """
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if member.size < 0:
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        yield member


def unpack(path: Path, folder: Path) -> None:
    """Unpack a .tar.gz into the empty `folder`: files and folders only, as new files of this user.

    Raises `UserError` naming archive and member if it has links, devices or paths outside, is damaged, or needs more room
    than the disk has.
    """
    try:
        with gzip.open(path) as file, open_tar(file) as tar:
            members = checked(tar, path, shutil.disk_usage(folder).free)
            for member in progress(members, desc=f"unpacking {path.name}", unit="files"):
                tar.extract(member, folder, **SAFELY)
    except (UserError, MemoryError):
        raise
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _damaged(path, e) from None
    except Exception as e:  # tarfile raises exceptions of all types
        raise _damaged(path, e) from None


def checked(tar: tarfile.TarFile, path: Path, room: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar one by one. room: bytes that they may have together. Raises `UserError` naming a bad one."""
    for count, member in enumerate(members_of(tar), 1):
        room -= member.size
        name = PurePosixPath(member.name)
        wrong = ""
        if not (member.isreg() or member.isdir()) or member.issparse():
            wrong = f"is neither a file nor a folder (type {member.type!r})"
        elif name.is_absolute() or ".." in name.parts:
            wrong = "is outside the archive's folder"
        elif count > MOST_MEMBERS:
            wrong = f"is number {count}"
        elif room < 0:
            wrong = f"has {member.size} bytes: more than the disk has room for"
        if wrong:
            raise UserError(f"{path}: not unpacked: member '{visible(member.name)[:200]}' {wrong}; remove the archive")
        yield member


def _damaged(path: Path, e: BaseException) -> UserError:
    return UserError(f"{path}: damaged ({described(e)}); remove it and start again")
