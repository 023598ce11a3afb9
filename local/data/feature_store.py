"""Feature archives, lhotse's storage `float16_archive`: log-mel frames in one raw file per process, read by memory map.

Log-mel energies lie within +-24, where float16 is exact to 0.008, half the step of lilcom, lhotse's lossy format.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from lhotse.features.io import FeaturesReader, FeaturesWriter, register_reader, register_writer

BYTES = 2  # of a float16


@register_writer
class Float16ArchiveWriter(FeaturesWriter):
    """Appends matrices (T, F) to the file `storage_path`; their keys are `<first value>:<T>:<F>`."""

    name = "float16_archive"

    def __init__(self, storage_path: str | Path) -> None:
        """Open the archive for appending."""
        super().__init__()
        self._path = Path(storage_path)
        self._file = open(self._path, "ab")  # noqa: SIM115  (closed by __exit__ or with the process)

    @property
    def storage_path(self) -> str:
        """The archive's path, as lhotse stores it in manifests."""
        return str(self._path)

    def write(self, key: str, value: np.ndarray) -> str:
        """Append `value` (T, F) and return the key to read it by; the argument `key` is not used."""
        first = self._file.tell() // BYTES
        self._file.write(np.ascontiguousarray(value, dtype="<f2").tobytes())
        return f"{first}:{value.shape[0]}:{value.shape[1]}"

    def flush(self) -> None:
        """Hand written values to the operating system, before another process is told of them."""
        self._file.flush()

    def __exit__(self, *args: object, **kwargs: object) -> None:
        self._file.close()


@register_reader
class Float16ArchiveReader(FeaturesReader):
    """Reads archives of `Float16ArchiveWriter`."""

    name = "float16_archive"

    def __init__(self, storage_path: str | Path, *args: object, **kwargs: object) -> None:
        """Map the archive into memory."""
        super().__init__()
        self._values = _memory_map(str(storage_path))

    def read(self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None) -> np.ndarray:
        """Return frames [left, right) of the matrix, float32. Raises `ValueError` if the archive is too short."""
        first, frames, bins = map(int, key.split(":"))
        if first + frames * bins > len(self._values):
            raise ValueError(f"the feature archive ends before {key}")
        matrix = self._values[first : first + frames * bins].reshape(frames, bins)
        return matrix[left_offset_frames:right_offset_frames].astype(np.float32)


def holds(archive: Path, key: str, shape: tuple[int, int]) -> bool:
    """Return whether `key` names a matrix (T, F) of that shape and the file is long enough for it."""
    try:
        first, frames, bins = map(int, key.split(":"))
    except (ValueError, AttributeError):
        return False
    return first >= 0 and (frames, bins) == shape and BYTES * (first + frames * bins) <= archive.stat().st_size


@lru_cache(maxsize=256)
def _memory_map(path: str) -> np.ndarray:
    return np.memmap(path, dtype="<f2", mode="r")
