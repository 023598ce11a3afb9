"""The transducer: encoder, stateless decoder, joiner, and the pruned RNN-T loss over them."""

from __future__ import annotations

from typing import Any

from model.ctc import CtcHead, consistency_loss, ctc_loss
from model.decoder import StatelessDecoder
from model.encoder.lstm import LstmEncoder
from model.joiner import Joiner
from model.layers.scaled import ScaledLinear
from model.loss import get_backend
from model.loss.interface import JoinerInput, Lattice
from model.loss.sharpness import token_peaks

import torch
from torch import Tensor, nn

BLANK_ID, UNK_ID = 0, 2


def pruned_scale(warmup: float) -> float:
    """Return the weight of the pruned loss: 0 at first, because untrained simple losses give useless pruning bounds."""
    return 0.0 if warmup < 1 else 0.1 if warmup < 2 else 1.0


def training_loss(losses: Any, scales: Any, pruned_weight: float) -> Tensor:
    """Return what training minimises, from the losses of utterances or from their sums.

    losses: its attributes `simple`, `pruned`, and `ctc` and `consistency`, which may be None. scales: section `loss`.
    pruned_weight: `pruned_scale(warmup)`. If it is 0, the pruned loss is left out: it has no gradient and may be infinite.
    """
    loss: Tensor = scales.simple_scale * losses.simple
    if pruned_weight > 0:
        loss = loss + pruned_weight * losses.pruned
    if losses.ctc is not None:
        loss = loss + scales.ctc_scale * losses.ctc
    if losses.consistency is not None:
        loss = loss + scales.cr_scale * losses.consistency
    return loss


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
        ctc: bool = False,
    ) -> None:
        """ctc: add a CTC head to the encoder."""
        super().__init__()
        self.encoder, self.decoder, self.joiner = encoder, decoder, joiner
        self.context_size, self.vocab_size = decoder.context_size, decoder.vocab_size
        decoder_dim = decoder.embedding.weight.size(1)
        self.simple_am_proj = ScaledLinear(encoder.d_model, self.vocab_size, initial_speed=0.5)
        self.simple_lm_proj = ScaledLinear(decoder_dim, self.vocab_size)
        self.ctc_head = CtcHead(encoder.d_model, self.vocab_size) if ctc else None  # last: the others' initial values stay
        self.loss_backend = loss_backend
        self.prune_range = prune_range
        self.am_scale, self.lm_scale, self.delay_penalty = am_scale, lm_scale, delay_penalty

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        tokens: Tensor,
        token_lens: Tensor,
        warmup: float = 1.0,
        monitor: bool = False,
        second: Tensor | None = None,
        sharpness: bool = False,
    ) -> dict[str, Tensor]:
        """Return the losses of each utterance, in nats: {"simple": (N,), "pruned": (N,)}, with a CTC head also "ctc".

        x: (N, T, F) features. x_lens: (N,), their frames. tokens: (N, U) int64, padded with any id. token_lens: (N,).
        warmup: batches so far / warm-up batches. Below 1 the pruned loss has weight 0 and gets no gradient.
        monitor: also return "outside": (N,), the share of the simple lattice's posterior mass outside the band.
        second: (N, T, F), another augmented copy of x. Then each loss is the mean over both copies, and a CTC head also gives
        "consistency".
        sharpness: also return "sharpness": (N,), the sum of `token_peaks` over an utterance's tokens.
        """
        if second is not None:
            x, x_lens, token_lens = torch.cat([x, second]), x_lens.repeat(2), token_lens.repeat(2)
            tokens = tokens.repeat(2, 1)
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
            projections = self.joiner.encoder_proj(encoder_out), self.joiner.decoder_proj(decoder_out)
            joined = JoinerInput(*projections, self.joiner.output_linear.get_weight(), bias)
            pruned = loss.pruned_loss(*joined, tokens, ranges, boundary, blank=BLANK_ID, delay_penalty=self.delay_penalty)
        losses = {"simple": simple, "pruned": pruned}
        if monitor:
            losses["outside"] = loss.pruned_mass(px_grad, py_grad, ranges, boundary)
        if sharpness:
            losses["sharpness"] = token_peaks(joined, ranges, Lattice(tokens, boundary, BLANK_ID)).sum(dim=1)
        if self.ctc_head is not None:
            log_probs = self.ctc_head(encoder_out)
            losses["ctc"] = ctc_loss(log_probs, out_lens, tokens, token_lens, BLANK_ID)
        if second is not None:
            losses = {name: values.view(2, -1).mean(dim=0) for name, values in losses.items()}
            if self.ctc_head is not None:
                first, other = log_probs.chunk(2)
                losses["consistency"] = consistency_loss(first, other, out_lens.chunk(2)[0])
        return losses
