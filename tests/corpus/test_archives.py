"""Archives from a server that plays hostile: nothing is written outside, each fault is one line, an interrupted one resumes."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import re
import socket
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from local.common.errors import UserError
from local.corpus import archives
from local.corpus.shard_store import recordings_in
from local.get_audio import main
from tests.conftest import ROOT

import pytest

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", size: int | None = None) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if size is None else size
    info.mode = 0o4777
    return info, content


def archive_of(path: Path, *members: Member) -> Path:
    """Write a .tar.gz of the headers as they are, and each content padded to blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", compresslevel=1, mtime=0) as file:
        for info, content in members:
            file.write(info.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512))
        file.write(b"\0" * 1024)
    return path


ELSEWHERE = Path(tempfile.gettempdir()) / f"archives-{os.getpid()}"  # no archive may write there
PART = [
    member("LibriSpeech/README.TXT", b"read me"),
    member("LibriSpeech/dev-clean-2", kind=tarfile.DIRTYPE),
    member("LibriSpeech/dev-clean-2/1/2/1-2.trans.txt", b"1-2-0 A"),
    member("LibriSpeech/dev-clean-2/1/2/1-2-0.flac", os.urandom(5000)),
]
HOSTILE = {
    "absolute": [member(f"{ELSEWHERE}/pwned", b"x")],
    "parent": [member("../pwned", b"x")],
    "hidden parent": [member("LibriSpeech/../../pwned", b"x")],
    "link out": [member("LibriSpeech/out", kind=tarfile.SYMTYPE, link="../.."), member("LibriSpeech/out/pwned", b"x")],
    "link to a file": [member("passwd", kind=tarfile.SYMTYPE, link="/etc/passwd")],
    "link inside": [member("LibriSpeech/a", b"x"), member("LibriSpeech/b", kind=tarfile.SYMTYPE, link="a")],
    "hard link": [member("LibriSpeech/a", kind=tarfile.LNKTYPE, link="../../secret")],
    "pipe": [member("LibriSpeech/a", kind=tarfile.FIFOTYPE)],
    "device": [member("LibriSpeech/a", kind=tarfile.CHRTYPE)],
    "unknown type": [member("LibriSpeech/a", kind=b"Z")],
    "bomb": [member("LibriSpeech/a", size=1 << 60)],
    "negative size": [member("LibriSpeech/a", size=-1024)],
    "huge name": [member("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME, size=1 << 40)],
    "negative name": [member("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME, size=-512)],
    "escape characters": [member("a\x1b[2J", kind=tarfile.SYMTYPE, link="x")],
    "file and folder": [member("LibriSpeech", b"x"), member("LibriSpeech/a", b"x")],
    "long name": [member("L" * 99 + "/x", b"x")] * 2 + [member("n", kind=b"L", content=b"a" * 300), member("n", b"x")],
    "damaged header": [],
}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_members_are_refused_by_name(tmp_path: Path, attack: str) -> None:
    (tmp_path / "secret").write_text("secret")
    path = archive_of(tmp_path / "a.tar.gz", *PART, *HOSTILE[attack])
    if attack == "damaged header":
        path.write_bytes(gzip.compress(b"\1" * 5000))
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="a.tar.gz") as caught:
        archives.unpack(path, folder)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
    outside = {name for name in tree(tmp_path) if not name.startswith("deep/out/")}
    assert outside == before and not ELSEWHERE.exists()
    assert not any(path.is_symlink() for path in folder.rglob("*"))


@pytest.mark.parametrize("filtered", [True, False])
def test_files_are_plain(tmp_path: Path, filtered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set-user-id bits do not come out, neither with tarfile's filter nor on Pythons that lack it."""
    if not filtered:
        monkeypatch.setattr(archives, "SAFELY", {"set_attrs": False})
    (tmp_path / "out").mkdir()
    archives.unpack(archive_of(tmp_path / "a.tar.gz", *PART), tmp_path / "out")
    for info, content in PART:
        path = tmp_path / "out" / info.name
        assert path.is_dir() if info.isdir() else path.read_bytes() == content
        assert path.stat().st_mode & 0o6002 == 0


def test_many_members_and_a_chain_of_headers_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is number 4"):
        archives.unpack(archive_of(tmp_path / "a.tar.gz", *PART), tmp_path / "out")
    chain = [member("././@LongLink", b"a\0", tarfile.GNUTYPE_LONGNAME)] * 5000
    with pytest.raises(UserError, match="b.tar.gz.*RecursionError"):
        archives.unpack(archive_of(tmp_path / "b.tar.gz", *chain), tmp_path / "out")


class Mirror(ThreadingHTTPServer):
    """A mirror of one archive. cut: bytes after which the next answer breaks off; ranges: whether it can resume."""

    content: bytes = b""
    cut: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str]] = []


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0")) or 0) if self.server.ranges else 0
        self.server.asked.append((self.path, str(start)))
        if start and start >= len(self.server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.server.content)}")
            self.end_headers()
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])
        self.server.cut = None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    server = Mirror()
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(archives, "URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that runs stage 0 for mini_librispeech's dev part from the mirror; `published`: its MD5 is right."""
    download = tmp_path / "download"

    def run(*members: Member, published: bool = True) -> Path:
        mirror.content = archive_of(tmp_path / "served.tar.gz", *members).read_bytes()
        md5 = hashlib.md5(mirror.content).hexdigest() if published else "0" * 32
        known = archives.MINI_LIBRISPEECH["dev-clean-2"]._replace(md5=md5)
        monkeypatch.setitem(archives.MINI_LIBRISPEECH, "dev-clean-2", known)
        corpus = ROOT / "egs" / "mini_librispeech" / "corpus.yaml"
        parts = ["data.train_parts=[dev-clean-2]", "data.dev_parts=[dev-clean-2]", "data.test_parts=[]"]
        main(["--corpus-yaml", str(corpus), "--out", str(download), *parts])
        return download / "LibriSpeech"

    return run


def test_a_part_is_downloaded_once(get: Callable[..., Path], mirror: Mirror) -> None:
    found = get(*PART)
    assert (found / "dev-clean-2" / "1" / "2" / "1-2.trans.txt").read_text() == "1-2-0 A"
    assert (found / "README.TXT").read_text() == "read me" and (found / "dev-clean-2" / ".completed").is_file()
    assert mirror.asked == [("/31/dev-clean-2.tar.gz", "0")]
    get(*PART)
    assert len(mirror.asked) == 1 and sorted(os.listdir(found.parent)) == ["LibriSpeech", "dev-clean-2.tar.gz"]


def test_a_broken_download_resumes_and_an_unfinished_part_is_replaced(
    get: Callable[..., Path], mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [tmp_path / "download" / folder for folder in ("LibriSpeech/dev-clean-2/9", ".unpacked-dev-clean-2.tar.gz/9")]
    for folder in left:  # of killed runs
        folder.mkdir(parents=True)
    mirror.cut = 1000
    with pytest.raises(SystemExit):
        get(*PART)
    assert "dev-clean-2.tar.gz" in capsys.readouterr().err.splitlines()[-1]
    found = get(*PART)
    assert [start for _, start in mirror.asked] == ["0", "1000"]
    assert sorted(os.listdir(found / "dev-clean-2")) == [".completed", "1"] and not any(folder.exists() for folder in left)


def test_another_archive_than_the_published_one_is_not_unpacked(
    get: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        get(*PART, published=False)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "dev-clean-2.tar.gz" in line and "0" * 32 in line
    assert os.listdir(tmp_path / "download") == ["dev-clean-2.tar.gz"]


@pytest.mark.parametrize("attack", ["link out", "bomb", "parent", "file and folder"])
def test_a_hostile_server_writes_nothing_but_the_archive(
    get: Callable[..., Path], tmp_path: Path, attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if its checksum were right."""
    with pytest.raises(SystemExit):
        get(*PART, *HOSTILE[attack])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.splitlines()[-1].startswith("error: ") and "dev-clean-2.tar.gz" in err
    assert os.listdir(tmp_path / "download") == ["dev-clean-2.tar.gz"]


def test_an_archive_without_its_part_says_so(get: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        get(member("LibriSpeech/other/a", b"x"))
    assert "LibriSpeech/dev-clean-2" in capsys.readouterr().err


def test_only_known_archives_over_https() -> None:
    every = [*archives.LIBRISPEECH.values(), *archives.MINI_LIBRISPEECH.values(), archives.MUSAN]
    assert len({a.md5 for a in every}) == len(every) == 10 and all(re.fullmatch("[0-9a-f]{32}", a.md5) for a in every)
    assert archives.URL.startswith("https://")


def test_a_mute_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(archives, "TIMEOUT", 0.2)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(UserError, match="/a.tar.gz"):
            archives.download(f"http://127.0.0.1:{mute.getsockname()[1]}/a.tar.gz", tmp_path / "a.tar.gz")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    "bad",
    [
        [member("b.nometa", size=-512)],
        [member("b.wav", size=-512), member("b.json", size=-512)],
        [member("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME, size=1 << 40)],
        [member("b.wav", b"x"), member("b.json", kind=tarfile.SYMTYPE, link="b.wav")],
    ],
)
def test_a_shard_that_python_would_read_for_ever_has_an_end(tmp_path: Path, bad: list[Member]) -> None:
    """Shards are read in place, by the same rules."""
    path = tmp_path / "recording.000000.tar"
    members = [member("a.wav", b"x" * 600), member("a.nometa"), *bad]
    path.write_bytes(gzip.decompress(archive_of(tmp_path / "a.gz", *members).read_bytes()))
    found = itertools.islice(recordings_in(path, "here"), 100)
    assert next(found) == ("a", None)
    with pytest.raises((tarfile.TarError, ValueError)):
        list(found)
