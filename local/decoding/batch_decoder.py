"""The encoder on batches of features, and the decoding methods on its output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from local.common.errors import UserError
from local.common.meter import Meter
from local.common.out_of_memory import in_halves_on_oom
from local.common.progress import Progress
from local.data.batch import Batch, check_lost
from local.data.datamodule import Batches
from local.decoding.recogniser import Recogniser
from model.encoder.subsampling import subsampled
from model.search import Hypothesis
from model.transducer import Transducer

import torch


@dataclass
class Encoded:
    """N utterances after the encoder: out (N, T', C), lens (N,) frames of it, N ids."""

    out: torch.Tensor
    lens: torch.Tensor
    ids: list[str]


class BatchDecoder:
    """Run the encoder once and every method on its output; `usage` has time and memory of "encoder" and of each method."""

    def __init__(self, model: Transducer, recognisers: dict[str, Recogniser], tail_frames: int, device: torch.device) -> None:
        """Keep a model in evaluation mode on `device`, methods by name, and key decode.tail_frames."""
        self.model, self.recognisers, self.tail_frames, self.device = model, recognisers, tail_frames, device
        self.usage = Meter(device)
        # The first call compiles and loads; that time must not count for the first set.
        empty = torch.zeros(1, 2, model.encoder.d_model, device=device)
        for recogniser in recognisers.values():
            recogniser(empty, torch.tensor([2]))

    def encode(self, x: torch.Tensor, x_lens: torch.Tensor, ids: list[str]) -> list[Encoded]:
        """Encode features (N, T, F) of x_lens (N,) frames, in parts if memory is short.

        Raises `UserError` naming an utterance that is too long for the memory.
        """

        @torch.no_grad()
        def work(rows: slice) -> Encoded:
            with self.usage.of("encoder"):
                lens = x_lens[rows].to(self.device)
                part = x[rows, : int(lens.max())].to(self.device)
                out, out_lens, _ = self.model.encoder(*with_tail(part, lens, self.tail_frames))
                # An utterance too short for the front end has no speech; its tail must not be searched.
                return Encoded(out, out_lens.masked_fill(subsampled(lens) < 1, 0), ids[rows])

        return in_halves_on_oom(work, ids, self.device)

    def run(self, x: torch.Tensor, x_lens: torch.Tensor, ids: list[str]) -> dict[str, list[Hypothesis]]:
        """Return, by method, one hypothesis per utterance; arguments and errors as for `encode`."""
        results: dict[str, list[Hypothesis]] = {method: [] for method in self.recognisers}
        for encoded in self.encode(x, x_lens, ids):
            for method, recogniser in self.recognisers.items():
                with self.usage.of(method):
                    results[method] += search(recogniser, encoded, self.device)
        return results


def search(recogniser: Recogniser, encoded: Encoded, device: torch.device) -> list[Hypothesis]:
    """Return one hypothesis per utterance; search on `device`, in halves if memory is short."""

    def work(rows: slice) -> list[Hypothesis]:
        return recogniser(encoded.out[rows].to(device), encoded.lens[rows].to(device))

    return [h for part in in_halves_on_oom(work, encoded.ids, device) for h in part]


def with_progress(batches: Batches, action: str, part: str) -> Iterator[Batch]:
    """Yield batches and show progress as `action`; warn of unreadable utterances.

    Raises `UserError` if all, or more than data.max_lost of them, are unreadable.
    """
    found = 0
    with Progress(batches.num_cuts, f"{action} {part}", "utt") as bar:
        for batch in batches:
            yield batch
            found += len(batch)
            bar.update(len(batch))
            check_lost(part, batches.skipped, batches.num_cuts, batches.max_lost, batches.last_problem)
    if not found:
        last = f"; the last: {problem}" if (problem := batches.last_problem) else ""
        raise UserError(f"{part}: none of its {batches.num_cuts} utterances could be read{last}")
    check_lost(part, batches.skipped, batches.num_cuts, batches.max_lost, batches.last_problem)
    if batches.skipped:
        print(f"warning: {part}: {batches.skipped} of {batches.num_cuts} utterances left out", file=sys.stderr)


def with_tail(x: torch.Tensor, x_lens: torch.Tensor, tail: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Append `tail` quiet frames to features (N, T, F) of x_lens (N,) frames, so that late tokens are still emitted.

    Quiet is the minimum of each channel in the utterance: to digital silence many models would answer with words.
    """
    if tail == 0:
        return x, x_lens
    beyond = (torch.arange(x.shape[1], device=x.device) >= x_lens.unsqueeze(1)).unsqueeze(2)
    quiet = x.masked_fill(beyond, torch.inf).amin(1, keepdim=True)
    x = torch.where(beyond, quiet, x)
    return torch.cat([x, quiet.expand(-1, tail, -1)], dim=1), x_lens + tail
