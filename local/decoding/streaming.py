"""Recognition of audio as it arrives: features, encoder and search in chunks give the same results as the whole audio.

There are three units of time: samples; feature frames, one per 10 ms; and encoder frames, one per 4 feature frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from local.common.errors import UserError
from local.config.methods import METHODS
from local.config.schema import Config, FeaturesConfig
from local.data.durations import FRAME_SECONDS
from local.data.features import make_extractor
from local.data.tokenizer import Tokenizer
from local.decoding.endpoint import EndpointRules
from local.decoding.recogniser import make_stream
from local.decoding.resources import Resources
from local.decoding.word_times import TOKEN_SECONDS, Word, level_of, shifted, timed_words
from model.encoder.lstm import LstmEncoder, States
from model.encoder.subsampling import MIN_FRAMES, Conv2dSubsampling, subsampled
from model.search import Hypothesis, Stream, rescore
from model.search.scorers import Scorer

import numpy as np
import torch

STRIDE = math.prod(Conv2dSubsampling.STRIDES)  # feature frames per frame of the encoder
OVERLAP = MIN_FRAMES - STRIDE  # feature frames that two chunks share, because the front end's windows overlap


class FeatureStream:
    """Features of audio in pieces of any size; they equal those of the whole audio up to the rounding of sums.

    A frame's window reaches beyond its 10 ms on both sides. At both ends of the audio the missing samples are mirrored
    (Kaldi's snip_edges=false). Therefore the first frames wait for the samples to mirror, every frame waits for its whole
    window (17.5 ms from its beginning at 16 kHz), and the last one or two, which reach beyond the end, wait for `finish`.
    """

    def __init__(self, features: FeaturesConfig) -> None:
        """features: section `features` of the model's config."""
        self._fbank = make_extractor(features).extractor
        self._length = math.floor(self._fbank.frame_length * features.sampling_rate)
        self._shift = math.floor(self._fbank.frame_shift * features.sampling_rate)
        self._left = (self._length - self._shift) // 2  # samples of a window before its frame
        self._first = self._length - self._left  # samples that the first window needs
        self._none = torch.empty(0, features.num_mel_bins)
        self.reset()

    def reset(self) -> None:
        """Begin a new audio."""
        self._num_samples = 0
        self._samples = torch.empty(0)  # from the next frame's window on

    def accept(self, samples: torch.Tensor) -> torch.Tensor:
        """Take the next samples (S,), float32 in [-1, 1]; return features (T, F) of the frames that they complete."""
        before, self._num_samples = self._num_samples, self._num_samples + len(samples)
        self._samples = torch.cat([self._samples, samples])
        if before < self._first <= self._num_samples:
            self._mirror_beginning()
        return self._complete() if self._num_samples >= self._first else self._none

    def finish(self) -> torch.Tensor:
        """End the audio; return its last features (T, F), none for audio below 8.75 ms. Call `reset` before the next audio."""
        total = (self._num_samples + self._shift // 2) // self._shift
        beyond = (total - 1) * self._shift + self._length - self._left - self._num_samples
        if total == 0 or self._num_samples < beyond:  # the mirror image would not fill the window
            return self._none
        if self._num_samples < self._first:
            self._mirror_beginning()
        self._samples = torch.cat([self._samples, self._samples[-beyond:].flip(0)])
        return self._complete()

    def _mirror_beginning(self) -> None:
        self._samples = torch.cat([self._samples[: self._left].flip(0), self._samples])

    def _complete(self) -> torch.Tensor:
        """Return features of the windows that are complete."""
        if len(self._samples) < self._length:
            return self._none
        # With an (empty) remainder as argument, lhotse mirrors no samples itself.
        features, rest = self._fbank.online_inference(self._samples.unsqueeze(0), torch.empty(1, 0))
        self._samples = rest[0]
        return features[0]


class EncoderStream:
    """The encoder over features in pieces of any size, in chunks; its output equals that of the whole utterance."""

    def __init__(self, encoder: LstmEncoder, chunk_frames: int, tail_frames: int) -> None:
        """chunk_frames: feature frames per chunk. tail_frames: quiet frames after an utterance, as in `with_tail`.

        Raises `UserError` if chunk_frames is not a multiple of the front end's stride, or if the encoder looks ahead.
        """
        if chunk_frames < STRIDE or chunk_frames % STRIDE:
            raise UserError(f"a chunk has {chunk_frames} frames: must be a multiple of {STRIDE}")
        if any(isinstance(m, torch.nn.InstanceNorm1d) for m in encoder.modules()):
            raise UserError("model.encoder.norm=instance cannot be streamed: it normalises over whole utterances")
        self.encoder, self.chunk_frames, self.tail_frames = encoder, chunk_frames, tail_frames
        self.device = encoder.encoder_embed.out.weight.device
        self._waiting = torch.empty(0, encoder.num_features)
        self._begin()

    def _begin(self) -> None:
        self._states: States | None = None
        self._encoded = 0  # feature frames of earlier chunks
        self._quiet = torch.full((self._waiting.shape[1],), torch.inf)  # minimum of each channel

    def accept(self, features: torch.Tensor) -> None:
        """Take the next feature frames (T, F)."""
        self._waiting = torch.cat([self._waiting, features])

    def next_chunk(self) -> torch.Tensor | None:
        """Return the next chunk's output (1, chunk_frames / 4, C); None if its frames are not complete."""
        if len(self._waiting) < self.chunk_frames + OVERLAP:
            return None
        x = self._waiting[: self.chunk_frames + OVERLAP]
        self._waiting = self._waiting[self.chunk_frames :]
        self._encoded += self.chunk_frames
        self._quiet = torch.minimum(self._quiet, x.amin(0))
        return self._encode(x)

    def finish(self, everything: bool = True) -> tuple[torch.Tensor, int]:
        """End the utterance; return its remaining output (1, T', C), T' >= 0, and its number of feature frames.

        everything: end at the last frame that arrived, else at the last one in a chunk; later ones begin the next utterance.
        """
        x = self._waiting if everything else self._waiting[:OVERLAP]
        self._waiting = self._waiting[len(x) :]
        num_frames = self._encoded + len(x)
        if num_frames < MIN_FRAMES:  # too short for the front end: no speech
            x = x[:0]
        elif self.tail_frames and len(x):
            x = torch.cat([x, torch.minimum(self._quiet, x.amin(0)).expand(self.tail_frames, -1)])
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
    """The result of one utterance, or of its audio so far; `begin` and `end` in seconds from the beginning of the audio.

    The times of `hypothesis` are encoder frames, counted from `begin`; `level` (T,) has the level of each feature frame.
    partial: more audio follows.
    """

    text: str
    hypothesis: Hypothesis
    begin: float
    end: float
    level: np.ndarray = field(compare=False, repr=False)
    partial: bool = False


class StreamingRecogniser:
    """Audio in pieces of any size in, text out. Without endpoint rules the result equals that of local/decode.py.

    With them, encoder and search start again after each utterance, so that its result depends on its own frames alone.
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
        """Keep the parts of a recogniser. Raises `UserError` if encoder (in evaluation mode) or search cannot be streamed.

        chunk_frames: feature frames per chunk, a multiple of 4. tail_frames: quiet frames that follow an utterance.
        second_pass: scorers that reorder the n-best list of each utterance.
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
        """Take the next samples (S,), in [-1, 1]; return the utterances that end within them.

        Raises `UserError` if the sampling rate is not the model's: resampling single pieces would leave seams.
        """
        if sampling_rate != self.sampling_rate:
            raise UserError(f"audio of {sampling_rate} Hz; the model needs {self.sampling_rate} Hz")
        return self._advance(self._features.accept(torch.as_tensor(samples, dtype=torch.float32)))

    def partial(self) -> Segment:
        """Return the current utterance up to its last complete chunk."""
        return self._segment(self._best, self._begin + STRIDE * self._searched, partial=True)

    def finish(self) -> list[Segment]:
        """End the audio; return the remaining utterances, of which the last may be empty. New audio can follow."""
        segments = self._advance(self._features.finish())
        segments.append(self._end(everything=True))
        self._features.reset()
        self._start(0)
        return segments

    def _start(self, begin: int) -> None:
        """Begin an utterance at feature frame `begin` of the audio."""
        self._search.start(1)
        # Of the feature frames since `begin`: those that wait for a chunk; none at the beginning of an audio.
        self._level: np.ndarray = self._level[begin - self._begin :] if begin else np.empty(0)
        self._begin: int = begin
        self._searched = 0
        self._best = self._search.results(final=False)[0]

    def _advance(self, features: torch.Tensor) -> list[Segment]:
        """Take feature frames (T, F); return the utterances that end within them."""
        self._encoder.accept(features)
        self._level = np.concatenate([self._level, level_of(features, self._encoder.encoder.feature_floor)])
        ended = []
        while (out := self._encoder.next_chunk()) is not None:
            self._take(out)
            self._best = self._search.results(final=False)[0]
            last = self._best.times[-1] if self._best.times else None
            if self._rules is not None and self._rules.fired(self._searched, last, TOKEN_SECONDS):
                ended.append(self._end(everything=False))
        return ended

    def _take(self, out: torch.Tensor) -> None:
        """Search encoder output (1, T', C)."""
        self._search.advance(out, torch.tensor([out.shape[1]]))
        self._searched += out.shape[1]

    def _end(self, everything: bool) -> Segment:
        """End the utterance as `EncoderStream.finish` does and begin the next one."""
        out, num_frames = self._encoder.finish(everything)
        self._take(out)
        best = self._search.results()
        if self._second_pass:
            best = rescore(best, self._second_pass)
        end = self._begin + num_frames
        segment = self._segment(best[0], end)
        self._start(end)
        return segment

    def _segment(self, hypothesis: Hypothesis, end: int, partial: bool = False) -> Segment:
        text = self.tokenizer.decode(hypothesis.tokens, partial)
        level = self._level[: end - self._begin]
        return Segment(text, hypothesis, self._begin * FRAME_SECONDS, end * FRAME_SECONDS, level, partial)


def words_of(segment: Segment, tokenizer: Tokenizer) -> list[Word]:
    """Return the words of an utterance with times from the beginning of the audio."""
    return shifted(timed_words(segment.hypothesis, tokenizer, segment.level, segment.partial), segment.begin)


def streaming_recogniser(
    name: str, resources: Resources, cfg: Config, chunk: float, endpoint: EndpointRules | None
) -> StreamingRecogniser:
    """Return a recogniser for a method, ready for audio: its first call, which compiles and loads, is done.

    chunk: seconds per call of the encoder. Raises `UserError` if the method cannot be streamed, or one of its files is missing
    or does not fit.
    """
    method, own = METHODS[name], cfg.decode.of_method(name)
    if method.oracle:
        raise UserError(f"{name}: oracle methods need reference transcripts and cannot be used for streaming")
    recogniser = StreamingRecogniser(
        resources.model.encoder,
        make_stream(name, resources, own),
        resources.tokenizer,
        cfg.features,
        chunk_frames=frames_per_chunk(chunk),
        tail_frames=cfg.decode.tail_frames,
        endpoint=endpoint,
        second_pass=[resources.scorer(term, own) for term in method.second_pass],
    )
    recogniser.accept(torch.zeros(cfg.features.sampling_rate), cfg.features.sampling_rate)
    recogniser.finish()
    return recogniser


def frames_per_chunk(seconds: float) -> int:
    """Return the feature frames of a chunk of `seconds`, rounded to 0.04 s. Raises `UserError` below 0.04."""
    if not TOKEN_SECONDS - 1e-6 <= seconds < math.inf:
        raise UserError(f"a chunk has {seconds} seconds: must be at least {TOKEN_SECONDS}")
    return STRIDE * round(seconds / TOKEN_SECONDS)
