"""Recognise recordings of any length: text, JSON, subtitles or CTM with the times of words.

.venv/bin/python -m local.recognise FILE ... --checkpoint EXP/averaged.pt [--format text|json|srt|vtt|ctm]
    [--output FOLDER | FILE] [--method greedy_search] [--tuned EXP/tuned.yaml] [--conf FILE] [decode.beam=8 ...]
    [--window 20] [--overlap 4] [--pause 0.4] | [--endpoint] [--endpoint-rules 2.4 1.2 20]

A recording is cut at its pauses into windows of at most --window seconds, which are decoded in batches, those of several
files together. Where no pause comes windows overlap, and their words are joined. With --endpoint it is recognised as a
stream instead, whose utterances end by the endpoint rules. data.channel chooses of several channels; `both` makes a result
of each. Files are read in pieces: an hour needs no more memory than a minute.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from local.artifacts.checkpoint import load_averaged
from local.artifacts.tuned_settings import with_tuned
from local.common.atomic import write_text
from local.common.cli import add_files_and_config, choose_device, make_parser, program
from local.common.errors import UserError
from local.common.progress import Progress
from local.common.visible import visible
from local.config.methods import METHODS
from local.data.text import TextNormaliser
from local.data.tokenizer import lang_dir
from local.decoding.audio_pieces import Audio, open_checked
from local.decoding.batch_decoder import BatchDecoder
from local.decoding.endpoint import add_endpoint_rules, rules_of
from local.decoding.feature_floor import ensure_floor
from local.decoding.long_audio import WindowRecogniser, by_endpoints, recordings_of
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from local.decoding.streaming import streaming_recogniser
from local.decoding.subtitles import ENDINGS, FORMATS, ONE_RECORDING, Result, ctm_name, text

CHUNK = 0.32  # seconds per call of the encoder with --endpoint


class Output:
    """Where results go: standard output, one file, or a file of each recording in a folder."""

    def __init__(self, path: Path | None, kind: str | None, names: Sequence[str]) -> None:
        """path: --output. kind: --format; None: by the ending of `path`. Raises `UserError` if these or `names` do not fit."""
        formats = {ending: name for name, ending in ENDINGS.items()}
        by_ending = None if path is None or path.is_dir() else formats.get(path.suffix.lower())
        self.kind = kind or by_ending or "text"
        self.path, self.folder = path, path if by_ending is None else None
        if by_ending not in (None, self.kind):
            raise UserError(f"--output {path}: the ending is of format {by_ending}, and --format is {self.kind}")
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            endings = ", ".join(formats)
            raise UserError(f"--output {path}: is a file; name a folder, or a file that ends in {endings}")
        if self.folder is None and len(names) > 1 and self.kind in ONE_RECORDING:
            raise UserError(f"format {self.kind} holds one recording, these are {len(names)}; name a folder by --output")
        written = map(ctm_name, names) if self.kind == "ctm" else names
        if twice := [name for name, count in Counter(written).items() if count > 1]:
            raise UserError(f"two recordings have the name '{twice[0]}'; rename one of their files, or recognise it alone")
        self._several, self._written = len(names) > 1, ""

    def add(self, result: Result) -> None:
        """Write a result; one that shares its file with others waits for `close`."""
        written = FORMATS[self.kind](result)
        if self.folder is not None:
            self._write(self.folder / f"{result.name}{ENDINGS[self.kind]}", written)
            return
        if self._several and self.kind == "text":
            written = "".join(f"{visible(result.name)}: {line}\n" for line in text(result).splitlines())
        if self.path is None:
            print(written, end="", flush=True)
        else:
            self._written += written

    def close(self) -> None:
        """Write the file of all results, if there is one."""
        if self.path is not None and self.folder is None:
            self._write(self.path, self._written)

    def _write(self, path: Path, written: str) -> None:
        write_text(path, written)
        print(path, flush=True)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False)
    add_files_and_config(parser, "audio of any length, sampling rate and format; keys of the configuration")
    parser.add_argument("--checkpoint", type=Path, required=True, help="averaged.pt, or a checkpoint of training")
    parser.add_argument("--tuned", type=Path, help="settings chosen by local/tune.py; they replace those of --conf")
    parser.add_argument("--method", choices=list(METHODS), default="modified_beam_search", help="%(default)s")
    parser.add_argument("--format", choices=list(FORMATS), help="by the ending of --output, else text")
    parser.add_argument("--output", type=Path, help="a folder, or a file that ends as its format; default: standard output")
    parser.add_argument("--window", type=float, default=20.0, metavar="SECONDS", help="of the longest window; %(default)s")
    parser.add_argument("--overlap", type=float, default=4.0, metavar="SECONDS", help="of windows without a pause; %(default)s")
    parser.add_argument("--pause", type=float, default=0.4, metavar="SECONDS", help="of a pause that ends one; %(default)s")
    parser.add_argument("--endpoint", action="store_true", help="recognise as a stream, cut by the endpoint rules")
    add_endpoint_rules(parser)
    parser.add_argument("--data-dir", type=Path, help="prepared data, for fast_beam_search_LG and a feature floor")
    args = parser.parse_intermixed_args(argv)
    if not args.files:
        raise UserError("nothing to recognise: name a FILE")
    if METHODS[args.method].oracle:
        raise UserError(f"{args.method}: oracle methods need reference transcripts")
    model, cfg, tokenizer = load_averaged(args.checkpoint, args.overrides, args.conf)
    if args.tuned:
        cfg.decode = with_tuned(cfg.decode, args.tuned, args.overrides)
    audios = [open_checked(path, cfg.data.channel) for path in args.files]
    recordings = [recording for audio in audios for recording in recordings_of(audio)]
    output = Output(args.output, args.format, [recording.name for recording in recordings])
    for audio in audios:
        if audio.note:
            print(audio.note, file=sys.stderr)
    device = choose_device(cfg.decode.num_threads)
    lang = lang_dir(args.data_dir, cfg.lang) if args.data_dir else None
    resources = Resources(model.to(device), tokenizer, device, args.checkpoint.parent, lang, clean=TextNormaliser(cfg.lang))
    results: Callable[[Sequence[Audio], Progress], Iterator[Result]]
    if args.endpoint or args.endpoint_rules:
        results = partial(by_endpoints, streaming_recogniser(args.method, resources, cfg, CHUNK, rules_of(args)))
    else:
        recogniser = Recogniser(args.method, resources, cfg.decode)
        results = WindowRecogniser(
            BatchDecoder(model, {args.method: recogniser}, cfg.decode.tail_frames, device),
            tokenizer,
            cfg.features,
            batch_seconds=cfg.decode.max_duration,
            window=args.window,
            overlap=args.overlap,
            pause=args.pause,
        )
    ensure_floor(model, cfg, tokenizer, args.checkpoint, args.data_dir)
    with Progress(round(sum(r.duration for r in recordings)), "recognising", "s") as bar:
        for result in results(audios, bar):
            output.add(result)
    output.close()


if __name__ == "__main__":
    main()
