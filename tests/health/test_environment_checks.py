"""The doctor's checks of the software, with versions, libraries and programs that are not here."""

from __future__ import annotations

import gzip
import importlib.metadata
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from local.health import environment
from local.health.environment import (
    check_converters,
    check_cuda,
    check_imports,
    check_k2,
    check_packages,
    check_python,
    check_sound,
    check_torch_pair,
    check_triton,
    check_venv,
    in_range,
)
from tests.health.examined import found, healthy, one

import pytest

Patch = pytest.MonkeyPatch


def versions(monkeypatch: Patch, **replaced: str | None) -> None:
    """Let packages have other versions; None: not installed."""
    true = importlib.metadata.version

    def version(name: str) -> str:
        if name not in replaced:
            return true(name)
        if replaced[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(replaced[name])

    monkeypatch.setattr(importlib.metadata, "version", version)


def gpu(capability: tuple[int, int] = (9, 0), codes: str = "sm_80 sm_90", cuda: str | None = "12.8", there: bool = True) -> Any:
    """Return a torch with one GPU."""
    fake = SimpleNamespace(is_available=lambda: there, get_arch_list=codes.split, device_count=lambda: 1)
    fake.get_device_capability, fake.get_device_name = (lambda i: capability), (lambda i: "H900")
    return SimpleNamespace(__version__="2.11.0", version=SimpleNamespace(cuda=cuda), cuda=fake)


@pytest.fixture
def libraries(monkeypatch: Patch) -> Callable[..., None]:
    """Return a function that replaces modules and what the driver says."""

    def replace(driver: tuple[int, int] | None = (12, 8), **modules: Any) -> None:
        monkeypatch.setattr(environment, "driver_cuda", lambda: driver)
        monkeypatch.setattr(environment, "imported", modules.get)

    return replace


@pytest.mark.parametrize(("version", "level"), [((3, 9, 2), "error"), ((3, 15, 0), "warning")])
def test_python_fires(tmp_path: Path, monkeypatch: Patch, version: tuple[int, ...], level: str) -> None:
    run = healthy(tmp_path)
    monkeypatch.setattr(sys, "version_info", version)
    one(check_python, run, level, f"Python {version[0]}.{version[1]}", "--python")


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 13, 9)])
def test_python_is_quiet(tmp_path: Path, monkeypatch: Patch, version: tuple[int, ...]) -> None:
    run = healthy(tmp_path)
    monkeypatch.setattr(sys, "version_info", version)
    assert found(check_python, run) == []


@pytest.mark.parametrize("state", ["missing", "unfinished", "old"])
def test_venv_fires(tmp_path: Path, state: str) -> None:
    one(check_venv, healthy(tmp_path, environment=state), "warning", ".venv", "./run.sh makes it")


@pytest.mark.parametrize("state", ["given", "whole"])
def test_venv_is_quiet(tmp_path: Path, state: str) -> None:
    assert found(check_venv, healthy(tmp_path, environment=state)) == []


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [("lhotse", None, "error"), ("numba", None, "warning"), ("lhotse", "1.20.0", "warning"), ("numpy", "3.0.1", "warning")],
)
def test_packages_fires(tmp_path: Path, monkeypatch: Patch, name: str, version: str | None, level: str) -> None:
    before = found(check_packages, healthy(tmp_path))
    versions(monkeypatch, **{name: version})
    (finding,) = [f for f in found(check_packages, healthy(tmp_path)) if f not in before]
    assert finding.level == level and name in finding.what and (version or "missing") in finding.what


def test_packages_is_quiet(tmp_path: Path, monkeypatch: Patch) -> None:
    """A requirements file of what is here, with its comments and ranges."""
    have = importlib.metadata.version("torch").partition("+")[0]
    lines = f"# a comment\ntorch=={have}   # with a reason\npytest>=1,<99\n\nnumpy\n"
    (tmp_path / "requirements.txt").write_text(lines, encoding="utf-8")
    run = healthy(tmp_path)
    object.__setattr__(run, "root", tmp_path)
    assert found(check_packages, run) == []
    (tmp_path / "requirements.txt").write_text("torch==0.1\n", encoding="utf-8")
    one(check_packages, run, "warning", "torch", "==0.1")


def test_a_build_s_label_is_no_other_version() -> None:
    assert in_range("2.11.0+cu130", "==2.11.0") and not in_range("2.11.1", "==2.11.0") and in_range("1.33.4", "==1.33.*")


@pytest.mark.parametrize(("torch", "audio"), [("2.11.0", "2.11.1"), ("2.11.0+cu130", "2.11.0+cpu")])
def test_torch_pair_fires(tmp_path: Path, monkeypatch: Patch, torch: str, audio: str) -> None:
    versions(monkeypatch, torch=torch, torchaudio=audio)
    one(check_torch_pair, healthy(tmp_path), "error", torch, audio, "torchaudio==2.11.0")


@pytest.mark.parametrize(("torch", "audio"), [("2.11.0+cu130", "2.11.0"), ("2.11.0", "2.11.0"), ("2.11.0", None)])
def test_torch_pair_is_quiet(tmp_path: Path, monkeypatch: Patch, torch: str, audio: str | None) -> None:
    versions(monkeypatch, torch=torch, torchaudio=audio)
    assert found(check_torch_pair, healthy(tmp_path)) == []


@pytest.mark.parametrize(("broken", "level"), [("torchaudio", "error"), ("numba", "warning")])
def test_imports_fires(tmp_path: Path, monkeypatch: Patch, broken: str, level: str) -> None:
    def load(name: str) -> None:
        if name == broken:
            raise OSError("undefined symbol: torch_library_impl")

    monkeypatch.setattr(environment.importlib, "import_module", load)
    one(check_imports, healthy(tmp_path), level, broken, "undefined symbol")


def test_imports_is_quiet(tmp_path: Path) -> None:
    assert found(check_imports, healthy(tmp_path)) == []


CPU_BUILD, OLD_DRIVER = {"torch": gpu(cuda=None)}, {"torch": gpu(cuda="13.0"), "driver": (12, 8)}
HIDDEN, TOO_NEW = {"torch": gpu(there=False)}, {"torch": gpu((12, 0))}


@pytest.mark.parametrize(
    ("here", "level", "word"),
    [
        (CPU_BUILD, "warning", "without CUDA"),
        (OLD_DRIVER, "error", "12.8"),
        (HIDDEN, "warning", "no GPU"),
        (TOO_NEW, "error", "12.0"),
        ({"torch": gpu((7, 5))}, "error", "7.5"),
        ({"torch": gpu((8, 0), "sm_86")}, "error", "8.0"),
    ],
)
def test_cuda_fires(tmp_path: Path, libraries: Callable[..., None], here: dict[str, Any], level: str, word: str) -> None:
    libraries(**here)
    one(check_cuda, healthy(tmp_path), level, word)


@pytest.mark.parametrize(
    "here",
    [
        {"torch": gpu(cuda=None), "driver": None},
        {"torch": gpu(cuda="12.8"), "driver": (12, 2)},
        {"torch": gpu(cuda="12.8"), "driver": (13, 0)},
        {"torch": gpu((8, 9))},
        {"torch": gpu((10, 0), "sm_80 sm_90a compute_90")},
        {"torch": None},
    ],
)
def test_cuda_is_quiet(tmp_path: Path, libraries: Callable[..., None], here: dict[str, Any]) -> None:
    """No driver, an older or a newer one of the same major version, code of an earlier GPU of its kind, or for newer ones."""
    libraries(**here)
    assert found(check_cuda, healthy(tmp_path)) == []


def triton_here(monkeypatch: Patch, spec: bool, compilers: tuple[str, ...], headers: Path) -> None:
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: object() if spec else None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in compilers else None)
    monkeypatch.setattr(environment.sysconfig, "get_paths", lambda: {"include": str(headers)})
    (headers / "Python.h").touch()


@pytest.mark.parametrize("lost", ["Triton is missing", "C compiler", "Python.h"])
def test_triton_fires(tmp_path: Path, monkeypatch: Patch, libraries: Callable[..., None], lost: str) -> None:
    libraries(torch=gpu())
    triton_here(monkeypatch, lost[0] != "T", () if lost[0] == "C" else ("gcc",), tmp_path)
    if lost == "Python.h":
        (tmp_path / "Python.h").unlink()
    one(check_triton, healthy(tmp_path), "warning", lost)


@pytest.mark.parametrize(("there", "compiler"), [(True, "gcc"), (True, "clang"), (False, "")])
def test_triton_is_quiet(
    tmp_path: Path, monkeypatch: Patch, libraries: Callable[..., None], there: bool, compiler: str
) -> None:
    """With all that it needs; without a GPU it needs nothing."""
    libraries(torch=gpu(there=there))
    triton_here(monkeypatch, True, (compiler,), tmp_path)
    monkeypatch.delenv("CC", raising=False)
    assert found(check_triton, healthy(tmp_path)) == []


WANTED = ["loss.backend=k2"], ["decode.fast_beam_backend=k2"], ["decode.by_method.fast_beam_search.fast_beam_backend=k2"]


@pytest.mark.parametrize("overrides", WANTED)
@pytest.mark.parametrize("installed", [True, False])
def test_k2_fires(tmp_path: Path, monkeypatch: Patch, overrides: list[str], installed: bool) -> None:
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(environment, "why_not_imported", lambda name: "undefined symbol")
    one(check_k2, healthy(tmp_path, *overrides), "error", overrides[0].split(".")[0], "native")


def test_k2_fires_for_auto(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(environment, "why_not_imported", lambda name: "undefined symbol")
    one(check_k2, healthy(tmp_path, "loss.backend=auto"), "warning", "undefined symbol", "native")


def test_k2_is_quiet(tmp_path: Path, monkeypatch: Patch) -> None:
    """If it imports, if nothing asks for it, or if auto need not have it."""
    installed, why = True, ""
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(environment, "why_not_imported", lambda name: why)
    assert found(check_k2, healthy(tmp_path, "loss.backend=k2")) == []
    why = "undefined symbol"
    assert found(check_k2, healthy(tmp_path)) == []
    installed = False
    assert found(check_k2, healthy(tmp_path, "loss.backend=auto")) == []


def test_an_import_that_ends_python_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "crashes.py").write_text("import os\nos.abort()\n", encoding="utf-8")
    (tmp_path / "raises.py").write_text("raise OSError('undefined symbol: _ZN2at')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    assert "-6" in environment.why_not_imported("crashes")
    assert environment.why_not_imported("raises").endswith("undefined symbol: _ZN2at")
    assert environment.why_not_imported("json") == "" and not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize("version", ["1.0.31", "1.0"])
def test_sound_fires(tmp_path: Path, libraries: Callable[..., None], version: str) -> None:
    libraries(soundfile=SimpleNamespace(__libsndfile_version__=version))
    one(check_sound, healthy(tmp_path), "warning", version, "MP3")


def test_sound_is_quiet(tmp_path: Path, libraries: Callable[..., None]) -> None:
    for module in (SimpleNamespace(__libsndfile_version__="1.1.0"), SimpleNamespace(), None):
        libraries(soundfile=module)
        assert found(check_sound, healthy(tmp_path)) == []


def manifest(folder: Path, ending: str) -> None:
    folder.mkdir(parents=True)
    line = f'{{"id": "a", "sources": [{{"type": "file", "source": "/audio/a{ending}"}}]}}\nnot JSON .m4a\n'
    with gzip.open(folder / "recordings_train.jsonl.gz", "wt", encoding="utf-8") as f:
        f.write(line)


def test_converters_fires(tmp_path: Path, monkeypatch: Patch) -> None:
    """For prepared data, and for those that are not prepared yet."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "mine" / "clips").mkdir(parents=True)
    (tmp_path / "mine" / "clips" / "b.M4A").touch()
    one(check_converters, healthy(tmp_path, corpus_dir=tmp_path / "mine"), "error", "ffmpeg", "b.M4A")
    manifest(tmp_path / "data" / "manifests", ".m4a")
    one(check_converters, healthy(tmp_path), "error", "1 files", "/audio/a.m4a")


def test_converters_is_quiet(tmp_path: Path, monkeypatch: Patch) -> None:
    manifest(tmp_path / "data" / "manifests", ".flac")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert found(check_converters, healthy(tmp_path)) == []
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/ffmpeg")
    assert found(check_converters, healthy(tmp_path, data_dir=tmp_path, corpus_dir=tmp_path)) == []
