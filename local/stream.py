"""Recognise audio as it arrives: files as if they did, raw samples on standard input, a microphone.

.venv/bin/python -m local.stream FILE.wav ... [--checkpoint EXP/averaged.pt] [--method greedy_search] [--chunk 0.32]
    [--real-time] [--endpoint] [--endpoint-rules 2.4 1.2 20] [--json] [--conf FILE] [decode.beam=8 ...]
arecord -t raw -f S16_LE -r 16000 -c 1 | .venv/bin/python -m local.stream - [...]
.venv/bin/python -m local.stream --microphone [...]

It prints partial results, each utterance with its beginning and end in seconds, and the time that recognition took.
With --real-time a file arrives at the speed of speech, otherwise as fast as it is recognised. With --json every line on
standard output is an object {"type": "partial" | "final", "source", "begin", "end", "text", "words": [{"word", "start", "end",
"confidence", "emitted"}]}, times in seconds. Ctrl-C ends the audio: its last result still comes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from local.artifacts.checkpoint import load_averaged
from local.common.cli import add_files_and_config, choose_device, make_parser, program
from local.common.errors import UserError
from local.common.signals import held_back
from local.common.visible import unescaped, visible
from local.config.methods import METHODS
from local.config.schema import Channel
from local.data.text import TextNormaliser
from local.data.tokenizer import Tokenizer, lang_dir
from local.decoding.audio_pieces import Audio, open_checked
from local.decoding.endpoint import add_endpoint_rules, rules_of
from local.decoding.feature_floor import ensure_floor
from local.decoding.live_audio import PIECE_SECONDS, from_microphone, from_pcm
from local.decoding.resources import Resources
from local.decoding.streaming import Segment, StreamingRecogniser, streaming_recogniser, words_of

import torch

ERASE = "\r\x1b[K"  # go back to the line's beginning and erase the line
STDIN = Path("-")


def arriving(audio: Audio, sampling_rate: int, real_time: bool) -> Iterator[torch.Tensor]:
    """Yield the samples (S,) in pieces; with `real_time`, each at the time at which it would have been recorded."""
    start = time.perf_counter()
    done = 0
    for block in audio.pieces(sampling_rate):
        for piece in block[0].split(max(1, int(PIECE_SECONDS * sampling_rate))):
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

    def note(self, line: str) -> None:
        """Show a line that is not a result."""
        print(line, flush=True)


class JsonDisplay(Display):
    """Results as JSON, one object per line; other lines go to standard error."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._source, self._tokenizer = source, tokenizer

    def _show(self, kind: str, segment: Segment) -> None:
        times = {"begin": round(segment.begin, 3), "end": round(segment.end, 3)}
        line = {"type": kind, "source": self._source, **times, "text": segment.text}
        print(json.dumps({**line, "words": words_of(segment, self._tokenizer)}), flush=True)

    def partial(self, segment: Segment) -> None:
        """Show a partial result if it changed."""
        if segment.text != self._shown:
            self._shown = segment.text
            self._show("partial", segment)

    def final(self, segment: Segment) -> None:
        """Show an utterance that has ended, unless it has no words."""
        self._shown = ""
        if segment.text:
            self._show("final", segment)

    def note(self, line: str) -> None:
        """Show a line that is not a result."""
        print(line, file=sys.stderr, flush=True)


def stream(recogniser: StreamingRecogniser, pieces: Iterator[torch.Tensor], display: Display, real_time: bool) -> None:
    """Recognise audio piece by piece; show results and the time that they took.

    A signal to end, such as Ctrl-C, ends the audio: the rest is recognised and shown, then it is raised.
    """
    rate = recogniser.sampling_rate
    busy, heard, start = 0.0, 0, time.perf_counter()
    stopped: KeyboardInterrupt | None = None
    with held_back() as may_stop:
        while True:
            try:
                with may_stop():
                    piece = next(pieces, None)
            except KeyboardInterrupt as e:  # `Stopped`, or Python's own
                piece, stopped = None, e
            began = time.perf_counter()
            if piece is None:
                break
            heard += len(piece)
            for segment in recogniser.accept(piece, rate):
                display.final(segment)
            display.partial(recogniser.partial())
            busy += time.perf_counter() - began
        for segment in recogniser.finish():
            display.final(segment)
    now, seconds = time.perf_counter(), heard / rate
    busy += now - began
    factor = f": RTF {busy / seconds:.4f}" if heard else ""
    display.note(f"{seconds:.2f} s of audio recognised in {busy:.2f} s{factor}")
    if stopped is not None:
        raise stopped
    if real_time:
        display.note(f"the final result came {1000 * (now - start - seconds):.0f} ms after the end of the audio")


def sources(args: argparse.Namespace, rate: int, channel: Channel) -> Iterator[tuple[str, Iterator[torch.Tensor]]]:
    """Yield name and samples (S,), in pieces, of each input. Raises `UserError` naming one that cannot be used."""
    if args.microphone:
        yield "microphone", from_microphone(rate)
        return
    for path in args.files:
        if path == STDIN:
            yield "-", from_pcm(sys.stdin.buffer, rate)
            continue
        audio = open_checked(path, channel)
        if len(audio.rows) > 1:
            raise UserError(f"{path}: has {len(audio.rows)} channels; say data.channel=first, mix or loudest")
        if audio.note:
            print(audio.note, file=sys.stderr)
        yield str(path), arriving(audio, rate, args.real_time)


def check_inputs(args: argparse.Namespace) -> bool:
    """Return whether audio comes live. Raises `UserError` for inputs that do not go together."""
    live = args.microphone or STDIN in args.files
    if len(args.files) + args.microphone == 0:
        raise UserError("nothing to recognise: name a FILE, '-' for raw samples on standard input, or --microphone")
    if live and len(args.files) + args.microphone > 1:
        raise UserError("'-' and --microphone must be the only input")
    if live and args.real_time:
        raise UserError("--real-time is for files; '-' and --microphone arrive at their own speed")
    if not args.microphone and live and (sys.stdin is None or sys.stdin.isatty()):
        raise UserError("standard input is closed, or a terminal; pipe raw 16-bit samples into '-'")
    return live


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False)
    what = "audio of any sampling rate (data.channel chooses of several channels), or '-': 16-bit samples at the model's rate"
    add_files_and_config(parser, what)
    parser.add_argument("--microphone", action="store_true", help="listen to the microphone (needs the package sounddevice)")
    parser.add_argument("--checkpoint", type=Path, default=Path("exp/tiny/averaged.pt"), help="%(default)s")
    parser.add_argument("--method", choices=list(METHODS), default="modified_beam_search", help="%(default)s")
    parser.add_argument("--chunk", type=float, default=0.32, metavar="SECONDS", help="per call of the encoder; %(default)s")
    parser.add_argument("--real-time", action="store_true", help="files arrive at the speed of speech")
    parser.add_argument("--json", action="store_true", help="one JSON object per result, and nothing else")
    help_endpoint = "find the ends of utterances; the default for '-' and --microphone"
    parser.add_argument("--endpoint", action=argparse.BooleanOptionalAction, help=help_endpoint)
    add_endpoint_rules(parser)
    parser.add_argument("--data-dir", type=Path, help="prepared data, for fast_beam_search_LG and a feature floor")
    args = parser.parse_intermixed_args(argv)
    live = check_inputs(args)
    rules = rules_of(args)
    endpoint = live or bool(args.endpoint_rules) if args.endpoint is None else args.endpoint
    model, cfg, tokenizer = load_averaged(args.checkpoint, args.overrides, args.conf)
    inputs = list(sources(args, cfg.features.sampling_rate, cfg.data.channel))  # all are checked before one is recognised
    device = choose_device(cfg.decode.num_threads)
    lang = lang_dir(args.data_dir, cfg.lang) if args.data_dir else None
    resources = Resources(model.to(device), tokenizer, device, args.checkpoint.parent, lang, clean=TextNormaliser(cfg.lang))
    recogniser = streaming_recogniser(args.method, resources, cfg, args.chunk, rules if endpoint else None)
    ensure_floor(model, cfg, tokenizer, args.checkpoint, args.data_dir)
    for name, pieces in inputs:
        if len(inputs) > 1 and not args.json:
            print(f"{name}:")
        stream(recogniser, pieces, JsonDisplay(name, tokenizer) if args.json else Display(), args.real_time)


if __name__ == "__main__":
    main()
