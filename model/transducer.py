"""The transducer: encoder, stateless decoder, joiner, and the pruned RNN-T loss over them."""

from __future__ import annotations

from model.decoder import StatelessDecoder
from model.encoder.lstm import LstmEncoder
from model.joiner import Joiner
from model.layers.scaled import ScaledLinear
from model.loss import get_backend

import torch
from torch import Tensor, nn

BLANK_ID, UNK_ID = 0, 2


def pruned_scale(warmup: float) -> float:
    """Return the weight of the pruned loss: 0 at first, because untrained simple losses give useless pruning bounds."""
    return 0.0 if warmup < 1 else 0.1 if warmup < 2 else 1.0


def training_loss(simple: Tensor, pruned: Tensor, simple_scale: float, pruned_weight: float) -> Tensor:
    """Return what training minimises, from the two losses of utterances or from their sums.

    pruned_weight: `pruned_scale(warmup)`. If it is 0, the pruned loss is left out: it has no gradient and may be infinite.
    """
    loss = simple_scale * simple
    return loss + pruned_weight * pruned if pruned_weight > 0 else loss


class Transducer(nn.Module):
    """A transducer (Graves 2012, arXiv 1211.3711) with the pruned loss (Kuang et al. 2022, arXiv 2206.13236)."""

    blank_id, unk_id = BLANK_ID, UNK_ID

    def __init__(
        self,
        encoder: LstmEncoder,
        decoder: StatelessDecoder,
        joiner: Joiner,
        *,
        loss_backend: str,
        prune_range: int,
        am_scale: float,
        lm_scale: float,
        delay_penalty: float,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.joiner = encoder, decoder, joiner
        self.context_size, self.vocab_size = decoder.context_size, decoder.vocab_size
        decoder_dim = decoder.embedding.weight.size(1)
        self.simple_am_proj = ScaledLinear(encoder.d_model, self.vocab_size, initial_speed=0.5)
        self.simple_lm_proj = ScaledLinear(decoder_dim, self.vocab_size)
        self.loss_backend = loss_backend
        self.prune_range = prune_range
        self.am_scale, self.lm_scale, self.delay_penalty = am_scale, lm_scale, delay_penalty

    def forward(
        self, x: Tensor, x_lens: Tensor, tokens: Tensor, token_lens: Tensor, warmup: float = 1.0, monitor: bool = False
    ) -> dict[str, Tensor]:
        """Return the two losses of each utterance, in nats: {"simple": (N,), "pruned": (N,)}.

        x: (N, T, F) features. x_lens: (N,), their frames. tokens: (N, U) int64, padded with any id. token_lens: (N,).
        warmup: batches so far / warm-up batches. Below 1 the pruned loss has weight 0 and gets no gradient.
        monitor: also return "outside": (N,), the share of the simple lattice's posterior mass outside the band.
        """
        loss = get_backend(self.loss_backend)
        encoder_out, out_lens, _ = self.encoder(x, x_lens, warmup=warmup)
        valid = torch.arange(tokens.size(1), device=tokens.device) < token_lens[:, None]
        tokens = tokens.masked_fill(~valid, BLANK_ID)
        decoder_out = self.decoder(nn.functional.pad(tokens, (1, 0), value=BLANK_ID))
        zeros = torch.zeros_like(token_lens)
        boundary = torch.stack([zeros, zeros, token_lens, out_lens], dim=1).long()

        simple, (px_grad, py_grad) = loss.simple_loss(
            self.simple_am_proj(encoder_out),
            self.simple_lm_proj(decoder_out),
            tokens,
            boundary,
            blank=BLANK_ID,
            am_scale=self.am_scale,
            lm_scale=self.lm_scale,
            delay_penalty=self.delay_penalty,
        )
        ranges = loss.prune_ranges(px_grad, py_grad, boundary, self.prune_range)
        bias = self.joiner.output_linear.get_bias()
        assert bias is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and pruned_scale(warmup) > 0):
            pruned = loss.pruned_loss(
                self.joiner.encoder_proj(encoder_out),
                self.joiner.decoder_proj(decoder_out),
                self.joiner.output_linear.get_weight(),
                bias,
                tokens,
                ranges,
                boundary,
                blank=BLANK_ID,
                delay_penalty=self.delay_penalty,
            )
        losses = {"simple": simple, "pruned": pruned}
        if monitor:
            losses["outside"] = loss.pruned_mass(px_grad, py_grad, ranges, boundary)
        return losses
