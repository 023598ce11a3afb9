"""Recognition of files of any length in bounded memory: windows in batches across files, or streaming with endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from local.common.progress import Progress
from local.config.schema import FeaturesConfig
from local.data.durations import FRAME_SECONDS
from local.data.features import PADDING
from local.data.tokenizer import Tokenizer
from local.decoding.audio_pieces import Audio
from local.decoding.batch_decoder import BatchDecoder
from local.decoding.streaming import FeatureStream, StreamingRecogniser, words_of
from local.decoding.subtitles import Result
from local.decoding.windows import Cutter, Joiner, Window
from local.decoding.word_times import Word, level_of, timed_words
from model.encoder.subsampling import subsampled

import torch
from torch.nn.utils.rnn import pad_sequence

CPU_SECONDS = 100.0  # of audio per batch on a CPU: larger batches are not faster there, and progress is seen less often
BATCHES = 2  # that wait, so that windows of similar length can be decoded together


@dataclass
class Recording:
    """One channel of a file while it is recognised."""

    name: str
    channel: int
    duration: float
    joiner: Joiner = field(default_factory=Joiner)

    def result(self) -> Result:
        """Return what was recognised."""
        return Result(self.name, self.channel, self.duration, self.joiner.segments)


def recordings_of(audio: Audio) -> list[Recording]:
    """Return a recording for each channel that was chosen; of several the names end in `-0`, `-1`, as in prepared data."""
    several = len(audio.rows) > 1 and not audio.mix
    rows = audio.rows if several else audio.rows[:1]
    return [Recording(audio.path.stem + (f"-{c}" if several else ""), c, audio.seconds) for c in rows]


class WindowRecogniser:
    """Files in windows, in batches across files."""

    def __init__(
        self,
        decoder: BatchDecoder,
        tokenizer: Tokenizer,
        features: FeaturesConfig,
        *,
        batch_seconds: float,
        window: float,
        overlap: float,
        pause: float,
    ) -> None:
        """Keep a decoder of one method. batch_seconds: of audio per batch, padding included; the others as in `Cutter`."""
        Cutter(window, overlap, pause)  # this checks them
        self._decoder, self._tokenizer, self._features = decoder, tokenizer, features
        self._cuts = (window, overlap, pause)
        cpu = decoder.device.type == "cpu"
        self._frames = max(min(batch_seconds, CPU_SECONDS) if cpu else batch_seconds, window) / FRAME_SECONDS

    def __call__(self, audios: Iterable[Audio], bar: Progress) -> Iterator[Result]:
        """Yield the results in order. Raises `UserError` naming a file that cannot be read. bar: counts seconds of audio."""
        pool: list[tuple[Recording, Window]] = []
        ended: list[Recording] = []
        for audio in audios:
            recordings = recordings_of(audio)
            for row, windows in self._windows(audio, len(recordings)):
                pool += [(recordings[row], window) for window in windows]
                if sum(len(window.features) for _, window in pool) >= BATCHES * self._frames:
                    self._decode(pool, bar)
                    pool = []
                    yield from (recording.result() for recording in ended)
                    ended = []
            ended += recordings
        self._decode(pool, bar)
        yield from (recording.result() for recording in ended)

    def _windows(self, audio: Audio, rows: int) -> Iterator[tuple[int, list[Window]]]:
        """Yield the windows of each row as they are read."""
        floor = self._decoder.model.encoder.feature_floor
        floor = None if floor is None else floor.cpu()
        streams = [(FeatureStream(self._features), Cutter(*self._cuts)) for _ in range(rows)]
        for samples in audio.pieces(self._features.sampling_rate):
            for row, (stream, cutter) in enumerate(streams):
                yield row, cutter.accept(floored(stream.accept(samples[row]), floor))
        for row, (stream, cutter) in enumerate(streams):
            last = floored(stream.finish(), floor)
            yield row, cutter.accept(last) + cutter.finish()

    def _decode(self, pool: Sequence[tuple[Recording, Window]], bar: Progress) -> None:
        """Decode the windows, those of similar length together, and add their words to the recordings."""
        found: list[list[Word]] = [[] for _ in pool]
        for places in self._batches([len(window.features) for _, window in pool]):
            x = [pool[place][1].features for place in places]
            ids = [f"{pool[place][0].name} from {pool[place][1].begin * FRAME_SECONDS:.2f} s" for place in places]
            lens = torch.tensor([len(features) for features in x])
            padded = pad_sequence(x, batch_first=True, padding_value=PADDING)
            (hypotheses,) = self._decoder.run(padded, lens, ids).values()
            for place, hypothesis in zip(places, hypotheses, strict=True):
                found[place] = timed_words(hypothesis, self._tokenizer, level_of(pool[place][1].features))
            bar.update(round(sum(len(pool[p][1].features) - pool[p][1].overlap for p in places) * FRAME_SECONDS))
        for (recording, window), words in zip(pool, found, strict=True):
            recording.joiner.add(window.begin, window.overlap, words)

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the places of the lengths in batches; those too short for the front end are in none."""
        batches: list[list[int]] = []
        for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
            if subsampled(lengths[place]) < 1:
                continue
            if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= self._frames:
                batches[-1].append(place)
            else:
                batches.append([place])
        return batches


def floored(features: torch.Tensor, floor: torch.Tensor | None) -> torch.Tensor:
    """Return features (T, F) as the encoder sees them: lifted to its floor (F,)."""
    return features if floor is None else torch.maximum(features, floor)


def by_endpoints(recogniser: StreamingRecogniser, audios: Iterable[Audio], bar: Progress) -> Iterator[Result]:
    """Yield the results of streaming with endpoint rules; arguments and errors as in `WindowRecogniser`."""
    rate, tokenizer = recogniser.sampling_rate, recogniser.tokenizer
    for audio in audios:
        for row, recording in enumerate(recordings_of(audio)):  # the file is read once for each channel
            done = 0
            for samples in audio.pieces(rate):
                segments = recogniser.accept(samples[row], rate)
                recording.joiner.segments += [words_of(segment, tokenizer) for segment in segments]
                before, done = done, done + samples.shape[1]
                bar.update(round(done / rate) - round(before / rate))  # a piece may be a fraction of a second
            recording.joiner.segments += [words_of(segment, tokenizer) for segment in recogniser.finish()]
            yield recording.result()
