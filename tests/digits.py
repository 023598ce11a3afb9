"""A checkpoint of the recorded digits model, trained on human speech, and digital silence around what it hears."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from local.artifacts.checkpoint import Loaded, provenance, save_file
from local.config.schema import FeaturesConfig
from local.data.feature_floor import KEY, floor_of
from local.data.features import PADDING, make_extractor
from local.data.tokenizer import Tokenizer
from local.decoding.batch_decoder import BatchDecoder
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from local.scoring.align import word_errors
from model.search import Hypothesis
from tests.reference import BATCH, RATE, load_reference_model, read_audio, reference_config

import numpy as np
import torch

TRAIN, DEV = "train-clean-5", "dev-clean-2"
Utterance = tuple[np.ndarray, str]  # samples (S,) and transcript
BETWEEN = 5.0  # seconds of zeros between two utterances, and alone
EVERY = 15  # one of so many training utterances makes the floor


def digits_folder(shared: Path, part: str) -> Path:
    """Return the folder of a part of the recorded digits."""
    return shared / "speech" / "LibriSpeech-digits" / part


def references(shared: Path) -> dict[str, str]:
    """Return the transcripts of the development part, by id, in order."""
    files = sorted(digits_folder(shared, DEV).rglob("*.trans.txt"))
    return dict(sorted(line.split(maxsplit=1) for path in files for line in path.read_text().splitlines()))


def write_digits_checkpoint(shared: Path, folder: Path, floor: bool = True) -> Path:
    """Write averaged.pt of the recorded digits model into `folder` and return its path; floor: with a feature floor."""
    path = shared / "reference" / "digits_model.npz"
    cfg = reference_config(np.load(path))
    tokenizer = Tokenizer.from_file(shared / "reference" / "digits_bpe.model")
    content = {"model": load_reference_model(path).state_dict(), "averaged": "recorded", "label": "epoch-1-avg-1"}
    if floor:
        audio = read_audio(digits_folder(shared, TRAIN), EVERY)
        content[KEY] = floor_of(features(cfg.features, audio.values()))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**content, **provenance(cfg, tokenizer)}, folder / "averaged.pt")
    return folder / "averaged.pt"


def features(options: FeaturesConfig, audio: Iterable[np.ndarray]) -> list[torch.Tensor]:
    """Return features (T, F) of samples (S,)."""
    extractor = make_extractor(options)
    return [extractor.extract(torch.from_numpy(samples).unsqueeze(0), RATE) for samples in audio]


def zeros(seconds: float) -> np.ndarray:
    """Return digital silence (S,)."""
    return np.zeros(round(seconds * RATE), np.float32)


def silent_places(shared: Path) -> dict[str, list[Utterance]]:
    """Return the development utterances with digital silence at several places: (samples, transcript) by place."""
    texts = references(shared)
    alone = [(samples, texts[name]) for name, samples in read_audio(digits_folder(shared, DEV)).items()]
    pairs = zip(alone[::2], alone[1::2], strict=True)
    return {
        "alone": alone,
        "after": [(np.concatenate([x, zeros(0.66)]), text) for x, text in alone],  # as sherpa's Python example
        "around": [(np.concatenate([zeros(0.5), x, zeros(0.8)]), text) for x, text in alone],  # as sherpa's programs
        "between": [(np.concatenate([x, zeros(BETWEEN), y]), f"{first} {second}") for (x, first), (y, second) in pairs],
        "nothing else": [(zeros(BETWEEN), "")],
    }


def recognise(loaded: Loaded, audio: list[np.ndarray], method: str = "greedy_search") -> list[str]:
    """Return the texts of samples (S,) as local/decode.py finds them."""
    return [loaded[2].decode(hypothesis.tokens) for hypothesis in hypotheses(loaded, audio, method)]


def hypotheses(loaded: Loaded, audio: list[np.ndarray], method: str = "greedy_search") -> list[Hypothesis]:
    """Return what local/decode.py finds in samples (S,)."""
    model, cfg, tokenizer = loaded
    device = torch.device("cpu")
    resources = Resources(model, tokenizer, device, Path(), clean=str)
    decoder = BatchDecoder(model, {method: Recogniser(method, resources, cfg.decode)}, cfg.decode.tail_frames, device)
    results: dict[int, Hypothesis] = {}
    by_length = sorted(enumerate(features(cfg.features, audio)), key=lambda item: len(item[1]))
    for start in range(0, len(by_length), BATCH):
        numbers, matrices = zip(*by_length[start : start + BATCH], strict=True)
        x = torch.nn.utils.rnn.pad_sequence(list(matrices), batch_first=True, padding_value=PADDING)
        found = decoder.run(x, torch.tensor([len(m) for m in matrices]), [str(n) for n in numbers])[method]
        results.update(zip(numbers, found, strict=True))
    return [results[n] for n in range(len(audio))]


def wer(utterances: list[Utterance], found: list[str]) -> float:
    """Return the word error rate in percent."""
    errors = sum(word_errors(text, hypothesis) for (_, text), hypothesis in zip(utterances, found, strict=True))
    return 100 * errors / sum(len(text.split()) for _, text in utterances)
