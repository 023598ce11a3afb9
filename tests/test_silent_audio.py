"""A model of human speech and audio with digital silence: with the feature floor it hears no words in it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("soundfile")

from local.artifacts.checkpoint import Loaded, load_averaged
from local.decoding.recogniser import make_stream
from local.decoding.resources import Resources
from local.decoding.streaming import StreamingRecogniser
from local.decoding.word_times import TOKEN_SECONDS
from tests.digits import BETWEEN, RATE, Utterance, hypotheses, recognise, silent_places, wer, write_digits_checkpoint, zeros

import torch

pytestmark = pytest.mark.usefixtures("one_thread")
OWN = 4.28  # percent, the recorded model's WER as the recipe decodes
MORE = 0.5  # percent, at most, with digital silence
DELAY = 0.5  # seconds after an utterance in which its last word may come


def streamed(loaded: Loaded, seconds: float) -> str:
    """Return what streaming hears in zeros."""
    model, cfg, tokenizer = loaded
    resources = Resources(model, tokenizer, torch.device("cpu"), Path(), clean=str)
    search = make_stream("greedy_search", resources, cfg.decode)
    sizes = {"chunk_frames": 32, "tail_frames": cfg.decode.tail_frames}
    recogniser = StreamingRecogniser(model.encoder, search, tokenizer, cfg.features, **sizes)
    found = [s for piece in torch.from_numpy(zeros(seconds)).split(1600) for s in recogniser.accept(piece, RATE)]
    return " ".join(segment.text for segment in found + recogniser.finish())


def heard(loaded: Loaded, utterances: list[Utterance]) -> list[str]:
    return recognise(loaded, [samples for samples, _ in utterances])


@pytest.mark.slow
def test_no_words_in_digital_silence(shared: Path, tmp_path: Path) -> None:
    loaded = load_averaged(write_digits_checkpoint(shared, tmp_path))
    places = silent_places(shared)
    errors = {place: wer(places[place], heard(loaded, places[place])) for place in ("alone", "after", "around")}
    assert errors["alone"] == pytest.approx(OWN, abs=0.005)
    assert max(errors.values()) <= OWN + MORE, errors
    assert heard(loaded, places["nothing else"]) == [""] and streamed(loaded, BETWEEN) == ""
    words = zip(places["alone"][::2], hypotheses(loaded, [x for x, _ in places["between"]]), strict=True)
    for (before, _), hypothesis in words:
        first = len(before) / RATE + DELAY
        times = [time * TOKEN_SECONDS for time in hypothesis.times]
        assert not [time for time in times if first < time < first + BETWEEN - DELAY]


@pytest.mark.slow
def test_without_the_floor_the_same_model_hears_words(shared: Path, tmp_path: Path) -> None:
    loaded = load_averaged(write_digits_checkpoint(shared, tmp_path), ["decode.feature_floor=false"])
    around = silent_places(shared)["around"][::6]
    assert wer(around, heard(loaded, around)) > 40
    assert recognise(loaded, [zeros(BETWEEN)]) != [""] and streamed(loaded, BETWEEN) != ""
