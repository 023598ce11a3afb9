"""The stateless decoder (prediction network): an embedding and a convolution over the last few tokens."""

from __future__ import annotations

from model.layers.scaled import ScaledConv1d, ScaledEmbedding

import torch.nn.functional as F
from torch import Tensor, nn


class StatelessDecoder(nn.Module):
    """Ghodsi et al., "RNN-transducer with stateless prediction network" (2020), with a depthwise convolution and ReLU."""

    def __init__(self, vocab_size: int, dim: int, context_size: int) -> None:
        super().__init__()
        self.context_size, self.vocab_size = context_size, vocab_size
        self.embedding = ScaledEmbedding(vocab_size, dim)
        self.conv = ScaledConv1d(dim, dim, context_size, groups=dim, bias=False) if context_size > 1 else None

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """Return (N, U, dim) for y (N, U) int64; (N, U - context_size + 1, dim) if not padded. Ids below 0 embed to 0."""
        x = self.embedding(y)
        if self.conv is not None:
            x = x.transpose(1, 2)
            if need_pad:
                x = F.pad(x, (self.context_size - 1, 0))
            x = self.conv(x).transpose(1, 2)
        return F.relu(x)
