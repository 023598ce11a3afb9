"""The model that the reference implementation trained on the digits, and the speech for it (benchmarks use them, too)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from local.config import load_config
from local.config.schema import Config
from local.data.features import PADDING
from model.build import build_model
from model.transducer import Transducer

import lhotse
import numpy as np
import soundfile
import torch

BATCH = 30
RATE = 16000  # Hz, of the speech
Encoded = list[tuple[list[str], torch.Tensor, torch.Tensor]]


def reference_config(arrays: Mapping[str, np.ndarray]) -> Config:
    """Return the base configuration with the sizes of `meta/hyper`."""
    names = ["encoder.num_layers", "encoder.d_model", "encoder.rnn_hidden_size", "encoder.dim_feedforward"]
    hyper = arrays["meta/hyper"].tolist()
    layers, vocab, decoder_dim, joiner_dim = hyper[:4], hyper[4], hyper[5], hyper[6]
    overrides = [f"model.{name}={value}" for name, value in zip(names, layers, strict=True)]
    overrides += [f"model.decoder.dim={decoder_dim}", f"model.joiner.dim={joiner_dim}", f"lang.vocab_size={vocab}"]
    return load_config(None, overrides)


def load_reference_model(path: Path) -> Transducer:
    """Return the model in an .npz of `meta/hyper` and `param/<name>`, in evaluation mode."""
    arrays = np.load(path)
    cfg = reference_config(arrays)
    model = build_model(cfg, cfg.lang.vocab_size)
    model.load_state_dict({k[6:]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("param/")})
    return model.eval()


def read_features(folder: Path) -> dict[str, torch.Tensor]:
    """Return log-mel filter banks (T, 80) of every FLAC file below a folder, by utterance id, in order of ids."""
    fbank = lhotse.Fbank(lhotse.FbankConfig(num_mel_bins=80))
    return {name: torch.as_tensor(fbank.extract(audio, RATE)) for name, audio in read_audio(folder).items()}


def read_audio(folder: Path, step: int = 1) -> dict[str, np.ndarray]:
    """Return the samples (S,), float32 at `RATE`, of every `step`-th FLAC file below a folder, by utterance id, in order."""
    found = {}
    for path in sorted(folder.rglob("*.flac"), key=lambda p: p.stem)[::step]:
        found[path.stem], rate = soundfile.read(path, dtype="float32")
        assert rate == RATE
    return found


@torch.no_grad()
def encode(model: Transducer, features: dict[str, torch.Tensor], batch: int = BATCH) -> Encoded:
    """Return ids, encoder output (N, T', D) and lengths (N,) of each batch, in the order of `features`."""
    items = list(features.items())
    encoded: Encoded = []
    for start in range(0, len(items), batch):
        ids, arrays = zip(*items[start : start + batch], strict=True)
        x = torch.nn.utils.rnn.pad_sequence(list(arrays), batch_first=True, padding_value=PADDING)
        out, lens, _ = model.encoder(x, torch.tensor([len(a) for a in arrays]))
        encoded.append((list(ids), out, lens))
    return encoded
