"""The CTC head on the encoder, a second loss beside the transducer's, and the consistency of two augmented copies."""

from __future__ import annotations

from model.layers.scaled import ScaledLinear

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CtcHead(nn.Module):
    """Encoder output -> log-probabilities of the tokens and blank in each frame (Graves et al., ICML 2006)."""

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.output_linear = ScaledLinear(d_model, vocab_size)

    def forward(self, encoder_out: Tensor) -> Tensor:
        """Return float32 log-probabilities (N, T, vocab_size) of encoder_out (N, T, d_model)."""
        return F.log_softmax(self.output_linear(encoder_out).float(), dim=-1)


def ctc_loss(log_probs: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor, blank: int) -> Tensor:
    """Return the CTC loss of each utterance in nats, (N,).

    log_probs: (N, T, C). lens: (N,), frames. tokens: (N, U) int64, padded with any id. token_lens: (N,).
    CTC puts at most one token into a frame, and a blank between equal ones. A transcript that needs more frames than there are
    has no alignment: its loss and gradient are 0.
    """
    return F.ctc_loss(log_probs.transpose(0, 1), tokens, lens, token_lens, blank=blank, reduction="none", zero_infinity=True)


def consistency_loss(first: Tensor, second: Tensor, lens: Tensor) -> Tensor:
    """Return how far the CTC outputs of two copies of each utterance are apart, in nats, (N,).

    The mean of both Kullback-Leibler divergences, each towards the other copy without its gradient, summed over frames: CR-CTC
    (Yao et al. 2024, arXiv 2410.05101, equation 5). first, second: log-probabilities (N, T, C). lens: (N,), frames of both.
    """

    def divergence(x: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(x, target.detach(), reduction="none", log_target=True).sum(dim=-1)

    frames = 0.5 * (divergence(first, second) + divergence(second, first))
    beyond = torch.arange(first.size(1), device=lens.device) >= lens[:, None]
    return frames.masked_fill(beyond, 0.0).sum(dim=1)
