"""A checkpoint of the recorded digits model, trained on human speech, and digital silence around what it hears."""

from __future__ import annotations

from pathlib import Path

from local.artifacts.checkpoint import provenance, save_file
from local.config.schema import FeaturesConfig
from local.data.feature_floor import KEY, floor_of
from local.data.features import make_extractor
from local.data.tokenizer import Tokenizer
from tests.reference import RATE, load_reference_model, read_audio, reference_config

import numpy as np
import torch

TRAIN, DEV = "train-clean-5", "dev-clean-2"
EVERY = 15  # one of so many training utterances makes the floor


def digits_folder(shared: Path, part: str) -> Path:
    """Return the folder of a part of the recorded digits."""
    return shared / "speech" / "LibriSpeech-digits" / part


def write_digits_checkpoint(shared: Path, folder: Path, floor: bool = True) -> Path:
    """Write averaged.pt of the recorded digits model into `folder` and return its path; floor: with a feature floor."""
    path = shared / "reference" / "digits_model.npz"
    cfg = reference_config(np.load(path))
    tokenizer = Tokenizer.from_file(shared / "reference" / "digits_bpe.model")
    content = {"model": load_reference_model(path).state_dict(), "averaged": "recorded", "label": "epoch-1-avg-1"}
    if floor:
        audio = read_audio(digits_folder(shared, TRAIN), EVERY)
        content[KEY] = floor_of(features(cfg.features, list(audio.values())))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**content, **provenance(cfg, tokenizer)}, folder / "averaged.pt")
    return folder / "averaged.pt"


def features(options: FeaturesConfig, audio: list[np.ndarray]) -> list[torch.Tensor]:
    """Return features (T, F) of samples (S,)."""
    extractor = make_extractor(options)
    return [extractor.extract(torch.from_numpy(samples).unsqueeze(0), RATE) for samples in audio]
