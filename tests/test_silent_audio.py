"""A model of human speech and audio with digital silence: with the feature floor it hears no words in it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("soundfile")

from local.artifacts.checkpoint import Loaded, load_averaged
from local.decoding.recogniser import make_stream
from local.decoding.resources import Resources
from local.decoding.streaming import StreamingRecogniser
from tests.digits import RATE, recognise, silent_places, wer, write_digits_checkpoint, zeros

import torch

pytestmark = pytest.mark.usefixtures("one_thread")
OWN = 4.28  # percent, the recorded model's WER as the recipe decodes
MORE = 0.5  # percent, at most, with digital silence


def streamed(loaded: Loaded, seconds: float) -> str:
    """Return what streaming hears in zeros."""
    model, cfg, tokenizer = loaded
    resources = Resources(model, tokenizer, torch.device("cpu"), Path(), clean=str)
    search = make_stream("greedy_search", resources, cfg.decode)
    sizes = {"chunk_frames": 32, "tail_frames": cfg.decode.tail_frames}
    recogniser = StreamingRecogniser(model.encoder, search, tokenizer, cfg.features, **sizes)
    found = [s for piece in torch.from_numpy(zeros(seconds)).split(1600) for s in recogniser.accept(piece, RATE)]
    return " ".join(segment.text for segment in found + recogniser.finish())


@pytest.mark.slow
def test_no_words_in_digital_silence(shared: Path, tmp_path: Path) -> None:
    loaded = load_averaged(write_digits_checkpoint(shared, tmp_path))
    places = silent_places(shared)
    found = {place: recognise(loaded, [x for x, _ in utterances]) for place, utterances in places.items()}
    errors = {place: wer(places[place], found[place]) for place in ("alone", "after", "around")}
    assert errors["alone"] == pytest.approx(OWN, abs=0.005)
    assert max(errors.values()) <= OWN + MORE, errors
    assert found["nothing else"] == [""] and streamed(loaded, 5) == ""
    # Two utterances at once may lose a word (a repeated digit, without blank between), but silence adds none.
    singles = zip(found["alone"][::2], found["alone"][1::2], strict=True)
    for pair, (first, second) in zip(found["between"], singles, strict=True):
        assert len(pair.split()) <= len(f"{first} {second}".split()), f"{first} | {second}: {pair}"


@pytest.mark.slow
def test_without_the_floor_the_same_model_hears_words(shared: Path, tmp_path: Path) -> None:
    loaded = load_averaged(write_digits_checkpoint(shared, tmp_path), ["decode.feature_floor=false"])
    around = silent_places(shared)["around"][::6]
    assert wer(around, recognise(loaded, [x for x, _ in around])) > 40
    assert recognise(loaded, [zeros(5)]) != [""] and streamed(loaded, 5) != ""
