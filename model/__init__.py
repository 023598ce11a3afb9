"""Tensors only: no files, no YAML, no import of `local`.

Importing this package sets how long a waiting OpenMP thread spins before it sleeps. GNU OpenMP's own choice makes the
searches several times slower as soon as anything else runs on the machine; sleeping at once costs half the speed on a
quiet one. OpenMP reads the variable once, when torch loads it: import `model` or `local` before torch, or set it yourself.
"""

import os as _os

_os.environ.setdefault("GOMP_SPINCOUNT", "10000")
