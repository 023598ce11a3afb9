"""A model trained by the reference implementation gives the token ids that the reference's own searches recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("soundfile")

from model.search import get_search
from tests.reference import Encoded, encode, load_reference_model, read_features


@pytest.fixture(scope="module")
def encoded(shared: Path) -> tuple[Any, Encoded]:
    """Return the model, and ids, encoder output and lengths of each batch of 30, in order of ids."""
    model = load_reference_model(shared / "reference" / "digits_model.npz")
    features = read_features(shared / "speech" / "LibriSpeech-digits" / "dev-clean-2")
    return model, encode(model, features)


@pytest.mark.parametrize(
    ("method", "share"), [("greedy_search", 1.0), ("modified_beam_search", 0.99), ("fast_beam_search", 0.99)]
)
def test_recorded_tokens(shared: Path, encoded: tuple[Any, Encoded], method: str, share: float) -> None:
    recorded = json.loads((shared / "reference" / "digits_dev.json").read_text())["tokens"][method]
    # A recorded id is the utterance's id and a number that lhotse appended.
    expected = {key.rsplit("-", 1)[0]: tokens for key, tokens in recorded.items()}
    model, batches = encoded
    found = {}
    for ids, out, lens in batches:
        results = get_search(method)(model, out, lens)
        found.update({i: r.tokens for i, r in zip(ids, results, strict=True)})
    assert set(found) == set(expected)
    wrong = [f"{i}: {found[i]} instead of {expected[i]}" for i in expected if found[i] != expected[i]]
    assert len(wrong) <= (1 - share) * len(expected), "\n".join(wrong)
