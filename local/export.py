"""Stage "export": a trained model as a folder that sherpa-onnx runs on phones, in browsers and on servers.

    .venv/bin/python -m local.export --checkpoint exp/tiny/averaged.pt --out exp/tiny/export --data-dir data/tiny
        [--chunk 0.32] [--int8] [--lm exp/tiny/lm/lm.pt] [--tuned exp/tiny/tuned.yaml] [--hotwords FILE] [--no-gate]
        [--language en] [--license cc-by-4.0] [--wavs 1] [decode.beam=8 ...]

It writes the graphs (ONNX, float32, with --int8 also with 8-bit weights), tokens.txt, bpe.vocab, export.json, and README.md, a
model card with command lines for sherpa-onnx. docs/deployment.md describes the files.

Then real sherpa-onnx decodes up to 200 utterances of the dev parts of --data-dir. The folder appears only if it says what the
recipe says. The packages are those of requirements-export.txt.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_file, model_from
from local.artifacts.language_model import load_lm
from local.artifacts.tuned_settings import with_tuned
from local.common.atomic import atomic_folder
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.locks import reads, replaces
from local.config.schema import Config, DecodeConfig
from local.corpus.corpus_yaml import load_corpus
from local.data.text import TextNormaliser
from local.data.tokenizer import Tokenizer
from local.decoding.feature_floor import ensure_floor
from local.decoding.streaming import frames_per_chunk
from local.deploy.client import BEAM, FUSION, left_out, settings
from local.deploy.dev_audio import Utterance, read_utterances
from local.deploy.gate import MOST, Gate
from local.deploy.hotwords import converted
from local.deploy.int8 import write_int8
from local.deploy.lm_graph import write_lm
from local.deploy.model_card import Card, Rows, model_card, results_of, write_wavs
from local.deploy.packages import need
from local.deploy.record import check_folder, checkpoint_of, make_record, write_record
from local.deploy.tokens_files import check_tokens, write_tokens
from local.deploy.transducer_graphs import graph_problem, write_graphs
from model.lm import LstmLm
from model.transducer import Transducer

LONGEST_CHUNK = 2.56  # seconds: the encoder's graph has the layers once per frame of a chunk


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments. Raises `UserError` for a number out of range, or without data for the gate."""
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="averaged.pt, or a checkpoint of training")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; an earlier export there is replaced")
    parser.add_argument("--data-dir", type=Path, help="prepared data, such as data/tiny: dev parts for the gate")
    parser.add_argument("--chunk", type=float, default=0.32, metavar="SECONDS", help="per call of the encoder; %(default)s")
    parser.add_argument("--int8", action="store_true", help="also write graphs with 8-bit weights")
    parser.add_argument("--lm", type=Path, help="a language model of local/train_lm.py for shallow fusion")
    parser.add_argument("--tuned", type=Path, help="settings chosen by local/tune.py; they replace those of --conf")
    parser.add_argument("--hotwords", type=Path, help="phrases, as for decode.hotwords")
    parser.add_argument("--no-gate", action="store_true", help="do not check the export by sherpa-onnx")
    parser.add_argument("--language", help="of the model card: a code of ISO 639 such as en")
    parser.add_argument("--license", default="other", help="of the model card: such as cc-by-4.0; %(default)s")
    parser.add_argument("--wavs", type=int, default=1, help="dev utterances that go into the folder as examples; 0: none")
    args = parser.parse_args(argv)
    if args.out.name in ("", ".."):
        raise UserError(f"--out {args.out}: give the folder by its name, for example exp/tiny/export")
    if args.chunk > LONGEST_CHUNK:
        raise UserError(f"--chunk {args.chunk:g}: must be from 0.04 to {LONGEST_CHUNK} seconds")
    if not 0 <= args.wavs <= MOST:
        raise UserError(f"--wavs {args.wavs}: must be from 0 to {MOST}")
    if args.data_dir is None and not args.no_gate:
        raise UserError("the gate needs --data-dir DIR, prepared data whose dev parts it decodes; --no-gate exports without it")
    return args


def load(args: argparse.Namespace) -> tuple[Transducer, Config, Tokenizer, dict[str, Any]]:
    """Return the model on the CPU, its config with tuned settings, its tokens, and its origin.

    Raises `UserError` if the checkpoint is damaged, or cannot be exported.
    """
    content = load_file(args.checkpoint)
    model, cfg, tokenizer = model_from(content, args.checkpoint, args.overrides, args.conf)
    origin = checkpoint_of(args.checkpoint, content)
    if args.tuned:
        cfg.decode = with_tuned(cfg.decode, args.tuned, args.overrides)
    if why := graph_problem(model):
        raise UserError(f"{args.checkpoint}: cannot be exported: {why}")
    check_tokens(tokenizer, args.checkpoint)
    return model, cfg, tokenizer, origin


def hotwords_of(args: argparse.Namespace, cfg: Config, tokenizer: Tokenizer) -> str:
    """Return the client's file of hotwords; "" without --hotwords."""
    if args.hotwords is None:
        return ""
    return converted(args.hotwords, cfg.decode.of_method(BEAM).hotwords_boost, tokenizer, TextNormaliser(cfg.lang))


def utterances_of(args: argparse.Namespace, cfg: Config) -> tuple[str, list[Utterance]]:
    """Return the corpus's name and the utterances for the gate and the examples; ("", []) without --data-dir."""
    if args.data_dir is None:
        return "", []
    corpus = load_corpus(args.data_dir / "corpus.yaml", cfg.data)
    most = args.wavs if args.no_gate else MOST
    name = args.data_dir.resolve().name if corpus.source == "custom" else corpus.name
    return name, read_utterances(cfg, args.data_dir, corpus, most) if most else []


def write_models(model: Transducer, lm: LstmLm | None, cfg: Config, chunk: int, folder: Path, int8: bool, sha256: str) -> None:
    """Write all graphs."""
    folded = {"temperature": cfg.decode.temperature, "blank_penalty": cfg.decode.blank_penalty}
    write_graphs(model, folder, chunk, **folded, source={"checkpoint_sha256": sha256})
    if lm is not None:
        write_lm(lm, folder / "lm.onnx")
    if int8:
        write_int8(folder)


def experiment_of(checkpoint: Path) -> Path:
    """Return the folder of the experiment of a checkpoint."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def card_of(
    args: argparse.Namespace,
    words: Sequence[str],
    record: dict[str, Any],
    corpus: str,
    wavs: list[Utterance],
    asked: DecodeConfig,
    results: Rows,
) -> Card:
    """Return what the model card tells. words: the command line. asked: section decode as it was configured."""
    command = shlex.join(["python", "-m", "local.export", *words])
    beam, lm_scale = asked.of_method(BEAM).beam, asked.of_method(FUSION).lm_scale
    return Card(
        record, results, experiment_of(args.checkpoint).name, corpus, args.language, args.license, command, wavs, beam, lm_scale
    )


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    args = parse(argv)
    chunk = frames_per_chunk(args.chunk)
    replaces(args.out)
    if args.data_dir is not None:
        reads(args.data_dir)
    check_folder(args.out)
    need("onnx", *(["onnxruntime"] if args.int8 else []), *([] if args.no_gate else ["sherpa_onnx"]))
    model, asked, tokenizer, origin = load(args)
    cfg = replace(asked, decode=settings(asked.decode))
    lm = load_lm(args.lm, tokenizer)[0] if args.lm else None
    hotwords = hotwords_of(args, asked, tokenizer)
    lost = list(left_out(asked.decode, lm is not None, bool(hotwords)))
    corpus, utterances = utterances_of(args, cfg)
    results = results_of(experiment_of(args.checkpoint), origin["weights"], lm is not None)
    ensure_floor(model, cfg, tokenizer, args.checkpoint, args.data_dir)
    for line in lost:
        print(f"not in the client: {line}")
    with atomic_folder(args.out) as folder:
        write_models(model, lm, cfg, chunk, folder, args.int8, origin["sha256"])
        write_tokens(tokenizer, folder)
        if hotwords:
            (folder / "hotwords.txt").write_text(hotwords, encoding="utf-8")
        gate: dict[str, Any] = {"run": False, "why": "--no-gate"}
        if not args.no_gate:
            lm_scale = asked.decode.of_method(FUSION).lm_scale
            gate = Gate(model, cfg, tokenizer, chunk).run(folder, utterances, args.int8, lm_scale)
        wavs = utterances[: args.wavs]
        write_wavs(wavs, cfg.features.sampling_rate, folder)
        record = make_record(cfg, chunk, model.encoder.feature_floor, checkpoint=origin, left_out=lost, gate=gate)
        card = card_of(args, sys.argv[1:] if argv is None else argv, record, corpus, wavs, asked.decode, results)
        (folder / "README.md").write_text(model_card(card, folder), encoding="utf-8")
        write_record(record, folder)
    print(f"{args.out}: written; README.md there says how to run it")


if __name__ == "__main__":
    main()
