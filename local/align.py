"""Say when each word and token of given transcripts was spoken: CTM, Praat's TextGrid or JSON.

.venv/bin/python -m local.align --checkpoint EXP/averaged.pt --out FOLDER (--data-dir data/tiny --sets test | --table FILE)
    [--format ctm|textgrid|json] [--by transducer|ctc] [--conf FILE] [data.num_workers=0 ...]

The transcripts are those of sets of prepared data, or of a table, such as a TSV with a path and a text in each line. The
likeliest path of a transcript through the transducer's lattice, or through the CTC head, says when its tokens were emitted.
Words start and end where these times and the level of the audio say (local/decoding/word_times.py).

It writes FOLDER/<set>.ctm (NIST's format: utterance, channel, start and duration in seconds, word, confidence), FOLDER/<set>/
<utterance>.TextGrid (tiers `words` and `tokens`) or FOLDER/<set>.jsonl (one utterance per line: id, duration, score, words,
tokens). An utterance that cannot be aligned is named with the reason and left out. If the prepared data have the times of
words, as those of corpus tiny have, a line gives the errors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from local.artifacts.checkpoint import load_averaged
from local.common.atomic import write_text
from local.common.cli import choose_device, make_parser, program
from local.common.errors import UserError
from local.common.locks import reads, writes
from local.common.visible import visible
from local.corpus.corpus_yaml import parts_of
from local.data.datamodule import AsrDataModule, Batches
from local.data.one_table import prepare_table
from local.decoding.aligned import ENDINGS, FORMATS, ONE_UTTERANCE, Aligned
from local.decoding.aligner import METHODS, Aligner, Unaligned
from local.decoding.batch_decoder import with_progress
from local.decoding.feature_floor import ensure_floor
from local.decoding.subtitles import ctm_name
from local.scoring.boundaries import boundary_errors
from local.scoring.speech import read_speech

LONGEST_NAME = 200  # bytes; file systems allow 255, and a file that is being written has a longer name


def align_set(aligner: Aligner, batches: Batches, name: str) -> Iterator[Aligned]:
    """Yield the utterances of a set in the order of their ids; those that cannot be aligned are named on stderr.

    Raises `UserError` if none can.
    """
    results = [result for batch in with_progress(batches, "aligning", name) for result in aligner(batch)]
    left_out = [result for result in results if isinstance(result, Unaligned)]
    for result in left_out:
        print(f"warning: not aligned: {visible(f'utterance {result.id}: {result.reason}')}", file=sys.stderr)
    if len(left_out) == len(results):
        raise UserError(f"set '{name}': none of its {len(results)} utterances can be aligned; the lines above say why")
    print(f"{name}: {len(results) - len(left_out)} utterances aligned, {len(left_out) + batches.skipped} left out", flush=True)
    yield from sorted((result for result in results if isinstance(result, Aligned)), key=lambda result: result.id)


def write(found: Sequence[Aligned], kind: str, out: Path, name: str) -> None:
    """Write the utterances of a set in the format `kind`."""
    ending, to_text = ENDINGS[kind], FORMATS[kind]
    named: dict[str, Aligned] = {}
    for utterance in found if kind != "json" else ():
        own = ctm_name(utterance.id).replace("/", "_") if kind in ONE_UTTERANCE else ctm_name(utterance.id)
        if named.setdefault(own, utterance) is not utterance:
            raise UserError(f"utterances {named[own].id} and {utterance.id} have one name in {kind}, {own}; use --format json")
        if kind in ONE_UTTERANCE and len(own.encode()) > LONGEST_NAME:
            raise UserError(f"utterance {own[:40]}...: its id is too long for the name of a file; use --format json")
    if kind not in ONE_UTTERANCE:
        write_text(out / f"{name}{ending}", "".join(map(to_text, found)))
        return
    (out / name).mkdir(exist_ok=True)
    for own, utterance in named.items():
        write_text(out / name / f"{own}{ending}", to_text(utterance))


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="averaged.pt, or a checkpoint of training")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--data-dir", type=Path, help="prepared data, such as data/tiny")
    given.add_argument("--table", type=Path, help="audio and transcripts: .tsv, .csv, .txt, .json or .jsonl")
    parser.add_argument("--sets", nargs="+", metavar="SET", default=[], help="parts instead of the test parts")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")
    parser.add_argument("--format", choices=list(FORMATS), default="ctm", help="%(default)s")
    parser.add_argument("--by", choices=list(METHODS), default="transducer", help="what searches the path; %(default)s")
    args = parser.parse_intermixed_args(argv)
    writes(args.out, new=True)
    if args.data_dir:
        reads(args.data_dir)
    overrides = args.overrides + [s for s in args.sets if "=" in s]  # argparse takes those that follow --sets for its values
    sets = [s for s in args.sets if "=" not in s]
    if args.table and sets:
        raise UserError("--sets names parts of --data-dir; a --table is one set")
    if args.table and (args.out / f"{args.table.stem}{ENDINGS[args.format]}").resolve() == args.table.resolve():
        raise UserError(f"--out {args.out}: the result would replace --table {args.table}; name another folder")
    model, cfg, tokenizer = load_averaged(args.checkpoint, overrides, args.conf)
    device = choose_device(cfg.decode.num_threads)
    with TemporaryDirectory() as folder:
        data_dir = args.data_dir or Path(folder)
        if args.table:
            prepare_table(args.table, data_dir, cfg)
        elif sets:
            cfg.data.test_parts = parts_of(sets, data_dir, cfg.data)
        data = AsrDataModule(cfg, data_dir, tokenizer)
        if not data.corpus.test:
            raise UserError(f"{data_dir / 'corpus.yaml'}: key 'test' is empty; name parts to align by --sets")
        ensure_floor(model, cfg, tokenizer, args.checkpoint, args.data_dir)
        aligner = Aligner(model.to(device), tokenizer, args.by, cfg.decode.tail_frames, device)
        for part in data.corpus.test:
            found = list(align_set(aligner, data.test_dataloader(part), part))
            write(found, args.format, args.out, args.table.stem if args.table else part)
            known = {name: speech.words for name, speech in read_speech(data_dir, part).items() if speech.words}
            mine = {u.id: [(w["word"], w["start"], w["end"]) for w in u.words] for u in found}
            if errors := boundary_errors(mine, known):
                print(f"{part}: {errors.line()}")


if __name__ == "__main__":
    main()
