"""Targets: checkpoints, tokens, n-gram models, lexicons and hotwords."""

from __future__ import annotations

import functools
import gzip
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import local.artifacts.averaging
import local.artifacts.checkpoint
from local.artifacts.arpa import estimate_tokens, read_model, write_arpa
from local.artifacts.averaging import make_average
from local.artifacts.checkpoint import checkpoints, load_averaged, newest_readable, provenance, save_file
from local.artifacts.decoding_graph import load_graph, save_graph
from local.artifacts.language_model import load_lm
from local.config import load_config
from local.config.schema import AverageConfig
from local.data.tokenizer import Tokenizer
from local.decoding.resources import load_ngram, read_hotwords
from local.prepare_graph import compose, lexicon_fst, of_words, read_lexicon, spell
from model.search.graph import trivial_graph
from model.search.scorers import HotwordScorer, read_ngrams
from tests.fuzz.harness import Target
from tests.toy_experiment import SMALL, TEXTS, save_toy_lm, toy_tokenizer, toy_weights

import kaldifst
import torch


@functools.cache
def tokenizer() -> Tokenizer:
    return toy_tokenizer()


def normal(text: str) -> str:
    return " ".join(text.upper().split())


# Checkpoints


def make_checkpoints(root: Path) -> None:
    cfg = load_config(None, SMALL)
    averaged, training, lm = (root / name for name in ("averaged", "training", "lm"))
    for folder in (averaged, training / "checkpoints", lm):
        folder.mkdir(parents=True)
    weights, origin = toy_weights(cfg, tokenizer(), 0), provenance(cfg, tokenizer())
    save_file({"model": weights, **origin}, averaged / "averaged.pt")
    for epoch in (1, 2):
        average = {"state": {k: v.double() for k, v in weights.items()}, "batches": 10 * epoch, "period": 10}
        parts = {key: {} for key in ("optimizer", "schedule", "scaler", "rng")}
        progress = {"step": 10 * epoch, "epoch": epoch}
        content = {"model": weights, "average": average, **parts, "progress": progress, **origin}
        save_file(content, training / "checkpoints" / f"epoch-{epoch}.pt")
    save_toy_lm(cfg, tokenizer(), lm)
    for path in lm.glob("*"):
        if path.suffix != ".pt":
            path.unlink()


@functools.cache
def average_of_one() -> AverageConfig:
    return replace(load_config(None, SMALL).average, num=1)


def read_checkpoint(folder: Path) -> None:
    if (folder / "averaged.pt").exists():
        model, _, tokens = load_averaged(folder / "averaged.pt")
        assert_finite(model)
        tokens.decode([3, 4])
    elif (folder / "lm.pt").exists():
        lm, tokens = load_lm(folder / "lm.pt")
        assert_finite(lm)
    else:
        found = newest_readable(folder / "checkpoints")
        assert found is None or found[0] in [path for _, path in checkpoints(folder / "checkpoints", "epoch")]
        content = make_average(folder / "checkpoints", average_of_one())
        assert all(bool(torch.isfinite(value).all()) for value in content["model"].values())


def assert_finite(model: torch.nn.Module) -> None:
    assert all(p.device.type == "cpu" and bool(torch.isfinite(p).all()) for p in model.parameters())


def configurations_once() -> None:
    """Remember the configurations of checkpoints: resolving one takes 0.1 s, and most mutations leave it as it is."""

    def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[bytes, Any] = {}

        def remembered(*arguments: Any, **named: Any) -> Any:
            try:
                key = pickle.dumps((arguments, named))
            except Exception:  # a mutation that cannot be pickled
                return function(*arguments, **named)
            if key not in known:
                known[key] = function(*arguments, **named)
            return known[key]

        return remembered

    for module in (local.artifacts.checkpoint, local.artifacts.averaging):
        module.config_from_dict = remembering(module.config_from_dict)  # type: ignore[attr-defined]


# Tokens


def make_tokens(root: Path) -> None:
    (root / "tokens").mkdir()
    (root / "tokens" / "bpe.model").write_bytes(tokenizer().model)


def read_tokens(folder: Path) -> None:
    tokens = Tokenizer.from_file(folder / "bpe.model")
    for ids in tokens.encode(["ONE TWO", "", "a\u2581b"]):
        assert all(0 <= i < tokens.vocab_size for i in ids)
        tokens.decode(ids)
    tokens.lost_characters("ONE Ü")


# N-gram models


def make_arpa(root: Path) -> None:
    for name, order in (("unigram", 1), ("bigram", 2), ("trigram", 3)):
        (root / name).mkdir()
        write_arpa(estimate_tokens(TEXTS, tokenizer(), order), root / name / "lm.arpa")
    (root / "packed").mkdir()
    write_arpa(estimate_tokens(TEXTS, tokenizer(), 2), root / "packed" / "plain.arpa")
    (root / "packed" / "lm.arpa.gz").write_bytes(gzip.compress((root / "packed" / "plain.arpa").read_bytes()))
    (root / "packed" / "plain.arpa").unlink()


class Tokens:
    """What `load_ngram` needs of `Resources`."""

    device = torch.device("cpu")

    @property
    def tokenizer(self) -> Tokenizer:
        return tokenizer()


def read_arpa_file(folder: Path) -> None:
    """Read it as a scorer of tokens and as a model of words; check that all scores are finite log-probabilities."""
    path = next(folder.glob("lm.*"))
    scorer = load_ngram(Tokens(), path)  # type: ignore[arg-type]
    state = scorer.initial(2)
    for token in (4, 5, 2, 3):
        scores = scorer.score(state)
        assert bool(torch.isfinite(scores).all()), "a score that is not finite"
        state = scorer.advance(state, torch.tensor([token, 3]))
    assert bool(torch.isfinite(scorer.final(state)).all())
    words, ngrams = read_model(path, read_ngrams)
    assert set(range(len(words))) == {number for ngram in ngrams for number in ngram}
    assert all(math.isfinite(p) and math.isfinite(w) and p <= 0 for p, w in ngrams.values())


# Lexicons

WORDS = ("ONE", "TWO", "THREE", "TOO")


def make_lexicon(root: Path) -> None:
    (root / "lexicon").mkdir()
    spelt = spell(WORDS[:3], tokenizer(), normal)
    lines = [f"{word} {' '.join(tokenizer().tokens[i] for i in ids)}\n" for word, ids in spelt]
    lines.append(f"TOO {lines[1].split(maxsplit=1)[1]}")
    lines.append("THREE\n")
    (root / "lexicon" / "lexicon.txt").write_text("".join(lines), encoding="utf-8")


def read_lexicon_file(folder: Path) -> None:
    """Read a lexicon and make the graph of any sequence of them."""
    spellings = read_lexicon(folder / "lexicon.txt", tokenizer(), normal)
    assert all(ids and all(2 <= i < tokenizer().vocab_size for i in ids) for _, ids in spellings)
    lexicon = of_words(spellings, WORDS, normal)
    ids = {word: i for i, word in enumerate(dict.fromkeys(word for word, _ in lexicon), 1)}
    if not ids:
        return
    fst = lexicon_fst(lexicon, ids, tokenizer().vocab_size)
    loop = kaldifst.compile("".join(f"0 0 {i} 0\n" for i in ids.values()) + "0\n")
    graph = compose(fst, loop, tokenizer().vocab_size)
    assert len(graph.finals) and graph.labels.max() < tokenizer().vocab_size


# Graphs


def make_graph(root: Path) -> None:
    (root / "graph").mkdir()
    save_graph(trivial_graph(tokenizer().vocab_size), tokenizer(), root / "graph" / "LG.npz")


def read_graph(folder: Path) -> None:
    graph = load_graph(folder / "LG.npz", tokenizer())
    assert graph.labels.min() >= 0 and len(graph.finals) == len(graph.offsets) - 1


# Hotwords


def make_hotwords(root: Path) -> None:
    (root / "hotwords").mkdir()
    (root / "hotwords" / "hotwords.txt").write_text("ONE TWO\nTHREE\t3\n\ntwo\t-1.5\n", encoding="utf-8")


def read_hotwords_file(folder: Path) -> None:
    phrases = read_hotwords(folder / "hotwords.txt", 1.0, tokenizer(), normal)
    if not phrases:
        return
    scorer = HotwordScorer(phrases, tokenizer().vocab_size)
    state = scorer.initial(1)
    for token in (3, 4, 5):
        assert bool(torch.isfinite(scorer.score(state)).all()), "a score that is not finite"
        state = scorer.advance(state, torch.tensor([token]))
    assert bool(torch.isfinite(scorer.final(state)).all())


CHECKPOINTS = Target("checkpoints", make_checkpoints, read_checkpoint, ready=configurations_once)
TOKENS = Target("tokens", make_tokens, read_tokens, cases=1000)
ARPA = Target("arpa", make_arpa, read_arpa_file)
LEXICON = Target("lexicon", make_lexicon, read_lexicon_file)
GRAPH = Target("graph", make_graph, read_graph, cases=500)
HOTWORDS = Target("hotwords", make_hotwords, read_hotwords_file)
