"""The joiner: combines encoder and decoder output into logits."""

from __future__ import annotations

from model.layers.scaled import ScaledLinear

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """logits = output_linear(tanh(encoder_proj(e) + decoder_proj(d))); losses and searches call the layers one by one."""

    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_proj = ScaledLinear(encoder_dim, joiner_dim)
        self.decoder_proj = ScaledLinear(decoder_dim, joiner_dim)
        self.output_linear = ScaledLinear(joiner_dim, vocab_size)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Return logits (..., vocab_size) for encoder_out (..., E) and decoder_out (..., D), whose leading axes broadcast."""
        return self.output_linear(torch.tanh(self.encoder_proj(encoder_out) + self.decoder_proj(decoder_out)))
