"""The one constructor of every model: for training, decoding, export, benchmarks and tests."""

from __future__ import annotations

from typing import Any

from model.decoder import StatelessDecoder
from model.encoder.lstm import LstmEncoder
from model.joiner import Joiner
from model.transducer import Transducer


def build_model(cfg: Any, vocab_size: int) -> Transducer:
    """A model with fresh parameters.

    cfg: anything with the sections `model`, `gradient`, `loss` and `features` of conf/base.yaml as attributes.
    vocab_size: tokens, blank included.
    """
    enc, dec = cfg.model.encoder, cfg.model.decoder
    encoder = LstmEncoder(
        num_features=cfg.features.num_mel_bins,
        num_layers=enc.num_layers,
        rnn=enc.rnn,
        d_model=enc.d_model,
        rnn_hidden_size=enc.rnn_hidden_size,
        dim_feedforward=enc.dim_feedforward,
        dropout=enc.dropout,
        layer_dropout=enc.layer_dropout,
        balance_prob=enc.balance_prob,
        norm=enc.norm,
        activation=enc.activation,
        filter_threshold=cfg.gradient.threshold if cfg.gradient.control == "filter" else None,
    )
    return Transducer(
        encoder,
        StatelessDecoder(vocab_size, dec.dim, dec.context_size),
        Joiner(enc.d_model, dec.dim, cfg.model.joiner.dim, vocab_size),
        loss_backend=cfg.loss.backend,
        prune_range=cfg.loss.prune_range,
        am_scale=cfg.loss.am_scale,
        lm_scale=cfg.loss.lm_scale,
        delay_penalty=cfg.loss.delay_penalty,
    )
