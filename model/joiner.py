"""The joiner: where encoder and decoder meet."""

from __future__ import annotations

from model.layers.scaled import ScaledLinear

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """logits = output_linear(tanh(encoder_proj(e) + decoder_proj(d)))."""

    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_proj = ScaledLinear(encoder_dim, joiner_dim)
        self.decoder_proj = ScaledLinear(decoder_dim, joiner_dim)
        self.output_linear = ScaledLinear(joiner_dim, vocab_size)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        """encoder_out (..., E) and decoder_out (..., D), leading axes broadcast -> logits (..., vocab_size).

        project_input=False: the arguments are (..., joiner_dim) already, from `encoder_proj` and `decoder_proj`.
        """
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))
