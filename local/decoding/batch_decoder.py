"""The encoder on a batch of features, and every asked method on its output."""

from __future__ import annotations

from local.common.meter import Meter
from local.common.out_of_memory import in_halves_on_oom
from local.decoding.recogniser import Recogniser
from model.encoder.subsampling import subsampled
from model.search import Hypothesis
from model.transducer import Transducer

import torch


class Decoder:
    """Runs the encoder once and every method on its output, and measures each."""

    def __init__(self, model: Transducer, recognisers: dict[str, Recogniser], tail_frames: int, device: torch.device) -> None:
        self.model, self.recognisers, self.tail_frames, self.device = model, recognisers, tail_frames, device
        self.usage = Meter(device)
        # Whatever is compiled or loaded at the first call should not count as time of the first set.
        nothing = torch.zeros(1, 2, model.encoder.d_model, device=device)
        for recogniser in recognisers.values():
            recogniser(nothing, torch.tensor([2]), [""])

    @torch.no_grad()
    def encode(self, x: torch.Tensor, x_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, T, F) and their lengths (N,) -> the encoder's output (N, T', C) and its lengths."""
        x, x_lens = x.to(self.device), x_lens.to(self.device)
        out, out_lens, _ = self.model.encoder(*with_tail(x, x_lens, self.tail_frames))
        return out, out_lens.masked_fill(subsampled(x_lens) < 1, 0)  # too short for the front end: nothing was said

    def run(self, x: torch.Tensor, x_lens: torch.Tensor, texts: list[str]) -> dict[str, list[Hypothesis]]:
        """Features (N, T, F), their lengths (N,), references -> per method one hypothesis per utterance."""
        with self.usage.of("encoder"):
            out, out_lens = self.encode(x, x_lens)
        results = {}
        for method, recogniser in self.recognisers.items():
            with self.usage.of(method):
                results[method] = recogniser(out, out_lens, texts)
        return results

    def run_fitting(
        self, x: torch.Tensor, x_lens: torch.Tensor, texts: list[str], ids: list[str]
    ) -> dict[str, list[Hypothesis]]:
        """`run`, in halves where the memory does not suffice. `UserError` naming an utterance that alone is too long."""

        def work(rows: slice) -> dict[str, list[Hypothesis]]:
            return self.run(x[rows, : int(x_lens[rows].max())], x_lens[rows], texts[rows])

        parts = in_halves_on_oom(work, ids, self.device)
        return {method: [h for part in parts for h in part[method]] for method in self.recognisers}


def with_tail(x: torch.Tensor, x_lens: torch.Tensor, tail: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Appends `tail` frames of quiet to features (N, T, F), so that tokens emitted late still come out.

    Quiet is the least that each channel reached in the utterance itself: to digital silence, which a room never has, a model
    that was not trained with it answers with words that nobody said.
    """
    if tail == 0:
        return x, x_lens
    beyond = (torch.arange(x.shape[1], device=x.device) >= x_lens.unsqueeze(1)).unsqueeze(2)
    quiet = x.masked_fill(beyond, torch.inf).amin(1, keepdim=True)
    x = torch.where(beyond, quiet, x)
    return torch.cat([x, quiet.expand(-1, tail, -1)], dim=1), x_lens + tail
