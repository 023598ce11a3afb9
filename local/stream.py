"""Recognise a file as if it were arriving from a microphone.

local/stream.py FILE.wav [--checkpoint EXP/averaged.pt] [--method greedy_search] [--chunk 0.32] [--real-time]
    [--endpoint] [--endpoint-rules 2.4 1.2 20] [--conf FILE] [decode.beam=8 ...]

Prints what is recognised so far, on a terminal in one line that is rewritten; each utterance when it has ended, with its
beginning and end in seconds; then what it took. With --real-time audio arrives at the speed at which it was spoken, else
as fast as it is recognised.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from local.artifacts.checkpoint import load_averaged
from local.common.cli import program
from local.common.errors import UserError
from local.config.methods import METHODS
from local.config.schema import DecodeConfig
from local.corpus.audio_files import BadAudio, check_audio
from local.data.tokenizer import lang_dir
from local.decoding.endpoint import EndpointRules
from local.decoding.recogniser import make_stream
from local.decoding.resources import Resources
from local.decoding.streaming import Segment, StreamingRecogniser, frames_per_chunk
from model.search import Stream
from model.search.scorers import Scorer

import torch
from lhotse import Recording

PIECE_SECONDS = 0.02  # of audio that arrives at once, as sound cards deliver it
ERASE = "\r\x1b[K"  # back to the line's beginning, and erase it


def make_search(name: str, resources: Resources, options: DecodeConfig) -> tuple[Stream, list[tuple[Scorer, float]]]:
    """A method's search and the scorers of its second pass. `UserError` where it needs what a stream or the user lacks."""
    method, own = METHODS[name], options.of_method(name)
    if method.oracle:
        raise UserError(f"{name}: an oracle needs the reference, which a stream has not")
    try:
        search = make_stream(method, resources, own)
    except ValueError as e:
        raise UserError(f"{name}: {e}") from None
    return search, [resources.scorer(part, own) for part in method.second_pass]


def read_audio(path: Path, sampling_rate: int) -> torch.Tensor:
    """Samples (S,) of a file with one channel, resampled where need be. `UserError` where it cannot be read."""
    try:
        info = check_audio(path)
    except BadAudio as e:
        raise UserError(f"{path}: {e}") from None
    if info.num_channels != 1:
        raise UserError(f"{path}: {info.num_channels} channels; one is meant")
    try:
        recording = Recording.from_file(path)
        if recording.sampling_rate != sampling_rate:
            recording = recording.resample(sampling_rate)
        return torch.from_numpy(recording.load_audio()[0])
    except Exception as e:  # lhotse's readers raise whatever they happen upon
        raise UserError(f"{path}: unreadable: {str(e).strip()[:200] or type(e).__name__}") from None


def arriving(audio: torch.Tensor, sampling_rate: int, real_time: bool) -> Iterator[torch.Tensor]:
    """The samples in pieces; with `real_time` none comes before it would have been recorded."""
    start = time.perf_counter()
    done = 0
    for piece in audio.split(max(1, int(PIECE_SECONDS * sampling_rate))):
        done += len(piece)
        if real_time:
            time.sleep(max(0.0, start + done / sampling_rate - time.perf_counter()))
        yield piece


class Display:
    """Results on standard output: a line that is rewritten on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._rewrites = sys.stdout.isatty()
        self._shown = ""

    def partial(self, segment: Segment) -> None:
        """Shows what is recognised so far, if it is something new."""
        if segment.text == self._shown:
            return
        self._shown = segment.text
        if self._rewrites:
            width = shutil.get_terminal_size().columns - 1
            print(ERASE + segment.text[-width:], end="", flush=True)
        else:
            print(f"{segment.end:.2f}: {segment.text}", flush=True)

    def final(self, segment: Segment) -> None:
        """Shows an utterance that has ended, or nothing where nothing was said."""
        if self._rewrites:
            print(ERASE, end="")
        if segment.text:
            print(f"{segment.begin:.2f} - {segment.end:.2f}: {segment.text}", flush=True)
        self._shown = ""


def stream(recogniser: StreamingRecogniser, audio: torch.Tensor, real_time: bool) -> None:
    """Recognises audio (S,) at the recogniser's rate piece by piece, showing results and the time it took."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="one channel, any sampling rate")
    parser.add_argument("--checkpoint", type=Path, default=Path("exp/tiny/averaged.pt"), help="%(default)s")
    parser.add_argument("--method", choices=list(METHODS), default="modified_beam_search", help="%(default)s")
    parser.add_argument("--chunk", type=float, default=0.32, metavar="SECONDS", help="%(default)s")
    parser.add_argument("--real-time", action="store_true", help="audio arrives no faster than it was spoken")
    parser.add_argument("--endpoint", action="store_true", help="find the ends of utterances")
    rules = EndpointRules()
    parser.add_argument(
        "--endpoint-rules", type=float, nargs=3, metavar="SECONDS", help="silence before anything was said, silence after it, "
        f"longest utterance: {rules.nothing_said} {rules.silence} {rules.longest}"
    )  # fmt: skip
    parser.add_argument("--data-dir", type=Path, help="prepared data, for fast_beam_search_LG")
    parser.add_argument("--conf", help="takes section `decode` from this YAML instead of the checkpoint's config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_intermixed_args(argv)
    if args.endpoint_rules:
        rules = EndpointRules(*args.endpoint_rules)
    model, cfg, tokenizer = load_averaged(args.checkpoint, args.overrides, args.conf)
    if cfg.decode.num_threads:
        torch.set_num_threads(cfg.decode.num_threads)
    audio = read_audio(args.file, cfg.features.sampling_rate)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lang = lang_dir(args.data_dir, cfg.lang) if args.data_dir else None
    resources = Resources(model.to(device), tokenizer, device, args.checkpoint.parent, lang)
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
    # Whatever is compiled or loaded at the first call should not come while audio is arriving.
    recogniser.accept(torch.zeros(cfg.features.sampling_rate), cfg.features.sampling_rate)
    recogniser.finish()
    stream(recogniser, audio, args.real_time)


if __name__ == "__main__":
    main()
