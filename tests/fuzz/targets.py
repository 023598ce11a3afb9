"""All targets by their names."""

from __future__ import annotations

from tests.fuzz.archives import ARCHIVES
from tests.fuzz.corpora import KALDI, MANIFESTS, TABLES
from tests.fuzz.harness import Target
from tests.fuzz.models import ARPA, CHECKPOINTS, GRAPH, HOTWORDS, LEXICON, TOKENS
from tests.fuzz.others import AUDIO, CONFIGURATIONS, HYPOTHESES, NOISE, RULES

EIGHT = (TABLES, KALDI, MANIFESTS, ARCHIVES, ARPA, LEXICON, HOTWORDS, CHECKPOINTS)
OTHERS = (TOKENS, GRAPH, AUDIO, NOISE, HYPOTHESES, RULES, CONFIGURATIONS)
TARGETS: dict[str, Target] = {target.name: target for target in EIGHT + OTHERS}
