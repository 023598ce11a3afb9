"""The pruned RNN-T loss, from a backend chosen by name."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import cast

from model.loss.bounds import pruned_mass
from model.loss.interface import LossBackend

__all__ = ["BACKENDS", "LossBackend", "get_backend", "pruned_mass"]

BACKENDS = {
    "native": "model.loss.native",
    "k2": "model.loss.k2_backend",
    "torchaudio": "model.loss.torchaudio_backend",
}


def get_backend(name: str = "native") -> LossBackend:
    """The backend `native`, `k2` or `torchaudio`; `auto` is k2 where it imports, else native, and says which.

    Raises ValueError for another name, ImportError with one clear line where the backend's library is missing.
    """
    if name == "auto":
        try:
            backend = get_backend("k2")
            logging.info("loss.backend=auto: k2")
        except ImportError as e:
            backend = get_backend("native")
            logging.info("loss.backend=auto: native (%s)", e)
        return backend
    if name not in BACKENDS:
        raise ValueError(f"unknown loss backend {name!r}: choose one of {', '.join([*BACKENDS, 'auto'])}")
    return cast(LossBackend, importlib.import_module(BACKENDS[name]))
