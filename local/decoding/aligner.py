"""Transcripts aligned to their audio by a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from local.common.errors import UserError
from local.common.out_of_memory import in_halves_on_oom
from local.data.batch import Batch
from local.data.durations import FRAME_SECONDS
from local.data.tokenizer import UNK_ID, Tokenizer
from local.decoding.aligned import Aligned
from local.decoding.batch_decoder import BatchDecoder, Encoded
from local.decoding.word_times import levels_of, timed_tokens, timed_words
from model.alignment import ctc_alignments, transducer_alignments
from model.encoder.subsampling import subsampled
from model.search import Hypothesis
from model.transducer import Transducer

import torch

Tokens = Sequence[Sequence[int]]


def by_transducer(model: Transducer, encoded: Encoded, tokens: Tokens) -> list[Hypothesis | None]:
    """Return the best paths through the transducer's lattice."""
    return transducer_alignments(model, encoded.out, encoded.lens, tokens)


def by_ctc(model: Transducer, encoded: Encoded, tokens: Tokens) -> list[Hypothesis | None]:
    """Return the best paths through the CTC head."""
    assert model.ctc_head is not None
    return ctc_alignments(model.ctc_head(encoded.out), encoded.lens, tokens, model.blank_id)


METHODS: dict[str, Callable[[Transducer, Encoded, Tokens], list[Hypothesis | None]]] = {
    "transducer": by_transducer,
    "ctc": by_ctc,
}


@dataclass(frozen=True)
class Unaligned:
    """An utterance that cannot be aligned, and why."""

    id: str
    reason: str


class Aligner:
    """Aligns batches by one of `METHODS`."""

    def __init__(self, model: Transducer, tokenizer: Tokenizer, by: str, tail_frames: int, device: torch.device) -> None:
        """Keep a model in evaluation mode on `device`; by: the method; tail_frames: key decode.tail_frames.

        Raises `UserError` if the model has no CTC head and the method needs it.
        """
        if by == "ctc" and model.ctc_head is None:
            raise UserError("--by ctc: the model has no CTC head; train it with loss.ctc_scale above 0, or use --by transducer")
        self.model, self.tokenizer, self.method = model, tokenizer, METHODS[by]
        self._decoder = BatchDecoder(model, {}, tail_frames, device)

    def __call__(self, batch: Batch) -> Iterator[Aligned | Unaligned]:
        """Yield the utterances of a batch. Raises `UserError` naming one that is too long for the memory."""
        tokens = self.tokenizer.encode(batch.texts)
        reasons = [self._problem(*row) for row in zip(batch.texts, tokens, batch.input_lens.tolist(), strict=True)]
        good = [place for place, reason in enumerate(reasons) if not reason]
        paths = dict(zip(good, self._paths(batch, good, [tokens[place] for place in good]), strict=True))
        levels = levels_of(batch.inputs, batch.input_lens, self.model.encoder.feature_floor)
        for place, (name, reason) in enumerate(zip(batch.ids, reasons, strict=True)):
            path = paths.get(place)
            if path is None:
                yield Unaligned(name, reason or f"its {len(tokens[place])} tokens need more frames than it has")
                continue
            words = timed_words(path, self.tokenizer, levels[place])
            frames = int(batch.input_lens[place])
            score = path.score / max(subsampled(frames + self._decoder.tail_frames), 1)  # the path runs over the tail, too
            yield Aligned(name, frames * FRAME_SECONDS, score, words, timed_tokens(path, self.tokenizer, words))

    def _problem(self, text: str, tokens: Sequence[int], frames: int) -> str:
        """Return why a transcript cannot be aligned; "" if it may. frames: of the features."""
        if UNK_ID in tokens:
            return f"the model has no token for {' '.join(self.tokenizer.lost_characters(text))}"
        if not tokens:
            return "its transcript is empty"
        fits = len(tokens) <= subsampled(frames)
        return "" if fits else f"its {len(tokens)} tokens are more than its {subsampled(frames)} frames of the encoder's output"

    def _paths(self, batch: Batch, places: Sequence[int], tokens: Tokens) -> list[Hypothesis | None]:
        """Return the best paths of the utterances at `places`."""
        if not places:
            return []
        found: list[Hypothesis | None] = []
        for encoded in self._decoder.encode(batch.inputs[places], batch.input_lens[places], [batch.ids[i] for i in places]):
            share = tokens[len(found) : len(found) + len(encoded.ids)]

            def work(rows: slice, encoded: Encoded = encoded, share: Tokens = share) -> list[Hypothesis | None]:
                part = Encoded(encoded.out[rows], encoded.lens[rows], encoded.ids[rows])
                return self.method(self.model, part, share[rows])

            found += [h for half in in_halves_on_oom(work, encoded.ids, encoded.out.device, "align") for h in half]
        return found
