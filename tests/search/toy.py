"""Small transducers with random parameters, and random encoder output for them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from local.config import load_config
from local.config.schema import Config
from model.build import build_model
from model.transducer import Transducer

import torch


@functools.cache
def small_config(context_size: int) -> Config:
    """Return the default configuration with all widths 16; cached, because reading it takes longer than most searches."""
    small = {"num_layers": 1, "d_model": 16, "rnn_hidden_size": 16, "dim_feedforward": 16}
    overrides = [f"model.encoder.{key}={value}" for key, value in small.items()]
    overrides += ["model.decoder.dim=16", "model.joiner.dim=16", f"model.decoder.context_size={context_size}"]
    overrides += ["loss.ctc_scale=0.1"]
    return load_config(None, overrides)


def toy_model(seed: int, vocab_size: int = 12, context_size: int = 2, sharpness: float = 1.0) -> Transducer:
    """Return a model of joiner width 16; `sharpness` scales its logits, which training makes sharp."""
    torch.manual_seed(seed)
    model = build_model(small_config(context_size), vocab_size)
    with torch.no_grad():
        for part in (model.decoder.embedding, model.joiner.decoder_proj, model.joiner.encoder_proj):
            part.weight.normal_(std=0.3)
        model.joiner.output_linear.weight.normal_(std=0.4 * sharpness)
        model.joiner.output_linear.bias.normal_()
        model.joiner.output_linear.bias[0] += 2.0 * sharpness
        assert model.ctc_head is not None
        model.ctc_head.output_linear.weight.normal_(std=0.4 * sharpness)
    return model.eval()


def toy_batch(seed: int, num_utts: int = 6, max_frames: int = 20, min_frames: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return encoder output (N, T, 16), random in its padding too, and lengths (N,)."""
    generator = torch.Generator().manual_seed(seed)
    lens = torch.randint(min_frames, max_frames + 1, (num_utts,), generator=generator)
    lens[num_utts // 2] = max_frames
    return torch.randn(num_utts, max_frames, 16, generator=generator) * 2, lens


def log_probs_after(model: Transducer, frame: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """Return the log-probabilities (V,) after the last tokens at a frame (C,) of encoder output, by the model's own modules."""
    context = torch.tensor([tokens[-model.context_size :]])
    decoder_out = model.decoder(context, need_pad=False)[0, 0]
    return model.joiner(frame, decoder_out).log_softmax(-1)


def random_chunks(
    out: torch.Tensor, lens: torch.Tensor, seed: int, sizes: tuple[int, ...] = (0, 0, 1, 1, 2, 7)
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield chunks (N, T, C), with noise in their padding, and lengths (N,); each utterance is cut at its own places."""
    generator = torch.Generator().manual_seed(seed)
    done = torch.zeros_like(lens)
    while (done < lens).any():
        size = torch.tensor(sizes)[torch.randint(len(sizes), lens.shape, generator=generator)].minimum(lens - done)
        chunk = torch.randn(len(lens), int(size.max()) + 1, out.shape[2], generator=generator)
        for n, (begin, count) in enumerate(zip(done.tolist(), size.tolist(), strict=True)):
            chunk[n, :count] = out[n, begin : begin + count]
        done = done + size
        yield chunk, size
