"""Getting audio: which parts are downloaded, and the errors of a failing network."""

from __future__ import annotations

import tarfile
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

import local.get_audio
from local.common.errors import UserError
from local.corpus.corpus_yaml import Corpus
from local.get_audio import fetch, fetch_musan

import pytest


def corpus(source: str, *parts: str) -> Corpus:
    return Corpus(source, source, [parts[0]], list(parts[1:]), list(parts[1:]))


def failing(error: Exception):
    def download(*args: object) -> None:
        raise error

    return download


def test_each_part_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(local.get_audio, "download_librispeech", lambda out, parts: asked.append((out, parts)))
    fetch(corpus("mini_librispeech", "train-clean-5", "dev-clean-2"), tmp_path, 1)
    assert asked == [(tmp_path, ["train-clean-5"]), (tmp_path, ["dev-clean-2"])]


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        HTTPError("http://x/y.tar.gz", 404, "Not Found", None, None),  # type: ignore[arg-type]
        IncompleteRead(b"", 3),
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
    ],
)
def test_a_failing_network_names_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(local.get_audio, "download_librispeech", failing(error))
    with pytest.raises(UserError, match="'train-clean-5' of mini_librispeech"):
        fetch(corpus("mini_librispeech", "train-clean-5"), tmp_path, 1)


def test_a_damaged_archive_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.get_audio, "download_librispeech", failing(tarfile.ReadError("unexpected end of data")))
    with pytest.raises(UserError, match=f"'dev-clean' of librispeech in {tmp_path}"):
        fetch(corpus("librispeech", "dev-clean"), tmp_path, 1)


def test_unknown_parts_and_sources_stop(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mini_librispeech .*'dev-clean'.* dev-clean-2"):
        fetch(corpus("mini_librispeech", "dev-clean"), tmp_path, 1)
    with pytest.raises(UserError, match="--corpus-dir"):
        fetch(corpus("custom", "train"), tmp_path, 1)


def test_musan_is_downloaded_if_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(local.get_audio, "download_musan", asked.append)
    fetch_musan(tmp_path)
    fetch_musan(tmp_path / "musan")
    assert asked == [tmp_path]
    with pytest.raises(UserError, match="augment.musan=.*noises"):
        fetch_musan(tmp_path / "noises")
