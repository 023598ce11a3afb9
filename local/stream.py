"""Recognise a file as if it were arriving from a microphone.

.venv/bin/python -m local.stream FILE.wav [--checkpoint EXP/averaged.pt] [--method greedy_search] [--chunk 0.32]
    [--real-time] [--endpoint] [--endpoint-rules 2.4 1.2 20] [--conf FILE] [decode.beam=8 ...]

It prints partial results, each utterance with its beginning and end in seconds, and the time that recognition took.
With --real-time audio arrives at the speed of speech, otherwise as fast as it is recognised.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from local.artifacts.checkpoint import load_averaged
from local.common.cli import add_config_arguments, choose_device, make_parser, program
from local.common.errors import UserError, reason
from local.common.visible import unescaped, visible
from local.config.methods import METHODS
from local.config.schema import Channel, DecodeConfig
from local.corpus.audio_files import check_audio
from local.corpus.audio_reading import BadAudio, load_audio
from local.corpus.pairs import whole_file
from local.corpus.screening import LEVELS, as_decoded
from local.data.channels import TAKEN, choose
from local.data.text import TextNormaliser
from local.data.tokenizer import lang_dir
from local.decoding.endpoint import EndpointRules
from local.decoding.recogniser import make_stream
from local.decoding.resources import Resources
from local.decoding.streaming import Segment, StreamingRecogniser, frames_per_chunk
from model.search import Stream
from model.search.scorers import Scorer

import torch
from lhotse import MonoCut, SupervisionSegment

PIECE_SECONDS = 0.02  # audio arrives in pieces of this length, as from a sound card
ERASE = "\r\x1b[K"  # go back to the line's beginning and erase the line


def make_search(name: str, resources: Resources, options: DecodeConfig) -> tuple[Stream, list[tuple[Scorer, float]]]:
    """Return a method's search and the scorers of its second pass.

    Raises `UserError` if the method cannot be streamed, or one of its files is missing or does not fit.
    """
    method, own = METHODS[name], options.of_method(name)
    if method.oracle:
        raise UserError(f"{name}: oracle methods need reference transcripts and cannot be used for streaming")
    return make_stream(name, resources, own), [resources.scorer(term, own) for term in method.second_pass]


def read_audio(path: Path, sampling_rate: int, channel: Channel = "first") -> torch.Tensor:
    """Return the samples (S,) of a file at `sampling_rate` (Hz), resampled if necessary; of several channels, `channel`.

    Raises `UserError` naming the file if it cannot be read, or has several channels and each would be an utterance.
    """
    try:
        info = check_audio(path)
    except BadAudio as e:
        raise UserError(f"{path}: {e}") from None
    recording, _ = whole_file(path.stem, path, "", None)
    segment = SupervisionSegment(path.stem, path.stem, 0.0, info.num_samples / info.sampling_rate)
    try:
        recording = as_decoded(recording, [info])
        if info.num_channels > 1:
            if channel == "both":
                raise UserError(f"{path}: has {info.num_channels} channels; say data.channel=first, mix or loudest")
            segment.channel, segment.custom = list(range(info.num_channels)), {LEVELS: info.levels}
            ((recording, segment),) = choose(recording, segment, channel)
            print(f"{path}: has {info.num_channels} channels: data.channel={channel} {TAKEN[channel]}", file=sys.stderr)
        cut = MonoCut(segment.id, 0.0, segment.duration, segment.channel, recording=recording)
        return torch.from_numpy(load_audio(cut if cut.sampling_rate == sampling_rate else cut.resample(sampling_rate))[0])
    except UserError:
        raise
    except Exception as e:  # lhotse's readers raise exceptions of many types
        raise UserError(f"{path}: unreadable: {reason(e)[:200]}") from None


def arriving(audio: torch.Tensor, sampling_rate: int, real_time: bool) -> Iterator[torch.Tensor]:
    """Yield the samples (S,) in pieces; with `real_time`, each at the time at which it would have been recorded."""
    start = time.perf_counter()
    done = 0
    for piece in audio.split(max(1, int(PIECE_SECONDS * sampling_rate))):
        done += len(piece)
        if real_time:
            time.sleep(max(0.0, start + done / sampling_rate - time.perf_counter()))
        yield piece


class Display:
    """Results on standard output: one line that is rewritten on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._rewrites, self._shown = sys.stdout.isatty(), ""

    def partial(self, segment: Segment) -> None:
        """Show a partial result if it changed."""
        if segment.text == self._shown:
            return
        self._shown = segment.text
        if self._rewrites:
            width = shutil.get_terminal_size().columns - 1
            unescaped(sys.stdout).write(ERASE)
            print(visible(segment.text)[-width:], end="", flush=True)
        else:
            print(f"{segment.end:.2f}: {visible(segment.text)}", flush=True)

    def final(self, segment: Segment) -> None:
        """Show an utterance that has ended, unless it has no words."""
        if self._rewrites:
            unescaped(sys.stdout).write(ERASE)
        if segment.text:
            print(f"{segment.begin:.2f} - {segment.end:.2f}: {visible(segment.text)}", flush=True)
        self._shown = ""


def stream(recogniser: StreamingRecogniser, audio: torch.Tensor, real_time: bool) -> None:
    """Recognise audio (S,) at the recogniser's rate piece by piece; show results and the time that they took."""
    rate, display = recogniser.sampling_rate, Display()
    busy, start = 0.0, time.perf_counter()
    for piece in arriving(audio, rate, real_time):
        began = time.perf_counter()
        for segment in recogniser.accept(piece, rate):
            display.final(segment)
        display.partial(recogniser.partial())
        busy += time.perf_counter() - began
    began = time.perf_counter()
    for segment in recogniser.finish():
        display.final(segment)
    now, seconds = time.perf_counter(), len(audio) / rate
    busy += now - began
    print(f"{seconds:.2f} s of audio recognised in {busy:.2f} s: RTF {busy / seconds:.4f}")
    if real_time:
        print(f"the final result came {1000 * (now - start - seconds):.0f} ms after the end of the audio")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    rules = EndpointRules()
    parser = make_parser(__doc__, conf=False)
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="audio of any sampling rate; data.channel chooses of several channels"
    )
    add_config_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, default=Path("exp/tiny/averaged.pt"), help="%(default)s")
    parser.add_argument("--method", choices=list(METHODS), default="modified_beam_search", help="%(default)s")
    parser.add_argument("--chunk", type=float, default=0.32, metavar="SECONDS", help="%(default)s")
    parser.add_argument("--real-time", action="store_true", help="audio arrives at the speed of speech")
    parser.add_argument("--endpoint", action="store_true", help="find the ends of utterances")
    defaults = f"{rules.nothing_said} {rules.silence} {rules.longest}"
    help_rules = f"silence before the first word, silence after a word, longest utterance: {defaults}"
    parser.add_argument("--endpoint-rules", type=float, nargs=3, metavar="SECONDS", help=help_rules)
    parser.add_argument("--data-dir", type=Path, help="prepared data, for fast_beam_search_LG")
    args = parser.parse_intermixed_args(argv)
    if args.endpoint_rules:
        rules = EndpointRules(*args.endpoint_rules)
    model, cfg, tokenizer = load_averaged(args.checkpoint, args.overrides, args.conf)
    audio = read_audio(args.file, cfg.features.sampling_rate, cfg.data.channel)
    device = choose_device(cfg.decode.num_threads)
    lang = lang_dir(args.data_dir, cfg.lang) if args.data_dir else None
    resources = Resources(model.to(device), tokenizer, device, args.checkpoint.parent, lang, clean=TextNormaliser(cfg.lang))
    search, second_pass = make_search(args.method, resources, cfg.decode)
    recogniser = StreamingRecogniser(
        model.encoder,
        search,
        tokenizer,
        cfg.features,
        chunk_frames=frames_per_chunk(args.chunk),
        tail_frames=cfg.decode.tail_frames,
        endpoint=rules if args.endpoint or args.endpoint_rules else None,
        second_pass=second_pass,
    )
    # The first call compiles and loads; that must not happen while audio arrives.
    recogniser.accept(torch.zeros(cfg.features.sampling_rate), cfg.features.sampling_rate)
    recogniser.finish()
    stream(recogniser, audio, args.real_time)


if __name__ == "__main__":
    main()
