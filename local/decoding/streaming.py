"""Recognition of audio as it arrives: features, encoder and search in chunks, with the results of the whole.

Frames are counted thrice: samples; feature frames, one per 10 ms; and the encoder's frames, one per 4 feature frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from local.common.errors import UserError
from local.config.schema import FeaturesConfig
from local.data.durations import FRAME_SECONDS
from local.data.features import make_extractor
from local.data.tokenizer import Tokenizer
from local.decoding.endpoint import EndpointRules
from local.decoding.word_times import TOKEN_SECONDS
from model.encoder.lstm import LstmEncoder, States
from model.encoder.subsampling import MIN_FRAMES, Conv2dSubsampling, subsampled
from model.search import Hypothesis, Stream, rescore
from model.search.scorers import Scorer

import numpy as np
import torch

STRIDE = math.prod(Conv2dSubsampling.STRIDES)  # feature frames per frame of the encoder
OVERLAP = MIN_FRAMES - STRIDE  # feature frames that two chunks share, as the front end's windows overlap


class FeatureStream:
    """Features of audio in pieces of any size: those of the whole, but for the rounding of sums.

    A frame's window reaches beyond its 10 ms on both sides, and at both ends of the audio its samples are mirrored there
    (Kaldi's snip_edges=false). So the first frames wait for the samples to be mirrored, every frame for its whole
    window (17.5 ms from its beginning at 16 kHz), and the one or two that reach beyond the end for `finish`.
    """

    def __init__(self, features: FeaturesConfig) -> None:
        self._fbank = make_extractor(features).extractor
        self._length, self._shift = (
            math.floor(seconds * features.sampling_rate) for seconds in (self._fbank.frame_length, self._fbank.frame_shift)
        )
        self._left = (self._length - self._shift) // 2  # samples of a window before its frame
        self._first = self._length - self._left  # samples that the first window needs
        self._none = torch.empty(0, features.num_mel_bins)
        self.reset()

    def reset(self) -> None:
        """Begins another audio."""
        self._num_samples = 0
        self._samples = torch.empty(0)  # from the next frame's window on

    def accept(self, samples: torch.Tensor) -> torch.Tensor:
        """The next samples (S,), float32 in [-1, 1] -> features (T, F) of the frames that they complete."""
        before, self._num_samples = self._num_samples, self._num_samples + len(samples)
        self._samples = torch.cat([self._samples, samples])
        if self._num_samples < self._first:
            return self._none
        if before < self._first:
            self._mirror_beginning()
        return self._complete()

    def finish(self) -> torch.Tensor:
        """The audio is over -> features (T, F) of its last frames; `reset` begins another one.

        Of audio so short that its mirror image does not fill the window (below 8.75 ms), which lhotse refuses: none.
        """
        total = (self._num_samples + self._shift // 2) // self._shift
        beyond = (total - 1) * self._shift + self._length - self._left - self._num_samples
        if total == 0 or self._num_samples < beyond:
            return self._none
        if self._num_samples < self._first:
            self._mirror_beginning()
        self._samples = torch.cat([self._samples, self._samples[-beyond:].flip(0)])
        return self._complete()

    def _mirror_beginning(self) -> None:
        self._samples = torch.cat([self._samples[: self._left].flip(0), self._samples])

    def _complete(self) -> torch.Tensor:
        """Features of the windows that are complete."""
        if len(self._samples) < self._length:
            return self._none
        # Given an (empty) remainder it mirrors nothing itself.
        features, rest = self._fbank.online_inference(self._samples.unsqueeze(0), torch.empty(1, 0))
        self._samples = rest[0]
        return features[0]


class EncoderStream:
    """The encoder over features in pieces of any size, in chunks of `chunk_frames`, with the output of the whole."""

    def __init__(self, encoder: LstmEncoder, chunk_frames: int, tail_frames: int) -> None:
        """tail_frames: how many frames of quiet follow an utterance, as `local.decoding.batch_decoder.with_tail` appends them.

        Raises `UserError` for chunks that are not a multiple of the front end's stride, or an encoder that looks ahead.
        """
        if chunk_frames < STRIDE or chunk_frames % STRIDE:
            raise UserError(f"chunks of {chunk_frames} frames: a multiple of {STRIDE} is needed")
        if any(isinstance(m, torch.nn.InstanceNorm1d) for m in encoder.modules()):
            raise UserError("a model with model.encoder.norm=instance cannot be streamed: it looks at whole utterances")
        self.encoder, self.chunk_frames, self.tail_frames = encoder, chunk_frames, tail_frames
        self.device = encoder.encoder_embed.out.weight.device
        self._waiting = torch.empty(0, encoder.num_features)
        self._begin()

    def _begin(self) -> None:
        self._states: States | None = None
        self._encoded = 0  # feature frames that chunks have left behind
        self._quiet = torch.full((self._waiting.shape[1],), torch.inf)  # the least of each channel

    def accept(self, features: torch.Tensor) -> None:
        """Takes the next feature frames (T, F)."""
        self._waiting = torch.cat([self._waiting, features])

    def next_chunk(self) -> torch.Tensor | None:
        """The next chunk's output (1, chunk_frames / 4, C); None where its frames have not all come."""
        if len(self._waiting) < self.chunk_frames + OVERLAP:
            return None
        x = self._waiting[: self.chunk_frames + OVERLAP]
        self._waiting = self._waiting[self.chunk_frames :]
        self._encoded += self.chunk_frames
        self._quiet = torch.minimum(self._quiet, x.amin(0))
        return self._encode(x)

    def finish(self, everything: bool = True) -> tuple[torch.Tensor, int]:
        """The utterance ends -> its remaining output (1, T', C), T' perhaps 0, and of how many feature frames it was.

        everything: its last frame is the last that has come; else, the last that a chunk has seen, and those that came
        after it are the beginning of the next utterance.
        """
        x = self._waiting if everything else self._waiting[:OVERLAP]
        self._waiting = self._waiting[len(x) :]
        num_frames = self._encoded + len(x)
        if num_frames < MIN_FRAMES:  # too short for the front end: nothing was said
            x = x[:0]
        elif self.tail_frames and len(x):
            quiet = torch.minimum(self._quiet, x.amin(0))
            x = torch.cat([x, quiet.expand(self.tail_frames, -1)])
        out = self._encode(x)
        self._begin()
        return out, num_frames

    @torch.no_grad()
    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        if subsampled(len(x)) == 0:
            return torch.empty(1, 0, self.encoder.d_model, device=self.device)
        out, _, self._states = self.encoder(x.unsqueeze(0).to(self.device), torch.tensor([len(x)]), self._states)
        return out


@dataclass(frozen=True)
class Segment:
    """What was recognised of one utterance, or of it so far.

    Attributes:
      text: its words.
      hypothesis: tokens, and the frames of the encoder's output, counted from `begin`, at which they were emitted.
      begin, end: where it lies in the audio, in seconds.
    """

    text: str
    hypothesis: Hypothesis
    begin: float
    end: float


class StreamingRecogniser:
    """Audio in pieces of any size in, text out.

    Without endpoint rules all the audio is one utterance, whose result is what local/decode.py gives of it. With them every
    utterance found is one of its own, with encoder and search begun anew: its result is that of its own frames alone.
    """

    def __init__(
        self,
        encoder: LstmEncoder,
        search: Stream,
        tokenizer: Tokenizer,
        features: FeaturesConfig,
        *,
        chunk_frames: int,
        tail_frames: int,
        endpoint: EndpointRules | None = None,
        second_pass: Sequence[tuple[Scorer, float]] = (),
    ) -> None:
        """Raises `UserError` where encoder or search cannot be streamed.

        encoder, search: of one model in evaluation mode, on its device. features: what the model was trained with.
        chunk_frames: feature frames per chunk, a multiple of 4. tail_frames: frames of quiet that follow an utterance.
        endpoint: the rules by which utterances end. second_pass: scorers that reorder the n-best list of one that has ended.
        """
        self.tokenizer, self.sampling_rate = tokenizer, features.sampling_rate
        self._features = FeatureStream(features)
        self._encoder = EncoderStream(encoder, chunk_frames, tail_frames)
        self._search, self._rules, self._second_pass = search, endpoint, second_pass
        try:
            self._start(0)
        except ValueError as e:
            raise UserError(str(e)) from None

    def accept(self, samples: torch.Tensor | np.ndarray, sampling_rate: int) -> list[Segment]:
        """Takes the next samples (S,), in [-1, 1]; returns the utterances that have ended by now and not been returned.

        Raises `UserError` for audio of another rate than the model's: pieces cannot be resampled without seams.
        """
        if sampling_rate != self.sampling_rate:
            raise UserError(f"audio of {sampling_rate} Hz; the model needs {self.sampling_rate} Hz")
        return self._advance(self._features.accept(torch.as_tensor(samples, dtype=torch.float32)))

    def partial(self) -> Segment:
        """The utterance that is going on, as far as its chunks have come."""
        return self._segment(self._best, self._begin + STRIDE * self._searched)

    def finish(self) -> list[Segment]:
        """The audio is over: returns the rest of the utterances, of which the last may be empty. Then another may begin."""
        segments = self._advance(self._features.finish())
        segments.append(self._end(everything=True))
        self._features.reset()
        self._start(0)
        return segments

    def _start(self, begin: int) -> None:
        """An utterance begins at feature frame `begin` of the audio."""
        self._search.start(1)
        self._begin, self._searched = begin, 0
        self._best = self._search.results(final=False)[0]

    def _advance(self, features: torch.Tensor) -> list[Segment]:
        """Takes feature frames (T, F); returns the utterances that end within them."""
        self._encoder.accept(features)
        ended = []
        while (out := self._encoder.next_chunk()) is not None:
            self._take(out)
            self._best = self._search.results(final=False)[0]
            last = self._best.times[-1] if self._best.times else None
            if self._rules is not None and self._rules.fired(self._searched, last, TOKEN_SECONDS):
                ended.append(self._end(everything=False))
        return ended

    def _take(self, out: torch.Tensor) -> None:
        """Searches encoder output (1, T', C)."""
        self._search.advance(out, torch.tensor([out.shape[1]]))
        self._searched += out.shape[1]

    def _end(self, everything: bool) -> Segment:
        """The utterance is over, where `EncoderStream.finish` says; the next one begins."""
        out, num_frames = self._encoder.finish(everything)
        self._take(out)
        best = self._search.results()
        if self._second_pass:
            best = rescore(best, self._second_pass)
        end = self._begin + num_frames
        segment = self._segment(best[0], end)
        self._start(end)
        return segment

    def _segment(self, hypothesis: Hypothesis, end: int) -> Segment:
        begin, until = self._begin * FRAME_SECONDS, end * FRAME_SECONDS
        return Segment(self.tokenizer.decode(hypothesis.tokens), hypothesis, begin, until)


def frames_per_chunk(seconds: float) -> int:
    """The feature frames of chunks of so many seconds, to the nearest 0.04. `UserError` for less than that."""
    if not TOKEN_SECONDS - 1e-6 <= seconds < math.inf:
        raise UserError(f"chunks of {seconds} seconds; at least {TOKEN_SECONDS} are needed")
    return STRIDE * round(seconds / TOKEN_SECONDS)
