"""Texts and YAML that others wrote: what is wrong with them is one line that names file and line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

from local.common.errors import UserError
from local.common.text_files import (
    LONGEST_LINE,
    MOST_TIMES,
    SMALL,
    first_lines,
    iterate_lines,
    read_bytes,
    read_lines,
    read_yaml,
)

import pytest


@pytest.mark.parametrize("name", ["text", "text.gz"])
def test_lines_without_their_ends(tmp_path: Path, name: str) -> None:
    data = b"\xef\xbb\xbfone\r\n\n\xc3\x84 two\nlast"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(iterate_lines(tmp_path / name)) == read_lines(tmp_path / name) == ["one", "", "Ä two", "last"]
    assert read_bytes(tmp_path / name) == data


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("latin", "one\nÄ\n".encode("latin-1"), "latin:2: .* byte 1"),
        ("zeros", b"one\ntwo\nab\0\n", "zeros:3: .* byte 3"),
        ("plain.gz", b"one\n", r"plain\.gz: .*the writer"),
        ("cut.gz", gzip.compress(b"one\n" * 99, mtime=0)[:-9], r"cut\.gz: .*the writer"),
        ("none", None, "none is missing; the writer"),
    ],
)
def test_unreadable_text_is_named(tmp_path: Path, name: str, data: bytes | None, place: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=place):
        list(iterate_lines(tmp_path / name, "the writer"))


def test_first_lines_in_spite_of_flaws(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfone\r\n\xff\0\n\xc3\x84\nfour\n")
    assert first_lines(tmp_path / "text", 3)[:3] == ["one", "\ufffd\ufffd", "Ä"]
    assert "four" not in first_lines(tmp_path / "text", 3)
    with pytest.raises(UserError, match="none is missing"):
        first_lines(tmp_path / "none", 3)


def test_lines_come_before_the_file_is_read_whole(tmp_path: Path) -> None:
    """A text may be larger than the memory: the first lines come although the end is damaged."""
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"line\n" * 1_000_000)[:-9])
    lines = iterate_lines(tmp_path / "text.gz")
    assert [next(lines) for _ in range(3)] == ["line"] * 3


@pytest.mark.parametrize(
    ("text", "place", "key"),
    [
        ("name: a\ntrain: [b\ndev: [c]\n", "2:8", "train"),
        ('name: "a\ntrain: [b]\n', "1:7", "name"),
        ("options:\n  seed: 1\n  voices: *all\n", "3:11", "options.voices"),
        ("a: {b: 1, c}: 2\n", "1:13", "a"),
        ("name: a\n\tseed: 1\n", "2:1", "name"),
    ],
)
def test_yaml_errors_name_line_column_and_key(tmp_path: Path, text: str, place: str, key: str) -> None:
    path = tmp_path / "corpus.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as e:
        read_yaml(path)
    assert str(e.value).startswith(f"{path}:{place}: ") and f"'{key}'" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["a: 2020-99-99\n", "a: !!int x\n", "a: !!timestamp x\n"])
def test_yaml_of_impossible_values_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "corpus.yaml").write_text(text)
    with pytest.raises(UserError, match=r"corpus\.yaml"):
        read_yaml(tmp_path / "corpus.yaml")


@pytest.mark.parametrize("text", ['a: b\nc: "\\ud800"\n', 'a: b\n"\\U0000DFFF": 1\n'])
def test_half_a_character_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=r"a.yaml:2: .*\\[uU]"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("read", [read_bytes, read_lines])
def test_packed_files_that_are_made_to_fill_the_memory_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "bomb.gz").write_bytes(gzip.compress((b"a" * (1 << 20) + b"\n") * (1 + (SMALL >> 20))))
    with pytest.raises(UserError, match=rf"bomb\.gz: .*{MOST_TIMES} times"):
        read(tmp_path / "bomb.gz")


def test_a_line_has_a_longest_length(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"one\n" + b"x" * (LONGEST_LINE + 1))
    with pytest.raises(UserError, match="text:2: .*64 MB"):
        list(iterate_lines(tmp_path / "text"))
