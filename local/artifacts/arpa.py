"""N-gram language models: read in ARPA format, or estimated with interpolated Kneser-Ney smoothing and written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from local.common.atomic import atomic_write
from local.common.errors import UserError, reason
from local.common.text_files import iterate_lines
from local.data.tokenizer import SPECIAL, UNK_ID, Tokenizer
from model.search.scorers import MAX_ORDER

BOS, EOS = "<s>", "</s>"
DEFAULT_DISCOUNT = 0.5  # used if no n-gram was seen once, or none twice
LOG_ZERO = -99.0  # ARPA's log10 probability of <s>, which never follows a history
Gram = tuple[str, ...]
Model = TypeVar("Model")


@dataclass
class Ngram:
    """A back-off model: p(w | h) if the n-gram h w is listed, else backoff(h) * p(w | h without its oldest word).

    For n = 1, 2, ...: `probs` has the probability of each n-gram's last word, given the words before it, and `backoffs` the
    factor of each n-gram as a history; a missing one counts as 1.
    """

    probs: list[dict[Gram, float]]
    backoffs: list[dict[Gram, float]]


def estimate(sentences: Iterable[Sequence[str]], order: int, vocabulary: Iterable[str] = ()) -> Ngram:
    """Estimate with interpolated Kneser-Ney smoothing (Chen and Goodman, 1999, section 3).

    There is one discount D = n1 / (n1 + 2 n2) per order, where n1 and n2 n-grams have the counts 1 and 2. Let c(h w) be the
    counts of the extensions of a history h, t(h) the number of those above 0 and s(h) their sum. Then

        p(w | h) = max(c(h w) - D, 0) / s(h) + D t(h) / s(h) * p(w | h without its oldest word)

    and p(w | h without its oldest word) of a single word is the uniform distribution. At the highest order, and if h w begins
    a sentence, c is the number of occurrences; else it is the number of different words seen before h w. An interpolated
    model is a back-off model, with D t(h) / s(h) as the factor of h. Words of `vocabulary` get a probability even if no
    sentence has them. Raises `UserError` for an order below 1 or above `MAX_ORDER`, for no sentence, or the word <s> or </s>.
    """
    if not 1 <= order <= MAX_ORDER:
        raise UserError(f"--order {order}: must be from 1 to {MAX_ORDER}")
    counts = _adjusted(_count(sentences, order))
    words = sorted({gram[0] for gram in counts[0]} | set(vocabulary) - {BOS})
    lower: dict[Gram, float] = {(): 1 / len(words)}
    probs: list[dict[Gram, float]] = []
    backoffs: list[dict[Gram, float]] = []
    for grams in counts:
        discount, sums = _discount(grams), Counter[Gram]()
        for gram, count in grams.items():
            sums[gram[:-1]] += count
        types = Counter(gram[:-1] for gram in grams)
        backoff = {history: discount * types[history] / total for history, total in sums.items()}
        # Every word is listed, even if no sentence has it.
        lower = {
            gram: (grams.get(gram, discount) - discount) / sums[gram[:-1]] + backoff[gram[:-1]] * lower[gram[1:]]
            for gram in (grams if probs else [(word,) for word in words])
        }
        probs.append(lower)
        backoffs.append(backoff)
    return Ngram(probs, [*backoffs[1:], {}])  # the first has the empty history alone


def _count(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """Count each n-gram, for n = 1 .. order; sentences begin with one <s> and end with </s>."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in filter(None, sentences):
        if BOS in sentence or EOS in sentence:
            raise UserError(f"a sentence has the word {BOS} or {EOS}: {' '.join(sentence)[:80]}")
        words = (BOS, *sentence, EOS)
        for n, grams in enumerate(counts, 1):
            grams.update(words[i : i + n] for i in range(len(words) - n + 1))
    if not counts[0]:
        raise UserError("no text to estimate an n-gram model from")
    return counts


def _adjusted(counts: list[Counter[Gram]]) -> list[dict[Gram, int]]:
    """Return the counts of Kneser-Ney; <s> is not among the single words because it is never predicted."""
    result: list[dict[Gram, int]] = []
    for grams, longer in pairwise(counts):
        beginnings = {gram: count for gram, count in grams.items() if gram[0] == BOS}
        result.append({**Counter(gram[1:] for gram in longer), **beginnings})
    result.append(dict(counts[-1]))
    result[0].pop((BOS,), None)
    return result


def _discount(grams: dict[Gram, int]) -> float:
    """Return D, between 0 and 1 but neither, so that both the n-grams and the shorter histories keep some probability."""
    once, twice = (sum(count == n for count in grams.values()) for n in (1, 2))
    return once / (once + 2 * twice) if once and twice else DEFAULT_DISCOUNT


def write_arpa(model: Ngram, path: Path) -> None:
    """Write `model` in ARPA format (man page ngram-format(5) of SRILM), with n-grams sorted by their words."""
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8") as f:
        levels = [dict(level) for level in model.probs]
        levels[0][(BOS,)] = 0.0
        f.write("\\data\\\n" + "".join(f"ngram {n}={len(level)}\n" for n, level in enumerate(levels, 1)))
        for n, (level, backoffs) in enumerate(zip(levels, model.backoffs, strict=True), 1):
            f.write(f"\n\\{n}-grams:\n")
            for gram in sorted(level):
                log_prob = math.log10(level[gram]) if level[gram] else LOG_ZERO
                factor = f"\t{math.log10(backoffs[gram]):.7f}" if gram in backoffs else ""
                f.write(f"{log_prob:.7f}\t{' '.join(gram)}{factor}\n")
        f.write("\n\\end\\\n")


def read_model(path: Path, read: Callable[[Iterable[str]], Model]) -> Model:
    """Return what `read` (`read_arpa` or `read_ngrams`) makes of an ARPA file, plain or gzipped, of any line ends.

    Raises `UserError` naming the file and the line if it is not text in UTF-8 or not a model.
    """
    try:
        return read(iterate_lines(path))
    except ValueError as e:
        raise UserError(f"{path}: not an n-gram model in ARPA format: {reason(e)}") from None


def read_sentences(path: Path, clean: Callable[[str], str] = str.strip, words: bool = False) -> list[str]:
    """Return the lines of a text file, changed by `clean`, that are not empty. words: for a model of words.

    Raises `UserError` if all are empty, and naming the line if it is not UTF-8, or has the mark <s> or </s> as one of `words`.
    """
    texts = []
    for number, line in enumerate(iterate_lines(path), 1):
        text = clean(line)
        if words and (marks := {BOS, EOS} & set(text.split())):
            raise UserError(f"{path}:{number}: {min(marks)} cannot be a word; it marks where sentences begin or end")
        if text:
            texts.append(text)
    if not texts:
        raise UserError(f"{path}: no text in it")
    return texts


def estimate_tokens(texts: Sequence[str], tokenizer: Tokenizer, order: int) -> Ngram:
    """Estimate a model of tokens. All that can be recognised get a probability, even if no text has them."""
    # Older BPE models may have a token called <s>; scorers take it for <unk> too.
    names = [tokenizer.tokens[UNK_ID] if token in (BOS, EOS) else token for token in tokenizer.tokens]
    sentences = [[names[i] for i in ids] for ids in tokenizer.encode(texts)]
    return estimate(sentences, order, [token for token in names if token not in SPECIAL])


def write_bigram(transcripts: Path, tokenizer: Tokenizer, path: Path) -> None:
    """Write the token bigram of the training transcripts, an estimate of the transducer's internal language model."""
    write_arpa(estimate_tokens(read_sentences(transcripts), tokenizer, 2), path)
