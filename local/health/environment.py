"""The doctor's checks of the software: Python, packages, CUDA, Triton, k2, sound. Only the standard library at the top."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from local.common.errors import described, first_of, one_line
from local.health.finding import Check, Finding, Run, error, warning

OLDEST, NEWEST = (3, 10), (3, 13)  # of Python; requirements.txt has wheels for these
INSTALL = "./run.sh without --python installs what is needed into .venv, or: {python} -m pip install -r requirements.txt"
REQUIREMENT = re.compile(r"^([A-Za-z0-9][\w.-]*)\s*([^#;]*)")
OPTIONAL = {  # packages without which the recipe works, and what is missing then
    "numba": "losses and searches on the CPU are several times slower",
    "espeakng-loader": "corpus tiny cannot be synthesised",
    "soxr": "unusual sampling rates cannot be resampled",
    "kaldifst": "decoding graphs cannot be made",
    "kaldilm": "decoding graphs cannot be made",
}
IMPORTED = ("torch", "torchaudio", "lhotse", "sentencepiece", "soundfile", "numba")  # those with libraries of their own
MP3 = (1, 1)  # libsndfile from this version on reads and writes MP3
FFMPEG = (".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".mka")
MOST_FILES = 20_000  # of a corpus that is not prepared, whose names are read
K2 = "./test.sh makes an environment with k2 (requirements-k2.txt)"


def check_python(run: Run) -> Iterator[Finding]:
    """Yield a Python for which packages have no wheels."""
    here = tuple(sys.version_info[:2])
    name = f"{sys.executable} is Python {here[0]}.{here[1]}"
    if here < OLDEST:
        yield error(f"{name}, too old", "install Python 3.10 to 3.13, or name one by --python")
    elif here > NEWEST:
        yield warning(f"{name}, newer than the packages of requirements.txt are tested with", "name Python 3.13 by --python")


def check_venv(run: Run) -> Iterator[Finding]:
    """Yield a .venv that ./run.sh will make or change."""
    what = {
        "missing": ".venv is missing, so that packages, configuration, data and experiment are not checked",
        "unfinished": ".venv is half made, so that packages, configuration, data and experiment are not checked",
        "old": ".venv was made from another requirements.txt",
    }
    if run.environment in what:
        yield warning(what[run.environment], "./run.sh makes it (2.5 GB from PyPI); --python names another Python")


def check_packages(run: Run) -> Iterator[Finding]:
    """Yield each package of requirements.txt that is missing, or whose version is outside the range there."""
    fix = INSTALL.format(python=sys.executable)
    for name, versions in requirements(run.root / "requirements.txt"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lost = OPTIONAL.get(name)
            yield warning(f"package {name} is missing: {lost}", fix) if lost else error(f"package {name} is missing", fix)
            continue
        if not in_range(found, versions):
            yield warning(f"package {name} is {found}, and requirements.txt has {versions}", fix)


def requirements(path: Path) -> Iterator[tuple[str, str]]:
    """Yield names and ranges of versions from a requirements file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := REQUIREMENT.match(line):
            yield match[1], match[2].strip()


def in_range(version: str, versions: str) -> bool:
    """Return whether a version is in a range such as ">=2.1,<3"; True without package packaging."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(versions).contains(version, prereleases=True)


def check_torch_pair(run: Run) -> Iterator[Finding]:
    """Yield torch and torchaudio of two versions: torchaudio's library needs its own torch."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        torch, audio = (importlib.metadata.version(name) for name in ("torch", "torchaudio"))
        (plain, _, build), (audio_plain, _, audio_build) = torch.partition("+"), audio.partition("+")
        if plain != audio_plain or build and audio_build and build != audio_build:
            fix = f"{sys.executable} -m pip install torchaudio=={plain}, from the index that torch is from"
            yield error(f"torch is {torch} and torchaudio {audio}: they must have one version", fix)


def check_imports(run: Run) -> Iterator[Finding]:
    """Yield each package that is installed and does not import, such as numba with a NumPy that it does not know."""
    for name in IMPORTED:
        if importlib.util.find_spec(name) is None:
            continue  # `check_packages` names it
        try:
            importlib.import_module(name)
        except Exception as e:  # libraries fail with errors of many kinds
            make = warning if name in OPTIONAL else error
            lost = f": {OPTIONAL[name]}" if name in OPTIONAL else ""
            yield make(f"package {name} does not import ({described(e)}){lost}", INSTALL.format(python=sys.executable))


def check_cuda(run: Run) -> Iterator[Finding]:
    """Yield a GPU that torch cannot use."""
    driver, torch = driver_cuda(), imported("torch")
    if torch is None or driver is None:
        return
    made_for = torch.version.cuda
    if made_for is None:
        index = "https://pytorch.org/get-started/locally"
        yield warning(f"an NVIDIA driver is here, and torch {torch.__version__} is without CUDA: it uses the CPU", index)
    elif int(made_for.split(".")[0]) > driver[0]:
        has = f"the NVIDIA driver knows CUDA {driver[0]}.{driver[1]}, and torch {torch.__version__} needs {made_for}"
        fix = f"install a newer driver, or a torch for CUDA {driver[0]} (https://pytorch.org/get-started/locally)"
        yield error(f"{has}: training would use the CPU", fix)
    elif not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        fix = "nvidia-smi must list a GPU; a container needs --gpus all"
        fix = fix if visible is None else f"CUDA_VISIBLE_DEVICES is '{visible}': unset it to use a GPU"
        yield warning("an NVIDIA driver is here, and torch sees no GPU: training would use the CPU", fix)
    else:
        yield from unknown_gpus(torch)


def unknown_gpus(torch: Any) -> Iterator[Finding]:
    """Yield each GPU for which this torch has no code.

    Code sm_XY runs on GPUs of the same major number X and a minor number from Y on; compute_XY is compiled for newer ones.
    """
    known = [
        (kind, int(number[:-1]), int(number[-1])) for kind, number in map(arch_parts, torch.cuda.get_arch_list()) if number
    ]
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        runs = any((x == major and y <= minor) if kind == "sm" else (x, y) <= (major, minor) for kind, x, y in known)
        if known and not runs:
            name = torch.cuda.get_device_name(i)
            fix = "install a torch for it (https://pytorch.org/get-started/locally), or hide it by CUDA_VISIBLE_DEVICES"
            yield error(f"GPU {i}, {name}, has compute capability {major}.{minor}, for which torch has no code", fix)


def arch_parts(name: str) -> tuple[str, str]:
    """Return "sm" and "90" of "sm_90a"; no number for other names."""
    match = re.fullmatch(r"(sm|compute)_(\d{2,3})[a-z]?", name)
    return (match[1], match[2]) if match else (name, "")


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA that the NVIDIA driver knows; None without a driver."""
    try:
        version = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def imported(name: str) -> Any:
    """Return a module; None if it does not import."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None  # `check_packages` or `check_imports` says why


def check_triton(run: Run) -> Iterator[Finding]:
    """Yield what Triton lacks to compile the losses' kernel, on a GPU; see `model.loss.lattice.on_gpu`."""
    torch = imported("torch")
    if torch is None or not torch.cuda.is_available():
        return
    slower = "the losses use torch operations, 70 times as slow as the kernel"
    if importlib.util.find_spec("triton") is None:
        yield warning(f"Triton is missing: {slower}", f"{sys.executable} -m pip install triton")
    elif not any(map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "clang"))):
        yield warning(f"Triton has no C compiler: {slower}", "install gcc, or set CC")
    elif not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        yield warning(f"Triton needs Python.h: {slower}", "install the headers of Python (Debian and Ubuntu: python3-dev)")


def check_k2(run: Run) -> Iterator[Finding]:
    """Yield a k2 that the configuration asks for and that does not work, such as PyPI's wheel for another torch."""
    cfg = run.config
    by_method = [cfg.decode.of_method(method).fast_beam_backend for method in cfg.decode.methods]
    keys = [f"{key}=k2" for key, value in (("loss.backend", cfg.loss.backend),) if value == "k2"]
    keys += ["decode.fast_beam_backend=k2"] if "k2" in by_method else []
    installed = importlib.util.find_spec("k2") is not None
    if keys and not installed:
        yield error(f"{' and '.join(keys)} needs k2, which is not installed", f"take native instead of k2; {K2}")
    elif installed and (keys or cfg.loss.backend == "auto") and (why := why_not_imported("k2")):
        if keys:
            yield error(f"k2 does not import ({why}), which {' and '.join(keys)} needs", f"take native instead of k2; {K2}")
        else:
            fix = f"set loss.backend=native, or remove it: {sys.executable} -m pip uninstall k2"
            yield warning(f"k2 does not import ({why}), so that loss.backend=auto takes native", fix)


def why_not_imported(name: str) -> str:
    """Return why a module does not import; "" if it does. A library for another torch may end the process: it has its own."""
    command = [sys.executable, "-B", "-c", f"import {name}"]
    plain = {**os.environ, "PYTHONFAULTHANDLER": "", "PYTHONDEVMODE": ""}  # which would add a stack to the status
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=plain)
    except (OSError, subprocess.TimeoutExpired) as e:
        return described(e)
    said = re.split(r"^(?=[\w.]*(?:Error|Exception)\b)", done.stderr, flags=re.MULTILINE)[-1].strip()  # after the traceback
    return "" if done.returncode == 0 else one_line(said or f"it ends Python, status {done.returncode}", 300)


def check_sound(run: Run) -> Iterator[Finding]:
    """Yield a libsndfile that knows no MP3."""
    soundfile = imported("soundfile")
    version = getattr(soundfile, "__libsndfile_version__", "")
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers and numbers < MP3:
        fix = f"{sys.executable} -m pip install --force-reinstall soundfile (its wheels bring a newer one)"
        yield warning(f"libsndfile {version} reads and writes no MP3 (1.1 does)", fix)


def check_converters(run: Run) -> Iterator[Finding]:
    """Yield formats of the corpus whose converter is not installed."""
    if shutil.which("ffmpeg"):
        return
    fix = "install ffmpeg, or convert the files to FLAC"
    found = [name for name in audio_names(run) if name.lower().endswith(FFMPEG)]
    if found:
        yield error(f"{len(found)} files of the corpus need ffmpeg, which is not installed: {first_of(found, 3)}", fix)


def audio_names(run: Run) -> Iterator[str]:
    """Yield the names of the corpus's audio files: those of the manifests, else the first ones in --corpus-dir."""
    manifests = sorted((run.data_dir / "manifests").glob("recordings_*.jsonl.gz"))
    for path in manifests:
        with gzip.open(path, "rt", encoding="utf-8") as lines, contextlib.suppress(EOFError, gzip.BadGzipFile):
            for line in lines:  # a name can only be in a line that has an ending; other lines need no parser
                if any(ending in line.lower() for ending in FFMPEG):
                    with contextlib.suppress(ValueError, TypeError, LookupError):
                        yield from (str(source["source"]) for source in json.loads(line)["sources"])
    if not manifests and run.corpus_dir is not None:
        names = (name for _, _, files in os.walk(run.corpus_dir) for name in files)
        yield from (name for name, _ in zip(names, range(MOST_FILES), strict=False))


CHECKS: tuple[Check, ...] = (check_python, check_venv)
PACKAGE_CHECKS: tuple[Check, ...] = (check_packages, check_torch_pair, check_imports, check_cuda, check_triton, check_sound)
RUN_CHECKS: tuple[Check, ...] = (check_k2, check_converters)  # with a configuration
