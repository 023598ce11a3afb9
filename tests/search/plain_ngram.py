"""Random ARPA files, and the probabilities of an n-gram model by the format's definition, word by word."""

from __future__ import annotations

import itertools
import math
import random

Table = dict[tuple[str, ...], tuple[float, float]]


def random_arpa(seed: int, words: list[str], order: int, *, unknown: bool = True) -> tuple[str, Table]:
    """Return the text of a pruned model over `words`, and its n-grams: log10 probabilities and back-off weights."""
    rng = random.Random(seed)
    names = ["<s>", "</s>", *words] + ["<unk>"] * unknown
    table: Table = {(w,): (rng.uniform(-3, 0), rng.choice([0.0, rng.uniform(-1, 0.5)])) for w in names}
    table[("<s>",)] = (-99.0, rng.uniform(-1, 0.5))
    level = list(table)
    for n in range(2, order + 1):
        # Pruned: a history may be missing although the model has longer ones that end in it.
        grown = [(*h, w) for h, w in itertools.product(level, names) if h[-1] != "</s>" and w != "<s>"]
        level = [g for g in grown if rng.random() < 0.6]
        table.update({g: (rng.uniform(-2, 0), rng.choice([0.0, rng.uniform(-1, 0.5)]) * (n < order)) for g in level})
    counts = [sum(len(g) == n for g in table) for n in range(1, order + 1)]
    lines = ["some comment", "\\data\\", *(f"ngram {n}={count}" for n, count in enumerate(counts, 1))]
    for n in range(1, order + 1):
        lines += ["", f"\\{n}-grams:"]
        for ngram, (log_prob, weight) in table.items():
            if len(ngram) == n:
                lines.append(f"{log_prob!r}\t{' '.join(ngram)}" + (f"\t{weight!r}" if weight else ""))
    return "\n".join([*lines, "", "\\end\\", ""]), table


def plain_log_prob(table: Table, history: list[str], word: str) -> float:
    """Return ln p(word | <s> and history), by the definition."""
    if ("<unk>",) not in table:
        table = {**table, ("<unk>",): (min(p for g, (p, _) in table.items() if len(g) == 1 and g[0] != "<s>"), 0.0)}
    known = [w if (w,) in table else "<unk>" for w in ["<s>", *history, word]]
    order = max(len(g) for g in table)
    total = 0.0
    for begin in range(max(0, len(known) - order), len(known)):
        if tuple(known[begin:]) in table:
            return (total + table[tuple(known[begin:])][0]) * math.log(10)
        total += table.get(tuple(known[begin:-1]), (0.0, 0.0))[1]
    raise AssertionError("every word is a unigram")
