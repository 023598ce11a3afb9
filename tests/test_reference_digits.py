"""A model trained by the reference implementation gives the token ids that the reference's own searches recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from local.config import load_config
from model.build import build_model
from model.search import get_search

LOG_EPSILON = -23.025850929940457  # log(1e-10), the padding of features
BATCH = 30


def load_reference_model(path: Path) -> torch.nn.Module:
    """The model in an .npz of `meta/hyper` and `param/<name>`, in evaluation mode."""
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
    """80-dimensional log-mel filter banks (T, 80) of every FLAC below a folder, by utterance id, in order of ids."""
    lhotse = pytest.importorskip("lhotse")
    soundfile = pytest.importorskip("soundfile")
    fbank = lhotse.Fbank(lhotse.FbankConfig(num_mel_bins=80))
    paths = sorted(folder.rglob("*.flac"), key=lambda p: p.stem)
    features = {}
    for path in paths:
        audio, rate = soundfile.read(path, dtype="float32")
        features[path.stem] = torch.as_tensor(fbank.extract(audio, rate))
    return features


@pytest.fixture(scope="module")
def encoded(shared: Path) -> tuple[torch.nn.Module, list[tuple[list[str], torch.Tensor, torch.Tensor]]]:
    """The model, and per batch of 30 in order of ids: ids, encoder output, lengths."""
    model = load_reference_model(shared / "reference" / "digits_model.npz")
    features = list(read_features(shared / "speech" / "LibriSpeech-digits" / "dev-clean-2").items())
    batches = []
    for start in range(0, len(features), BATCH):
        ids, arrays = zip(*features[start : start + BATCH], strict=True)
        x = torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True, padding_value=LOG_EPSILON)
        with torch.no_grad():
            out, lens, _ = model.encoder(x, torch.tensor([len(a) for a in arrays]))
        batches.append((list(ids), out, lens))
    return model, batches


@pytest.mark.parametrize(
    ("method", "share"), [("greedy_search", 1.0), ("modified_beam_search", 0.99), ("fast_beam_search", 0.99)]
)
def test_recorded_tokens(shared: Path, encoded: tuple, method: str, share: float) -> None:
    recorded = json.loads((shared / "reference" / "digits_dev.json").read_text())["tokens"][method]
    # The reference's ids carry lhotse's running number behind the utterance's id.
    expected = {key.rsplit("-", 1)[0]: tokens for key, tokens in recorded.items()}
    model, batches = encoded
    found = {}
    for ids, out, lens in batches:
        results = get_search(method)(model, out, lens)
        found.update({i: r.tokens for i, r in zip(ids, results, strict=True)})
    assert set(found) == set(expected)
    wrong = [f"{i}: {found[i]} instead of {expected[i]}" for i in expected if found[i] != expected[i]]
    assert len(wrong) <= (1 - share) * len(expected), "\n".join(wrong)
