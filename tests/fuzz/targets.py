"""All targets by their names.

A new reader of foreign files becomes a `Target`: a function that writes good files, the smaller the better, and one that reads
a folder of them and asserts what must hold for whatever it accepts. `mutations.BY_ENDING` knows how to change files by their
endings. `python -m tests.fuzz NAME` runs it.
"""

from __future__ import annotations

from tests.fuzz.archives import ARCHIVES
from tests.fuzz.corpora import KALDI, MANIFESTS, TABLES
from tests.fuzz.harness import Target
from tests.fuzz.models import ARPA, CHECKPOINTS, GRAPH, HOTWORDS, LEXICON, TOKENS
from tests.fuzz.others import AUDIO, CONFIGURATIONS, HYPOTHESES, NOISE, RULES

EIGHT = (TABLES, KALDI, MANIFESTS, ARCHIVES, ARPA, LEXICON, HOTWORDS, CHECKPOINTS)
OTHERS = (TOKENS, GRAPH, AUDIO, NOISE, HYPOTHESES, RULES, CONFIGURATIONS)
TARGETS: dict[str, Target] = {target.name: target for target in EIGHT + OTHERS}
