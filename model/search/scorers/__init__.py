"""Scorers: external token scores (language models, hotwords) that beam search and rescoring add.

A scorer depends on the tokens of a hypothesis alone, never on frames or blanks. Searches take (scorer, scale) pairs and add
scale * score. This gives:
- shallow fusion (Gulcehre et al. 2015, arXiv 1503.03535): `LstmLmScorer` or `NGramScorer` with a scale above 0;
- LODR (Zheng et al. 2022, arXiv 2203.16776): `LstmLmScorer` above 0 and the `NGramScorer` of a bigram of the transducer's
  training text below 0;
- internal LM subtraction (Variani et al. 2020, arXiv 2003.07705; Meng et al. 2020, arXiv 2011.01991):
  `InternalLmScorer` below 0, beside a language model above 0;
- contextual biasing: `HotwordScorer` with the scale 1, because its boosts have their own sizes.
"""

from model.search.scorers.arpa import MAX_ORDER, NGramLm, NGrams, read_arpa, read_ngrams
from model.search.scorers.base import Fusion, Scorer, State, totals
from model.search.scorers.hotwords import HotwordScorer
from model.search.scorers.internal_lm import InternalLmScorer
from model.search.scorers.lstm_lm import LstmLmScorer
from model.search.scorers.ngram import NGramScorer

__all__ = [
    "MAX_ORDER",
    "Fusion",
    "HotwordScorer",
    "InternalLmScorer",
    "LstmLmScorer",
    "NGramLm",
    "NGramScorer",
    "NGrams",
    "Scorer",
    "State",
    "read_arpa",
    "read_ngrams",
    "totals",
]
