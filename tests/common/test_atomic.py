"""What killed writers leave is removed by the next writer, in any folder; what others own is not."""

from __future__ import annotations

import os
from pathlib import Path

from local.common import atomic
from local.common.atomic import atomic_folder, remove_abandoned, write_text

import pytest


def test_the_next_writer_in_a_folder_removes_what_killed_ones_left(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-a.json").write_text("half")
    for name in (".tmp-mine", ".tmp-x-a.json", "tmp-1-a.json"):  # not named by us
        (tmp_path / name).write_text("of the user")
    (tmp_path / ".tmp-2-folder").mkdir()
    (tmp_path / ".tmp-3-link").symlink_to(tmp_path / ".tmp-mine")
    write_text(tmp_path / "b.json", "{}")
    kept = [".tmp-2-folder", ".tmp-3-link", ".tmp-mine", ".tmp-x-a.json", "b.json", "tmp-1-a.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_a_folder_is_replaced_in_full_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    (tmp_path / ".tmp-1-tiny" / "deep").mkdir(parents=True)
    (tmp_path / ".tmp-1-other").mkdir()
    with atomic_folder(out) as work:
        assert work.parent == tmp_path and not (tmp_path / ".tmp-1-tiny").exists()
        (work / "a").write_text("1")
        assert remove_abandoned(tmp_path, "tiny") == [], "its writer lives"
    with pytest.raises(ZeroDivisionError), atomic_folder(out) as work:
        (work / "b").write_text("2")
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".tmp-1-other", "a", "tiny"]


def test_what_a_link_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as work:
        (work / "a").touch()
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "real").iterdir()] == ["a"]


def test_a_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two, `remove_abandoned` of another process takes it for abandoned."""
    lock, removed = atomic._lock, []

    def late(file: int, wait: bool = False) -> bool:
        if wait and not removed:
            removed.extend(path for path in tmp_path.glob(f".tmp-{os.getpid()}-*"))
            removed[0].unlink()
        return lock(file, wait)

    monkeypatch.setattr(atomic, "_lock", late)
    write_text(tmp_path / "a.json", "{}")
    assert removed and (tmp_path / "a.json").read_text() == "{}"
