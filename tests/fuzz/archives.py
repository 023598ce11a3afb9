"""Target: the archives that stage 0 of prepare.sh downloads and unpacks."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

from local.corpus.archives import unpack
from tests.fuzz.harness import Target
from tests.fuzz.programs import emptied


def make(root: Path) -> None:
    (root / "archive").mkdir()
    with tarfile.open(root / "archive" / "x.tgz", "w:gz") as tar:
        folder = tarfile.TarInfo("LibriSpeech/dev")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("LibriSpeech/dev/a.flac", "LibriSpeech/dev/a.trans.txt", "LibriSpeech/README"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))


def read(folder: Path) -> None:
    """Unpack it; what is there afterwards are files and folders that this user can read and remove."""
    out = emptied(folder.parent / "out")
    unpack(folder / "x.tgz", out)
    for place, folders, names in os.walk(out):
        for name in (*folders, *names):
            mode = (Path(place) / name).lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), f"{name} is neither a file nor a folder"
            assert not mode & (stat.S_ISUID | stat.S_ISGID), f"{name} runs as another user"


ARCHIVES = Target("tar", make, read)
