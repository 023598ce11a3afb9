"""The pruned RNN-T loss, from a backend chosen by name."""

from __future__ import annotations

import importlib
import logging

from model.loss.interface import LossBackend

__all__ = ["BACKENDS", "LossBackend", "get_backend"]

BACKENDS = {"native": "model.loss.native", "k2": "model.loss.k2_backend", "torchaudio": "model.loss.torchaudio_backend"}


def get_backend(name: str = "native") -> LossBackend:
    """Return the backend `native`, `k2` or `torchaudio`; `auto` is k2 if it imports, else native; the choice is logged.

    Raises ValueError for another name, ImportError if the backend's library is missing.
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
        raise ValueError(f"unknown loss backend {name!r}; choose one of {', '.join([*BACKENDS, 'auto'])}")
    return importlib.import_module(BACKENDS[name]).backend
