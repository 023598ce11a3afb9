"""The one constructor of every model: for training, decoding, export, benchmarks and tests."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from model.decoder import StatelessDecoder
from model.encoder.lstm import LayerOptions, LstmEncoder
from model.encoder.subsampling import Conv2dSubsampling, subsampled
from model.joiner import Joiner
from model.layers.scaled import GATES
from model.transducer import Transducer


def build_model(cfg: Any, vocab_size: int) -> Transducer:
    """Return an initial model from cfg's `model`, `gradient`, `loss`, `features`, `train.lstm`; vocab_size includes blank."""
    enc, dec = cfg.model.encoder, cfg.model.decoder
    threshold = cfg.gradient.threshold if cfg.gradient.control == "filter" else None
    own = {"filter_threshold": threshold, "merged": cfg.train.lstm == "merged"}
    names = [field.name for field in fields(LayerOptions) if field.name not in own]
    layer = LayerOptions(**own, **{name: getattr(enc, name) for name in names})
    return Transducer(
        LstmEncoder(cfg.features.num_mel_bins, enc.num_layers, layer),
        StatelessDecoder(vocab_size, dec.dim, dec.context_size),
        Joiner(enc.d_model, dec.dim, cfg.model.joiner.dim, vocab_size),
        loss_backend=cfg.loss.backend,
        prune_range=cfg.loss.prune_range,
        am_scale=cfg.loss.am_scale,
        lm_scale=cfg.loss.lm_scale,
        delay_penalty=cfg.loss.delay_penalty,
        ctc=cfg.loss.ctc_scale > 0,
    )


def weights_by_key(cfg: Any, vocab_size: int) -> dict[str, int]:
    """Return how many weights the matrices of the model have, by the key of cfg that makes them many; without making any."""
    enc, dec, joiner = cfg.model.encoder, cfg.model.decoder.dim, cfg.model.joiner.dim
    width, cells, layers = enc.d_model, enc.rnn_hidden_size, enc.num_layers
    front = Conv2dSubsampling.CHANNELS[-1] * subsampled(cfg.features.num_mel_bins)
    return {
        "model.encoder.rnn_hidden_size": layers * cells * (2 * GATES[enc.rnn] * width + (width if cells != width else 0)),
        "model.encoder.dim_feedforward": layers * enc.dim_feedforward * 2 * width,
        "model.encoder.d_model": width * (front + (2 if cfg.loss.ctc_scale > 0 else 1) * vocab_size + joiner),
        "model.decoder.dim": dec * (2 * vocab_size + joiner + cfg.model.decoder.context_size),
        "model.joiner.dim": joiner * vocab_size,
    }
