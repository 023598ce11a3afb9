"""n-gram language models with back-off, from the ARPA format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
# The format writes log10(0) as -99, some tools write -inf; a finite number can be scaled and subtracted.
LOG10_ZERO = -99.0
MAX_ORDER = 50  # backing off takes as many steps; models of words have up to 9, of characters up to 20

NGrams = dict[tuple[int, ...], tuple[float, float]]


@dataclass
class NGramLm:
    """An n-gram model as an automaton: a state is a history that the model has; state 0 is the empty history.

    Arcs are the n-grams of order 2 and above, sorted by state * num_words + word. For other words a history has its back-off
    weight plus the log-probability of its `backoff` state. Logarithms are natural.

    Attributes:
      words: the word of each id; "<unk>" is always among them. start: the state at the beginning of a sentence. order: n.
      unigrams: (W,), log-probability of each word without history. unigram_next: (W,), the state after it.
      weights: (S,), back-off weight of each state. backoff: (S,), the state of its longest proper suffix in the model.
      first: (S + 1,), the arcs of state s are first[s] .. first[s + 1] - 1.
      keys, log_probs, next: (A,), state * W + word of each arc, its log-probability, and the state after it.
    """

    words: list[str]
    unigrams: np.ndarray
    unigram_next: np.ndarray
    weights: np.ndarray
    backoff: np.ndarray
    first: np.ndarray
    keys: np.ndarray
    log_probs: np.ndarray
    next: np.ndarray
    start: int
    order: int


def read_arpa(lines: Iterable[str]) -> NGramLm:
    """Return the automaton of a text in ARPA format; a missing <unk> gets its rarest word's log-probability.

    Raises ValueError as `read_ngrams` does.
    """
    words, found = read_ngrams(lines)
    ngrams = {ngram: (log_prob * math.log(10), weight * math.log(10)) for ngram, (log_prob, weight) in found.items()}
    if UNKNOWN not in words:
        rarest = min(value for ngram, (value, _) in ngrams.items() if len(ngram) == 1 and ngram[0] != words[START])
        words[UNKNOWN] = len(words)
        ngrams[(words[UNKNOWN],)] = (rarest, 0.0)
    return _compile(words, ngrams, max(map(len, ngrams)))


def read_ngrams(lines: Iterable[str]) -> tuple[dict[str, int], NGrams]:
    """Read a model in ARPA format (man page ngram-format(5) of SRILM).

    Return the number of each word, and for each n-gram of such numbers its log-probability and back-off weight, to base 10.
    Raises ValueError with the line if the text is not a model, ends early, has an n-gram twice or one without its beginning, a
    log-probability above 0 or a weight that no number can be (above 99), or an order above `MAX_ORDER`.
    """
    words: dict[str, int] = {}
    ngrams: NGrams = {}
    for order, fields, number in _entries(lines):
        try:
            log_prob, weight = float(fields[0]), float(fields[order + 1]) if len(fields) > order + 1 else 0.0
            if len(fields) not in (order + 1, order + 2) or math.isnan(log_prob + weight):
                raise ValueError
            if order == 1:
                words.setdefault(fields[1], len(words))
            ngram = tuple(words[word] for word in fields[1 : order + 1])
        except (ValueError, IndexError, KeyError):
            raise ValueError(f"line {number}: not an n-gram of order {order} of known words: {_shown(fields)}") from None
        if log_prob > 0 or weight > -LOG10_ZERO:
            what = f"log-probability {fields[0][:20]}" if log_prob > 0 else f"back-off weight {fields[order + 1][:20]}"
            raise ValueError(f"line {number}: impossible {what} of {_shown(fields[1 : order + 1])}")
        if order > 1 and ngram[:-1] not in ngrams:
            raise ValueError(f"line {number}: the n-gram {_shown(fields[1:order])}, which this one extends, is missing")
        if ngram in ngrams:
            raise ValueError(f"line {number}: the n-gram {_shown(fields[1 : order + 1])} is there twice")
        ngrams[ngram] = (max(log_prob, LOG10_ZERO), max(weight, LOG10_ZERO))
    for word in (START, END):
        if word not in words:
            raise ValueError(f"the model has no word {word!r}")
    return words, ngrams


def _shown(fields: list[str]) -> str:
    return repr(" ".join(fields)[:80])


def _entries(lines: Iterable[str]) -> Iterable[tuple[int, list[str], int]]:
    """Yield the order, fields and line number of each n-gram; check their numbers against the file's head."""
    counts: dict[int, int] = {}
    order, seen, in_data = 0, 0, False
    for number, line in enumerate(lines, 1):
        line = line.strip(" \t\r\n")
        if not in_data:  # any text may stand before the head
            in_data = line == "\\data\\"
            continue
        if not line:
            continue
        head = re.fullmatch(r"ngram +(\d+) *= *(\d+)", line) if order == 0 else None
        if head:
            counts[int(head[1])] = int(head[2])
        elif line == f"\\{order + 1}-grams:" or line == "\\end\\":
            if seen != counts.get(order, 0):
                raise ValueError(
                    f"line {number}: the head announces {counts.get(order, 0)} n-grams of order {order}, found {seen}"
                )
            if line == "\\end\\":
                if not counts or order != max(counts):
                    raise ValueError(f"line {number}: the model ends after order {order}")
                return
            order, seen = order + 1, 0
            if order > MAX_ORDER:
                raise ValueError(f"line {number}: n-grams of order {order}; the highest that can be used is {MAX_ORDER}")
        elif order == 0:
            raise ValueError(f"line {number}: not the head of an ARPA file: {line[:80]!r}")
        else:
            seen += 1
            yield order, re.split(r"[ \t]+", line), number
    raise ValueError("the ARPA file has no \\data\\" if not in_data else "the ARPA file ends before \\end\\")


def _compile(words: dict[str, int], ngrams: NGrams, order: int) -> NGramLm:
    """Return the automaton of n-grams, given as (log-probability, back-off weight) by word ids."""
    histories = {ngram[:-1] for ngram in ngrams} | {g for g, (_, weight) in ngrams.items() if len(g) < order and weight}
    states = {history: state for state, history in enumerate(sorted(histories, key=lambda h: (len(h), h)))}

    def known(history: tuple[int, ...]) -> int:
        while history not in states:
            history = history[1:]
        return states[history]

    arcs = sorted(
        (states[g[:-1]] * len(words) + g[-1], log_prob, known(g)) for g, (log_prob, _) in ngrams.items() if len(g) > 1
    )
    keys, log_probs, following = (np.array([arc[i] for arc in arcs]) for i in range(3))
    unigrams = [(word, ngrams[(word,)][0], known((word,))) for word in range(len(words))]
    return NGramLm(
        words=list(words),
        unigrams=np.array([log_prob for _, log_prob, _ in unigrams]),
        unigram_next=np.array([state for _, _, state in unigrams]),
        weights=np.array([ngrams[h][1] if h else 0.0 for h in states]),
        backoff=np.array([known(h[1:]) for h in states]),
        first=np.searchsorted(keys, np.arange(len(states) + 1) * len(words)),
        keys=keys.astype(np.int64),
        log_probs=log_probs.astype(np.float64),
        next=following.astype(np.int64),
        start=known((words[START],)),
        order=order,
    )
