"""All targets by their names."""

from __future__ import annotations

from tests.fuzz.corpora import KALDI, MANIFESTS, TABLES
from tests.fuzz.harness import Target

TARGETS: dict[str, Target] = {target.name: target for target in (TABLES, KALDI, MANIFESTS)}
