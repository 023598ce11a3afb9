"""The graph LG against the lexicon and the ARPA file that it is made of."""

from __future__ import annotations

import gzip
import itertools
import random
import re
from pathlib import Path

from local.artifacts.arpa import estimate, write_arpa
from local.artifacts.decoding_graph import load_graph, save_graph
from local.common.errors import UserError
from local.data.tokenizer import Tokenizer, train_tokenizer
from local.prepare_lang import write_lang
from model.search import get_search
from model.search.graph import Graph, trivial_graph
from tests.search.toy import toy_batch, toy_model
from tests.test_ngram import Arpa, log_prob, read_plain

import numpy as np
import pytest

pytest.importorskip("kaldifst")
from local.prepare_graph import main  # noqa: E402

WORDS = ["TEN", "TENT", "TENTS", "NET", "SENT", "ONE", "TONE"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = random.Random(1)
    return [" ".join(generator.choices(WORDS, range(1, 8), k=generator.randint(1, 6))) for _ in range(60)]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, 20)


@pytest.fixture
def data(tmp_path: Path, texts: list[str], tokenizer: Tokenizer) -> Path:
    write_lang(tokenizer, texts, tmp_path / "lang_bpe_20")
    return tmp_path


def made(data: Path, tokenizer: Tokenizer, *options: str) -> Graph:
    main(["--data-dir", str(data), "lang.vocab_size=20", *options])
    return load_graph(data / "lang_bpe_20" / "graph" / "LG.npz", tokenizer)


def best_path(graph: Graph, tokens: list[int]) -> float:
    """Weight of the best path that accepts the tokens, by a walk over all of them."""

    def closure(states: dict[int, float]) -> dict[int, float]:
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            for label, after, weight in arcs(state):
                if label == 0 and states[state] + weight > states.get(after, -np.inf):
                    states[after] = states[state] + weight
                    waiting.append(after)
        return states

    def arcs(state: int) -> list[tuple[int, int, float]]:
        row = slice(graph.offsets[state], graph.offsets[state + 1])
        columns = (graph.labels[row], graph.next_states[row], graph.weights[row])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    states = closure({0: 0.0})
    for token in tokens:
        following: dict[int, float] = {}
        for state, score in states.items():
            for label, after, weight in arcs(state):
                if label == token:
                    following[after] = max(following.get(after, -np.inf), score + weight)
        states = closure(following)
    return max((score + float(graph.finals[state]) for state, score in states.items()), default=-np.inf)


def exact(ngrams: Arpa, words: list[str]) -> float:
    order, history, total = max(map(len, ngrams)), ("<s>",), 0.0
    for word in [*words, "</s>"]:
        context = history[-(order - 1) :] if order > 1 else ()
        total += log_prob(ngrams, context, word)
        history = (*history, word)
    return total


def backing_off_at_will(ngrams: Arpa, words: list[str]) -> float:
    """Return the best that a sentence can be worth if histories may be shortened at any time, at the price of their weights."""
    order = max(map(len, ngrams))
    histories = {gram[:-1] for gram in ngrams} | {gram for gram in ngrams if len(gram) < order}
    states = {("<s>",) if order > 1 else (): 0.0}
    for word in [*words, "</s>"]:
        following: dict[tuple[str, ...], float] = {}
        for history, score in states.items():
            while True:
                if (*history, word) in ngrams:
                    after = (*history, word)[-(order - 1) :] if order > 1 else ()
                    while after not in histories:
                        after = after[1:]
                    value = score + ngrams[(*history, word)][0]
                    following[after] = max(following.get(after, -np.inf), value)
                if not history:
                    break
                score += ngrams[history][1]
                history = history[1:]
        states = following
    return max(states.values(), default=-np.inf)


def sentences(count: int, words: list[str] = WORDS) -> list[list[str]]:
    generator = random.Random(2)
    return [generator.choices(words, k=generator.randint(0, 7)) for _ in range(count)]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_weights_are_the_models(data: Path, tokenizer: Tokenizer, order: int) -> None:
    graph = made(data, tokenizer, "--order", str(order))
    ngrams = read_plain(data / "lang_bpe_20" / "graph" / "G.arpa")
    assert max(map(len, ngrams)) == order and (order == 1 or (graph.labels == 0).any())
    gains = []
    for words in sentences(150):
        weight = best_path(graph, tokenizer.encode([" ".join(words)])[0])
        assert weight == pytest.approx(backing_off_at_will(ngrams, words), abs=3e-4)
        gains.append(weight - exact(ngrams, words))
    assert min(gains) > -3e-4
    if order < 3:
        assert max(gains) < 3e-4


def test_nothing_but_words_is_accepted(data: Path, tokenizer: Tokenizer) -> None:
    graph = made(data, tokenizer)
    generator = random.Random(3)
    spelt, rejected = {tuple(tokenizer.encode([word])[0]) for word in WORDS}, 0
    for _ in range(300):
        tokens = generator.choices(range(1, tokenizer.vocab_size), k=generator.randint(1, 4))
        rest, parts = tuple(tokens), True
        while rest and parts:  # words begin with a mark of their own, so that there is one way to take them off
            matching = [
                s for s in spelt if rest[: len(s)] == s and (len(rest) == len(s) or rest[len(s)] in {x[0] for x in spelt})
            ]
            parts = bool(matching)
            rest = rest[len(matching[0]) :] if parts else rest
        assert (best_path(graph, tokens) > -np.inf) == parts
        rejected += not parts
    assert 100 < rejected < 300


def test_a_lexicon_of_ones_own(data: Path, tokenizer: Tokenizer) -> None:
    """Two ways to say TEN, a word that sounds like it and one that no text has, a word left out."""
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    letters = [token for token in tokenizer.tokens[3:] if token.isalpha()]
    (a, b, c), lexicon = letters[:3], data / "my_lexicon.txt"
    lexicon.write_text(f"TEN {a} {b}\nTEN {a}\nNET {a} {b}\nTONE {a} {b} {c}\nNEW {c}\nTENT\nONE\nSENT {b}\n")
    graph = made(data, tokenizer, "--lexicon", str(lexicon), "--order", "2")
    ngrams = read_plain(data / "lang_bpe_20" / "graph" / "G.arpa")
    assert best_path(graph, tokenizer.encode(["TENTS"])[0]) == -np.inf
    spellings = {"TEN": [[a, b], [a]], "NET": [[a, b]], "TONE": [[a, b, c]], "NEW": [[c]], "SENT": [[b]]}
    by_tokens: dict[tuple[str, ...], list[list[str]]] = {(): [[]]}
    for _ in range(3):  # all sentences of up to three words, by what they sound like
        longer = [
            ((*tokens, *spelling), [*words, word])
            for tokens, every in list(by_tokens.items())
            for words in every
            for word, spelt in spellings.items()
            for spelling in spelt
        ]
        for tokens, words in longer:
            if words not in by_tokens.setdefault(tokens, []):
                by_tokens[tokens].append(words)
    compared = 0
    for tokens, every in by_tokens.items():
        if len(tokens) <= 3:  # of more words these cannot be
            expected = max(exact(ngrams, words) for words in every)
            assert best_path(graph, [ids[token] for token in tokens]) == pytest.approx(expected, abs=3e-4)
            compared += len(every) > 1
    assert compared > 5


def test_an_arpa_file(data: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    """Its words, with an unknown one and one that cannot be spelt; gzipped."""
    arpa = data / "lm.arpa"
    spoken = [["TEN", "ÖL", "NET"], ["NET", "TEN", "TEN"], ["<unk>", "TEN"], ["TEN", "NET", "ONE"]]
    write_arpa(estimate(spoken, 3), arpa)
    ngrams = read_plain(arpa)
    packed = data / "lm.arpa.gz"
    packed.write_bytes(gzip.compress(arpa.read_bytes()))
    graph = made(data, tokenizer, "--arpa", str(packed))
    assert "'ÖL'" in capsys.readouterr().err
    for words in sentences(60, ["TEN", "NET", "ONE"]):
        weight = best_path(graph, tokenizer.encode([" ".join(words)])[0])
        assert weight == pytest.approx(backing_off_at_will(ngrams, words), abs=3e-4)
    assert best_path(graph, tokenizer.encode(["TENT"])[0]) == -np.inf
    assert (data / "lang_bpe_20" / "graph" / "lexicon.txt").read_text().splitlines()[-1].split()[0] == "TEN"


def test_the_text_of_language_models(data: Path, tokenizer: Tokenizer) -> None:
    """Its words, in the form of the transcripts, are those of the graph; the transcripts' own words are not."""
    text = data / "book.txt"
    text.write_text(f"{WORDS[0].lower()} {WORDS[1].lower()}\n\n{WORDS[1]}\n")
    graph = made(data, tokenizer, f"lm.text={text}", "--order", "2")
    lexicon = (data / "lang_bpe_20" / "graph" / "lexicon.txt").read_text()
    assert {line.split()[0] for line in lexicon.splitlines()} == {WORDS[0], WORDS[1]}
    assert best_path(graph, tokenizer.encode([WORDS[1]])[0]) > -np.inf == best_path(graph, tokenizer.encode([WORDS[2]])[0])


def test_any_line_ends_and_names_of_words(data: Path, tokenizer: Tokenizer) -> None:
    """CRLF; words that kaldilm takes for its own symbols; words in another form, some with the same normal form."""
    spoken = [["ten", "#0", "ＮＥＴ"], ["<eps>", "Ten", "ten"], ["0", "ONE", "ＮＥＴ", "one"], ["<blk>", "one"]]
    arpa = data / "lm.arpa"
    write_arpa(estimate(spoken, 3), arpa)
    ngrams = read_plain(arpa)
    arpa.write_bytes(arpa.read_bytes().replace(b"\n", b"\r\n"))
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    a, b = [token for token in tokenizer.tokens[3:] if token.isalpha()][:2]
    lexicon = data / "my_lexicon.txt"
    lexicon.write_text(f"TEN\n#0 {b} {a}\n<eps> {a}\r\nnet\none\n")
    graph = made(data, tokenizer, "--arpa", str(arpa), "--lexicon", str(lexicon))
    heard = {text: tokenizer.encode([text])[0] for text in ("TEN", "NET", "ONE")} | {"#0": [ids[b], ids[a]], "<eps>": [ids[a]]}
    # All words with the form TEN, as the model has no TEN itself; of those with the form ONE the one that the lexicon names.
    words = {"TEN": ["ten", "Ten"], "NET": ["ＮＥＴ"], "ONE": ["one"], "#0": ["#0"], "<eps>": ["<eps>"]}
    for sentence in sentences(80, list(heard)):
        weight = best_path(graph, [i for word in sentence for i in heard[word]])
        expected = max(backing_off_at_will(ngrams, list(said)) for said in itertools.product(*(words[w] for w in sentence)))
        assert weight == pytest.approx(expected, abs=3e-4)


def test_words_of_the_lexicon_have_the_form_of_the_transcripts(
    data: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an n-gram model of one's own: words in small letters, one of which the rules make two."""
    (data / "my_lexicon.txt").write_text("ten\nＮｅｔ\nten-net\nseen\n")
    (data / "rules.tsv").write_text("-\t \n")
    graph = made(data, tokenizer, f"lang.rules={data / 'rules.tsv'}", "--lexicon", str(data / "my_lexicon.txt"))
    assert " 1 words have no probability" in capsys.readouterr().err.replace("warning:", "")  # ten-net
    assert best_path(graph, tokenizer.encode(["NET TEN"])[0]) > -np.inf == best_path(graph, tokenizer.encode(["ONE"])[0])


def test_unusable_input(data: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    good = "\\data\\\nngram 1=3\n\n\\1-grams:\n-99\t<s>\n-0.3\t</s>\n-0.3\tTEN\n\n\\end\\\n"
    cases = {
        "a.arpa": ("nonsense\n", ["--arpa"], r"a\.arpa: "),
        "b.arpa": (good.replace("-0.3\tTEN", "x\tTEN"), ["--arpa"], "line 7"),
        "c.arpa": (good.replace("<s>", "<S>"), ["--arpa"], "<s>"),
        "d.arpa": (good.replace("TEN", "ÖL"), ["--arpa"], " 1 .*'ÖL'"),
        "e.arpa.gz": (good, ["--arpa"], r"e\.arpa\.gz: "),
        "f.txt": ("TEN T E N Q\n", ["--lexicon"], "'T'|'Q'"),
        "g.txt": ("TEN\nÖL\n", ["--lexicon"], "g.txt:2.*Ö"),
        "h.txt": ("<s>\n", ["--lexicon"], "h.txt:1.*'<s>'"),
        "j.txt": ("TEN\n\n\u2581\n", ["--lexicon"], "j.txt:3"),
        "k.txt": ("TEN\n\u200b\n", ["--lexicon"], "k.txt:2"),
        "l.arpa": (good.replace("ngram 1=3", "ngram 1=4").replace("TEN", "TEN\n-0.3\tTEN"), ["--arpa"], "line 8.*twice"),
        "m.arpa": (good.replace("-0.3\tTEN", "\udcff\tTEN"), ["--arpa"], "m.arpa:7"),
        "n.arpa": (good.replace("ngram 1=3", "ngram 1=2").replace("-0.3\tTEN\n", ""), ["--arpa"], "no word"),
        "o.arpa": (good.replace("ngram 1=3", "ngram 1=4"), ["--arpa"], "line 9.* 4 "),
        "i.txt": ("", ["--lexicon"], r"i\.txt"),
        "q.txt": (f"TEN\nNET{f' {tokenizer.tokens[5]}' * 501}\n", ["--lexicon"], "q.txt:2: .{,150}500"),
        "r.txt": ("TENT" * 10_000 + "\n", ["--lexicon"], "r.txt:1: .{,150}500"),
        "s.arpa": (good.replace("TEN", "TEN" * 10_000), ["--arpa"], "s.arpa: .* 1 "),
    }
    for name, (content, option, message) in cases.items():
        (data / name).write_text(content, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(SystemExit):
            main(["--data-dir", str(data), "lang.vocab_size=20", *option, str(data / name)])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and name in error
        assert re.search(message, error), error
        assert len(error) < 700, error
    missing = [["--arpa", str(data / "none.arpa")], ["--lexicon", str(data / "none.txt")]]
    for option in (*missing, ["--order", "0"], ["--order", "1000000000"]):
        with pytest.raises(SystemExit):
            main(["--data-dir", str(data), "lang.vocab_size=20", *option])
        assert capsys.readouterr().err.startswith("error: ")
    assert not (data / "lang_bpe_20" / "graph" / "LG.npz").exists()


@pytest.mark.parametrize(
    "orders",
    [
        ["-1 <s>\n-1 </s>\n-1 TEN\n-1 NET\n"],
        ["-inf <s> -99\n-inf </s>\n-inf TEN\n-0 ten\n"],
        ["-1 <s> 0\n-1 </s> -5\n-1 TEN 0\n-1 <eps>\n", "-1 TEN <s>\n-1 </s> TEN\n-1 TEN TEN -0.3\n"],
        ["-1 #0 99\n-1 TEN\n-1 </s>\n-1 <s> -1\n", ""],
    ],
    ids=["words", "zeros", "marks within", "empty order"],
)
def test_models_of_two_words_give_graphs(data: Path, tokenizer: Tokenizer, orders: list[str]) -> None:
    head = "".join(f"ngram {n}={grams.count(chr(10))}\n" for n, grams in enumerate(orders, 1))
    body = "".join(f"\n\\{n}-grams:\n{grams}" for n, grams in enumerate(orders, 1))
    (data / "a.arpa").write_text(f"\\data\\\n{head}{body}\n\\end\\\n")
    graph = made(data, tokenizer, "--arpa", str(data / "a.arpa"))
    assert len(graph.finals) > 1 and not np.isnan(graph.weights).any()
    assert np.isfinite(best_path(graph, tokenizer.encode(["TEN"])[0]))


def test_a_search_finds_words_only(data: Path, tokenizer: Tokenizer) -> None:
    graph, model = made(data, tokenizer), toy_model(0, tokenizer.vocab_size)
    out, lens = toy_batch(0, num_utts=8, max_frames=40)
    wide = {"beam": 20.0, "max_contexts": 8, "max_states": 64}
    hypotheses = get_search("fast_beam_search")(model, out, lens, graph=graph, scale=0.3, **wide)
    heard = [tokenizer.decode(h.tokens) for h in hypotheses]
    assert sum(len(text.split()) for text in heard) > 10
    assert {word for text in heard for word in text.split()} <= set(WORDS)


def test_files(data: Path, tokenizer: Tokenizer) -> None:
    graph, path = trivial_graph(tokenizer.vocab_size), data / "g.npz"
    save_graph(graph, tokenizer, path)
    again = load_graph(path, tokenizer)
    assert all((getattr(graph, name) == getattr(again, name)).all() for name in ("offsets", "labels", "weights", "finals"))
    with pytest.raises(UserError, match="g.npz: "):
        load_graph(path, train_tokenizer(["A B"], 10))
    with pytest.raises(UserError, match="none.npz .*local/prepare_graph.py"):
        load_graph(data / "none.npz", tokenizer)
    damaged = path.read_bytes()
    for content in (b"", b"nonsense", damaged[: len(damaged) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="g.npz: "):
            load_graph(path, tokenizer)
    np.savez(path, offsets=np.array([0, 1]))
    with pytest.raises(UserError, match="g.npz: "):
        load_graph(path, tokenizer)
