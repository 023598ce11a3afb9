"""Make a model of icefall's LSTM recipes (lstm_transducer_stateless, 2, 3) one of this project: EXP/averaged.pt.

    .venv/bin/python -m local.import_icefall --checkpoint pretrained.pt --bpe-model bpe.model --out exp/icefall/averaged.pt

Decoding, streaming, recognition, export and train.init take the result. The sizes are read off the tensors, and every name
and shape is checked. Nothing in the file is run. Of a model with several decoders the first one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.artifacts.checkpoint import named, provenance, save_file
from local.artifacts.model_sizes import TOKENS, check_fits, sizes_of
from local.artifacts.new_model import check_numbers, new_model
from local.artifacts.weights_file import read_weights
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.locks import writes
from local.common.text_files import read_bytes
from local.config import load_config
from local.data.tokenizer import SPACE, SPECIAL, Tokenizer
from model.average import State
from model.build import weights_by_key

OF_SECOND = ("decoder_giga.", "joiner_giga.", "simple_am_proj_giga.", "simple_lm_proj_giga.")  # in training checkpoints


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="icefall's pretrained.pt, epoch-N.pt and the like")
    parser.add_argument("--bpe-model", type=Path, required=True, help="its data/lang_bpe_500/bpe.model")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, such as exp/icefall/averaged.pt")
    args = parser.parse_intermixed_args(argv)
    writes(args.out.parent, new=True)
    state, tokens, _ = read_weights(args.checkpoint)
    if tokens is not None:
        raise UserError(f"{args.checkpoint} is a checkpoint of this project, which all programs read as it is")
    tokenizer = Tokenizer(read_bytes(args.bpe_model), str(args.bpe_model))
    state, left_out = first_decoder(state)
    sizes = sizes_of(state)
    if sizes.get(TOKENS, 0) != tokenizer.vocab_size:
        raise UserError(
            f"{args.checkpoint} has {sizes.get(TOKENS, 0)} tokens, and {args.bpe_model} has {tokenizer.vocab_size}: "
            "they do not belong together"
        )
    facts = [f"{key}={value}" for key, value in sizes.items()]
    cfg = load_config(args.conf, [*facts, f"lang.normalise={case_of(tokenizer)}", *args.overrides])
    with named(args.checkpoint):
        check_numbers(weights_by_key(cfg, tokenizer.vocab_size), state)
        model = new_model(cfg, tokenizer.vocab_size)
    check_fits(state, model.state_dict(), args.checkpoint)
    origin = {"averaged": f"imported from icefall's {args.checkpoint.name}", "label": args.checkpoint.stem}
    save_file({"model": state, **origin, **provenance(cfg, tokenizer)}, args.out)
    print(f"{args.out}: {sum(value.numel() for value in state.values()):,} weights; {' '.join(facts)}")
    if left_out:
        print(f"left out: {len(left_out)} tensors of the decoder and joiner for its second corpus, {left_out[0]} and others")


def first_decoder(state: State) -> tuple[State, list[str]]:
    """Return the weights without those of a second corpus's decoder, and their names."""
    left_out = [name for name in state if name.startswith(OF_SECOND)]
    return {name: value for name, value in state.items() if name not in left_out}, left_out


def case_of(tokenizer: Tokenizer) -> str:
    """Return the lang.normalise that makes texts of the case that the tokens have."""
    letters = "".join(token for token in tokenizer.tokens if token not in (*SPECIAL, "<unk>")).replace(SPACE, "")
    return "upper" if letters == letters.upper() else "lower" if letters == letters.lower() else "none"


if __name__ == "__main__":
    main()
