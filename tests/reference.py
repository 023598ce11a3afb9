"""The model that the reference implementation trained on the digits, and the speech for it (benchmarks use them, too)."""

from __future__ import annotations

from pathlib import Path

from local.config import load_config
from local.data.features import PADDING
from model.build import build_model
from model.transducer import Transducer

import lhotse
import numpy as np
import soundfile
import torch

BATCH = 30
Encoded = list[tuple[list[str], torch.Tensor, torch.Tensor]]


def load_reference_model(path: Path) -> Transducer:
    """Return the model in an .npz of `meta/hyper` and `param/<name>`, in evaluation mode."""
    arrays = np.load(path)
    names = ["encoder.num_layers", "encoder.d_model", "encoder.rnn_hidden_size", "encoder.dim_feedforward"]
    hyper = arrays["meta/hyper"].tolist()
    layers, vocab, decoder_dim, joiner_dim = hyper[:4], hyper[4], hyper[5], hyper[6]
    overrides = [f"model.{name}={value}" for name, value in zip(names, layers, strict=True)]
    overrides += [f"model.decoder.dim={decoder_dim}", f"model.joiner.dim={joiner_dim}"]
    model = build_model(load_config(None, overrides), vocab)
    model.load_state_dict({k[6:]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("param/")})
    return model.eval()


def read_features(folder: Path) -> dict[str, torch.Tensor]:
    """Return log-mel filter banks (T, 80) of every FLAC file below a folder, by utterance id, in order of ids."""
    fbank = lhotse.Fbank(lhotse.FbankConfig(num_mel_bins=80))
    features = {}
    for path in sorted(folder.rglob("*.flac"), key=lambda p: p.stem):
        audio, rate = soundfile.read(path, dtype="float32")
        features[path.stem] = torch.as_tensor(fbank.extract(audio, rate))
    return features


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
