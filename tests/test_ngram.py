"""The n-gram estimator against the formula of its smoothing, and its files read by a plain reader."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

from local.artifacts.arpa import estimate, read_sentences, write_arpa
from local.common.errors import UserError
from local.data.tokenizer import Tokenizer, train_tokenizer
from local.ngram import main

import pytest

TEXTS = ["A B A", "A B C", "B", "C A B A B", "A B A", "D A C C", "B A B"]
Arpa = dict[tuple[str, ...], tuple[float, float]]


def read_plain(path: Path) -> Arpa:
    """Return the log-probability and the back-off weight of each n-gram, as natural logarithms."""
    ngrams: Arpa = {}
    order = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("\\") and line.endswith("-grams:"):
            order = int(line[1])
        elif order and line and not line.startswith("\\"):
            first, *fields = line.split()
            weight = float(fields[order]) if len(fields) > order else 0.0
            ngrams[tuple(fields[:order])] = (float(first) * math.log(10), weight * math.log(10))
    return ngrams


def log_prob(ngrams: Arpa, history: tuple[str, ...], word: str) -> float:
    """Katz's back-off, for a history not longer than the model's."""
    if (*history, word) in ngrams:
        return ngrams[(*history, word)][0]
    return ngrams.get(history, (0.0, 0.0))[1] + log_prob(ngrams, history[1:], word)


def written(tmp_path: Path, texts: list[str], order: int, vocabulary: list[str] | None = None) -> Arpa:
    write_arpa(estimate((text.split() for text in texts), order, vocabulary or []), tmp_path / "lm.arpa")
    return read_plain(tmp_path / "lm.arpa")


class Formula:
    """Interpolated Kneser-Ney smoothing straight from its definition; every count is a walk through the text."""

    def __init__(self, texts: list[str], order: int, words: set[str]) -> None:
        self.sentences, self.order, self.words = [["<s>", *t.split(), "</s>"] for t in texts], order, words

    def places(self, gram: tuple[str, ...]) -> list[str | None]:
        """Return the word before each occurrence of the n-gram, None at the start of a sentence."""
        n = len(gram)
        return [s[i - 1] if i else None for s in self.sentences for i in range(len(s) - n + 1) if tuple(s[i : i + n]) == gram]

    def count(self, gram: tuple[str, ...]) -> int:
        places = self.places(gram)
        return len(places) if len(gram) == self.order or gram[0] == "<s>" else len(set(places))

    def discount(self, n: int) -> float:
        grams = {tuple(s[i : i + n]) for s in self.sentences for i in range(len(s) - n + 1)} - {("<s>",)}
        counts = [self.count(gram) for gram in grams]
        once, twice = counts.count(1), counts.count(2)
        return once / (once + 2 * twice) if once and twice else 0.5

    def prob(self, history: tuple[str, ...], word: str) -> float:
        lower = self.prob(history[1:], word) if history else 1 / len(self.words)
        counts = [self.count((*history, w)) for w in sorted(self.words)]
        if not sum(counts):
            return lower
        discount, seen = self.discount(len(history) + 1), sum(count > 0 for count in counts)
        return (max(self.count((*history, word)) - discount, 0) + discount * seen * lower) / sum(counts)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_follow_the_formula(tmp_path: Path, order: int) -> None:
    words = {"A", "B", "C", "D", "E", "</s>"}  # no text has E
    ngrams, formula = written(tmp_path, TEXTS, order, ["E"]), Formula(TEXTS, order, words)
    histories = [h for n in range(order) for h in itertools.product(["<s>", *sorted(words - {"</s>"})], repeat=n)]
    for history in histories:
        if "<s>" in history[1:]:
            continue
        for word in words:
            assert math.exp(log_prob(ngrams, history, word)) == pytest.approx(formula.prob(history, word), rel=1e-5)


def test_probabilities_sum_to_one_and_exceed_those_of_backing_off(tmp_path: Path) -> None:
    generator = random.Random(0)
    names = [f"W{i}" for i in range(12)]
    texts = [" ".join(generator.choices(names, range(1, 13), k=generator.randint(1, 9))) for _ in range(200)]
    ngrams = written(tmp_path, texts, 3, ["NEVER"])
    assert log_prob(ngrams, (), "NEVER") > -9
    words = [gram[0] for gram in ngrams if len(gram) == 1 and gram != ("<s>",)]
    assert len(words) == 14
    histories = [(), ("<s>",), *itertools.product(["<s>", *names], names)]
    assert any(history not in ngrams for history in histories)
    for history in histories:
        assert sum(math.exp(log_prob(ngrams, history, word)) for word in words) == pytest.approx(1, abs=1e-5)
    for gram, (value, _) in ngrams.items():
        if len(gram) > 1:
            assert value >= ngrams[gram[:-1]][1] + log_prob(ngrams, gram[1:-1], gram[-1]) - 1e-6
            assert gram[:-1] in ngrams


def test_kaldilm_reads_it(tmp_path: Path) -> None:
    kaldilm = pytest.importorskip("kaldilm")
    ngrams = written(tmp_path, TEXTS, 3)
    lines = kaldilm.arpa2fst(str(tmp_path / "lm.arpa"), disambig_symbol="#0").split("\n")
    to_end = sum(gram[-1] == "</s>" for gram in ngrams)
    back_off = {gram[:-1] for gram in ngrams if len(gram) > 1}
    arcs = [line.split() for line in lines if len(line.split()) > 2]
    assert len(arcs) == len(ngrams) - to_end - 1 + len(back_off)


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer: Tokenizer = train_tokenizer(TEXTS * 3, 12)
    (tmp_path / "transcript.txt").write_text("\n\n".join(TEXTS) + "\n")
    (tmp_path / "bpe.model").write_bytes(tokenizer.model)
    out = tmp_path / "lm" / "token.arpa"
    main(["--text", str(tmp_path / "transcript.txt"), "--out", str(out)])
    assert f"from {len(TEXTS)} texts" in capsys.readouterr().out
    ngrams = read_plain(out)
    assert {gram[0] for gram in ngrams if len(gram) == 1} == {*tokenizer.tokens[2:], "<s>", "</s>"}
    first = tokenizer.tokens[tokenizer.encode(["A B A"])[0][0]]
    assert ngrams[("<s>", first)][0] > ngrams[(first,)][0]
    main(["--text", str(tmp_path / "transcript.txt"), "--unit", "word", "--order", "3", "--out", str(out)])
    assert ("A", "B", "A") in read_plain(out)


def test_text_gets_its_normal_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words are those of the transcripts; a text may have the marks of language models if its unit is the token."""
    (tmp_path / "text").write_text("a\u00adb, Ｃ\n\u200b\n<s> c\n", encoding="utf-8")
    (tmp_path / "rules.tsv").write_text(",\t\n")
    argv = ["--text", str(tmp_path / "text"), "--out", str(tmp_path / "lm.arpa"), f"lang.rules={tmp_path / 'rules.tsv'}"]
    main([*argv, "--unit", "word"])
    assert {gram[0] for gram in read_plain(tmp_path / "lm.arpa") if len(gram) == 1} == {"AB", "C", "<S>", "<s>", "</s>"}
    (tmp_path / "bpe.model").write_bytes(train_tokenizer(["AB C", "<s>S <s> <s>"] * 9, 30).model)
    main([*argv, "lang.normalise=none"])
    assert "warning: 2 texts" in capsys.readouterr().err  # small letters
    assert ("<s>", "</s>") not in read_plain(tmp_path / "lm.arpa")


@pytest.mark.parametrize("text", ["", " \n\n", "A <s> B\n", "B </s>\n"])
def test_unusable_text(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text(text)
    with pytest.raises(SystemExit):
        main(["--text", str(tmp_path / "text"), "--unit", "word", "--out", str(tmp_path / "lm.arpa"), "lang.normalise=none"])
    error = capsys.readouterr().err
    assert "error: " in error and ("s>" not in text or "text:1: " in error)
    assert not (tmp_path / "lm.arpa").exists()


def test_other_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text"):
        estimate([[]], 2)
    with pytest.raises(UserError, match="order.* 0"):
        estimate([["A"]], 0)
    with pytest.raises(UserError, match="none.txt"):
        read_sentences(tmp_path / "none.txt")
    (tmp_path / "latin").write_bytes("Ä\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin"):
        read_sentences(tmp_path / "latin")
