"""Decoding methods: each against its search, rescoring against a plain loop, and files by name."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from local.artifacts.decoding_graph import save_graph
from local.artifacts.language_model import load_lm
from local.common.errors import UserError
from local.config import load_config
from local.config.methods import METHODS
from local.config.schema import DecodeConfig
from local.data.text import TextNormaliser
from local.data.tokenizer import train_tokenizer
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources, read_hotwords
from model.build import build_model
from model.search import Hypothesis, get_search
from model.search.graph import trivial_graph
from model.search.scorers import HotwordScorer, InternalLmScorer, LstmLmScorer, NGramScorer, read_arpa
from tests.toy_experiment import HEAD, SMALL, save_toy_lm, toy_tokenizer, toy_weights

import numpy as np
import pytest
import torch

TOKENIZER = toy_tokenizer()
CFG = load_config(None, SMALL)
MODIFIED = "modified_beam_search"
CLEAN = TextNormaliser(CFG.lang)


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Resources:
    root = tmp_path_factory.mktemp("methods")
    (root / "lm").mkdir()
    save_toy_lm(CFG, TOKENIZER, root / "lm")
    save_graph(trivial_graph(TOKENIZER.vocab_size), TOKENIZER, root / "graph" / "LG.npz")
    model = build_model(CFG, TOKENIZER.vocab_size)
    model.load_state_dict(toy_weights(CFG, TOKENIZER, 0))
    with torch.no_grad():
        model.joiner.output_linear.bias[0] = 1.0  # some blanks, so that searches differ
        model.joiner.output_linear.weight *= 3
    return Resources(model.eval(), TOKENIZER, torch.device("cpu"), root, root, clean=CLEAN)


@pytest.fixture
def encoded() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return 2 * torch.randn(4, 14, 16), torch.tensor([14, 9, 0, 11])


def options(**changes: Any) -> DecodeConfig:
    return replace(CFG.decode, **changes)


def tokens(hypotheses: list[Hypothesis]) -> list[list[int]]:
    return [h.tokens for h in hypotheses]


def scorers(resources: Resources) -> dict[str, Any]:
    """Make each scorer from its file, without the class under test."""
    lm = load_lm(resources.exp_dir / "lm" / "lm.pt", TOKENIZER)[0]
    with (resources.exp_dir / "lm" / "bigram.arpa").open(encoding="utf-8") as lines:
        bigram = NGramScorer(read_arpa(lines), TOKENIZER.tokens)
    return {"lm": LstmLmScorer(lm), "bigram": bigram, "ilm": InternalLmScorer(resources.model)}


@pytest.mark.parametrize(
    ("method", "scales"),
    [
        (MODIFIED, {}),
        ("modified_beam_search_lm_shallow_fusion", {"lm": 0.7}),
        ("modified_beam_search_LODR", {"lm": 0.7, "bigram": -0.4}),
        ("modified_beam_search_ngram", {"bigram": 0.6}),
        ("modified_beam_search_ilm", {"lm": 0.7, "ilm": -0.3}),
    ],
)
def test_fusion(
    resources: Resources, encoded: tuple[torch.Tensor, torch.Tensor], method: str, scales: dict[str, float]
) -> None:
    made = options(lm_scale=0.7, lodr_scale=0.4, ngram_scale=0.6, ilm_scale=0.3, beam=6, blank_penalty=0.5)
    own = scorers(resources)
    expected = get_search(MODIFIED)(
        resources.model, *encoded, beam=6, blank_penalty=0.5, scorers=[(own[k], v) for k, v in scales.items()]
    )
    recogniser = Recogniser(method, resources, made)
    for _ in range(2):  # one recogniser takes many batches
        found = recogniser(*encoded)
        assert tokens(found) == tokens(expected)
        assert [h.score for h in found] == [h.score for h in expected]
    plain = get_search(MODIFIED)(resources.model, *encoded, beam=6, blank_penalty=0.5)
    assert (tokens(found) != tokens(plain)) == bool(scales), "the toy scorers must be strong enough to change a result"


@pytest.mark.parametrize(
    ("method", "base"),
    [("modified_beam_search_lm_rescore", MODIFIED), ("fast_beam_search_nbest_lm_rescore", "fast_beam_search")],
)
def test_rescoring(resources: Resources, encoded: tuple[torch.Tensor, torch.Tensor], method: str, base: str) -> None:
    made = options(lm_scale=2.0, beam=6)
    limits: dict[str, Any] = {"beam": 6}
    if base == "fast_beam_search":
        limits = {"beam": 20.0, "max_contexts": 32, "max_states": 64, "allow_partial": True}
    lists = get_search(base)(resources.model, *encoded, **limits)
    lm = load_lm(resources.exp_dir / "lm" / "lm.pt", TOKENIZER)[0]
    found = Recogniser(method, resources, made)(*encoded)
    changed = 0
    for hypothesis, result in zip(lists, found, strict=True):
        entries = hypothesis.nbest or []
        assert len(entries) > 1 or not hypothesis.tokens
        totals = []
        for entry in entries:
            with torch.no_grad():  # the model's own loss, which no scorer uses
                nll = lm(torch.tensor([entry.tokens], dtype=torch.int64).view(1, -1), torch.tensor([len(entry.tokens)]))
            totals.append(entry.score - 2.0 * float(nll))
        if entries:
            best = int(np.argmax(totals))
            assert result.tokens == entries[best].tokens and result.times == entries[best].times
            assert result.score == pytest.approx(totals[best], rel=1e-5)
            changed += result.tokens != hypothesis.tokens
    assert changed, "the language model must be strong enough to change a result"


def test_oracle_has_a_list_to_choose_from(resources: Resources, encoded: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Its hypothesis is the best by score; scoring chooses with the reference (tests/test_wer.py)."""
    limits = {"beam": 20.0, "max_contexts": 32, "max_states": 64, "allow_partial": True}
    lists = get_search("fast_beam_search")(resources.model, *encoded, **limits)
    found = Recogniser("fast_beam_search_nbest_oracle", resources, options(fast_beam_backend="k2"))(*encoded)
    assert found == lists
    assert max(len(h.nbest or []) for h in found) > 1


def test_graph_of_everything_is_no_graph(resources: Resources, encoded: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = get_search("fast_beam_search")(
        resources.model, *encoded, beam=20.0, max_contexts=8, max_states=64, allow_partial=True, log_semiring=True
    )
    assert tokens(Recogniser("fast_beam_search_LG", resources, options())(*encoded)) == tokens(expected)


def test_hotwords(resources: Resources, encoded: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "hot.txt"
    path.write_text("one\t5\n\u00a0\nTHREE\u200bTＷO\n", encoding="utf-8")  # in another form than the transcripts
    made = options(hotwords=str(path), hotwords_boost=7.5)
    phrases = [(TOKENIZER.encode([text])[0], boost) for text, boost in (("ONE", 5.0), ("THREE TWO", 7.5))]
    assert read_hotwords(path, 7.5, TOKENIZER, CLEAN) == phrases
    hot = (HotwordScorer(phrases, TOKENIZER.vocab_size), 1.0)
    lm = (scorers(resources)["lm"], CFG.decode.lm_scale)
    plain = tokens(Recogniser(MODIFIED, resources, options())(*encoded))
    for method, fused in ((MODIFIED, [hot]), ("modified_beam_search_lm_shallow_fusion", [lm, hot])):
        found = Recogniser(method, resources, made)(*encoded)
        assert tokens(found) == tokens(get_search(MODIFIED)(resources.model, *encoded, scorers=fused)) != plain
    (scorer, _), (again, _) = (resources.hotwords(made)[0] for _ in range(2))
    assert scorer is again  # the table may be large
    empty = tmp_path / "empty.txt"
    empty.write_text("\n", encoding="utf-8")
    assert tokens(Recogniser(MODIFIED, resources, options(hotwords=str(empty)))(*encoded)) == plain
    greedy = [Recogniser("greedy_search", resources, o)(*encoded) for o in (options(), made)]
    assert tokens(greedy[0]) == tokens(greedy[1])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ONE\tmuch\n", "hot.txt:1: .*much"),
        ("ONE\nQUÉ\n", "hot.txt:2: .*QUÉ.* Q U É"),
        ("ONE\tinf\n", "hot.txt:1: .*inf"),
        ("ONE\n\n\u200b\u200c\u2060\t3\n", r"hot.txt:3: .*u200b"),
        ("ONE\n\u2581\n", "hot.txt:2: "),
        ("ONE\u2581TWO\n", "hot.txt:1: .*\u2581"),
        ("ONE\n<blk>\n", "hot.txt:2: .*<"),
        ("<sos/eos> <unk>\n", "hot.txt:1: .*<"),
    ],
)
def test_bad_hotwords_are_named(resources: Resources, tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "hot.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=named):
        Recogniser(MODIFIED, resources, options(hotwords=str(path)))


def test_files_that_do_not_fit_are_named(resources: Resources, tmp_path: Path) -> None:
    elsewhere = Resources(resources.model, TOKENIZER, torch.device("cpu"), tmp_path, tmp_path, clean=CLEAN)
    for method, named in (
        ("modified_beam_search_lm_shallow_fusion", r"lm/lm.pt .*stage 3.*decode\.lm"),
        ("modified_beam_search_ngram", r"lm/bigram.arpa .*stage 3.*decode\.ngram"),
        ("fast_beam_search_LG", "LG.npz .*local/prepare_graph.py"),
    ):
        with pytest.raises(UserError, match=named):
            Recogniser(method, elsewhere, options())
    (tmp_path / "words.arpa").write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-1 HELLO\n\n\\end\\\n")
    with pytest.raises(UserError, match="words.arpa: .*HELLO"):
        Recogniser("modified_beam_search_ngram", resources, options(ngram=str(tmp_path / "words.arpa")))
    model, arpa = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-1 ▁ONE\n-1 ▁ONE\n\n\\end\\\n", tmp_path / "token.arpa"
    for content, place in (
        (model.encode(), "token.arpa: .*line 8.*twice"),
        (model.encode().replace(b"\n", b"\r\n"), "token.arpa: .*line 8.*twice"),
        (model.encode("utf-16"), "token.arpa:1"),
        (model.replace("▁", "É").encode("latin-1"), "token.arpa:7"),
    ):
        arpa.write_bytes(content)
        for key in ("ngram", "bigram"):
            method = {"ngram": "modified_beam_search_ngram", "bigram": "modified_beam_search_LODR"}[key]
            with pytest.raises(UserError, match=place):
                Recogniser(method, resources, options(**{key: str(arpa)}))
    other = Resources(resources.model, train_tokenizer(["UP DOWN"], 20), torch.device("cpu"), resources.exp_dir, clean=CLEAN)
    with pytest.raises(UserError, match=r"lm\.pt: .*bpe\.model"):
        Recogniser("modified_beam_search_lm_rescore", other, options())


def test_settings_of_single_methods(resources: Resources) -> None:
    made = options(beam=4, by_method={"modified_beam_search_LODR": {"beam": 2, "lodr_scale": 0.05}})
    found = {m: Recogniser(m, resources, made).options for m in (MODIFIED, "modified_beam_search_LODR")}
    assert found[MODIFIED]["beam"] == 4
    lodr = found["modified_beam_search_LODR"]
    assert (lodr["beam"], lodr["lodr_scale"], lodr["lm_scale"]) == (2, 0.05, CFG.decode.lm_scale)


def test_frames_that_the_ctc_head_calls_blank(encoded: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    """decode.blank_skip reaches the searches of the transducer, in total or for one method, and not the head's own."""
    torch.manual_seed(0)
    model = build_model(load_config(None, [*SMALL, HEAD]), TOKENIZER.vocab_size).eval()
    with torch.no_grad():
        assert model.ctc_head is not None
        model.joiner.output_linear.bias[0] = 1.0
        model.joiner.output_linear.weight *= 3
        model.ctc_head.output_linear.weight.normal_()
    own = Resources(model, TOKENIZER, torch.device("cpu"), tmp_path, clean=CLEAN)
    for name in ("greedy_search", MODIFIED, "fast_beam_search"):
        more = {"allow_partial": True} if name == "fast_beam_search" else {}
        expected = [get_search(name)(model, *encoded, blank_skip=skip, **more) for skip in (0.0, 0.01)]
        assert tokens(expected[0]) != tokens(expected[1])
        for made in (options(blank_skip=0.01), options(by_method={name: {"blank_skip": 0.01}})):
            recogniser = Recogniser(name, own, made)
            assert tokens(recogniser(*encoded)) == tokens(expected[1]) and recogniser.options["blank_skip"] == 0.01
        assert tokens(Recogniser(name, own, options())(*encoded)) == tokens(expected[0])
    head = Recogniser("ctc_greedy_search", own, options(blank_skip=0.01, blank_penalty=0.5))
    assert tokens(head(*encoded)) == tokens(get_search("ctc_greedy_search")(model, *encoded, blank_penalty=0.5))
    assert "blank_skip" not in head.options


def test_log_semiring_reaches_both_fast_beam_searches(resources: Resources, encoded: tuple[torch.Tensor, torch.Tensor]) -> None:
    for name in ("fast_beam_search", "fast_beam_search_nbest_lm_rescore", "greedy_search"):
        plain, summed = (Recogniser(name, resources, options(log_semiring=on)) for on in (False, True))
        assert "log_semiring" not in plain.options
        assert summed.options.get("log_semiring", False) == name.startswith("fast")
    expected = get_search("fast_beam_search")(resources.model, *encoded, allow_partial=True, log_semiring=True)
    found = Recogniser("fast_beam_search", resources, options(log_semiring=True))(*encoded)
    assert [h.score for h in found] == [h.score for h in expected]
    assert [h.score for h in found] != [h.score for h in Recogniser("fast_beam_search", resources, options())(*encoded)]


def test_k2_takes_all_frames_and_the_best_alignment() -> None:
    for key in ("blank_skip=0.9", "log_semiring=true"):
        with pytest.raises(UserError, match="fast_beam_backend"):
            load_config(None, ["decode.fast_beam_backend=k2", f"decode.{key}"])
        own = "decode.by_method.fast_beam_search.fast_beam_backend=k2"
        with pytest.raises(UserError, match=rf"by_method.fast_beam_search.{key.partition('=')[0]}"):
            load_config(None, [own, f"decode.{key}"])


@pytest.mark.skipif(importlib.util.find_spec("k2") is not None, reason="k2 is installed")
def test_a_missing_package_is_one_line(resources: Resources) -> None:
    with pytest.raises(UserError, match="fast_beam_search: .*k2.*requirements-k2.txt"):
        Recogniser("fast_beam_search", resources, options(fast_beam_backend="k2"))


def test_every_scale_is_a_key_of_the_config() -> None:
    for method in METHODS.values():
        assert all(isinstance(getattr(CFG.decode, scale), float) for scale in method.scales)
