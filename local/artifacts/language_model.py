"""Files of language models: local/train_lm.py writes them, decoding and local/lm_sample.py read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import check_finite, load_file, load_weights, named, provenance, save_file, tokenizer_of
from local.artifacts.new_model import check_numbers, lm_weights_by_key, new_lm
from local.common.errors import UserError
from local.config.limits import check_of, describe, shown, types_of
from local.config.schema import Config, LmConfig
from local.data.tokenizer import Tokenizer
from model.lm import LstmLm

import torch

SIZES = ("dim", "hidden", "num_layers", "dropout")


def lm_sizes(cfg: Config, vocab_size: int) -> dict[str, Any]:
    """Return the arguments of `LstmLm` that section lm of the config gives."""
    sizes = {name: getattr(cfg.lm, name) for name in SIZES}
    return {"vocab_size": vocab_size, **sizes}


def save_lm(model: LstmLm, cfg: Config, tokenizer: Tokenizer, path: Path, **facts: Any) -> None:
    """Write weights, sizes, tokens and their hash, config, versions, and `facts` (more plain values)."""
    content = {"model": model.state_dict(), "lm": lm_sizes(cfg, tokenizer.vocab_size), **provenance(cfg, tokenizer)}
    save_file({**facts, **content}, path)


def check_sizes(sizes: dict[str, Any], path: Path) -> None:
    """Raise `UserError` naming `path` unless `sizes` are what `lm_sizes` returns."""
    kinds = types_of(LmConfig)
    for name in {"vocab_size", *SIZES} ^ sizes.keys():
        raise UserError(f"{path}: damaged: 'lm' must have the sizes vocab_size, {', '.join(SIZES)}, no others: {shown(name)}")
    for name in SIZES:
        limits, kind = check_of(kinds[name]), float if name == "dropout" else int
        why = f"must be {describe(kinds[name])}" if type(sizes[name]) is not kind else limits and limits.problem(sizes[name])
        if why:
            raise UserError(f"{path}: damaged: 'lm' has {name} {shown(sizes[name])}: {why}")


def load_lm(path: Path, tokenizer: Tokenizer | None = None) -> tuple[LstmLm, Tokenizer]:
    """Return the model in evaluation mode, on the CPU, and its tokenizer.

    Raises `UserError` if the file is missing, damaged or not a language model, or has other tokens than `tokenizer`.
    """
    content = load_file(path)
    for key, kind in (("lm", dict), ("bpe_model", torch.Tensor), ("tokens_hash", str)):
        if not isinstance(content.get(key), kind):
            raise UserError(f"{path}: not a language model; stage 3 (lm) of run.sh makes one")
    if tokenizer is not None and content["tokens_hash"] != tokenizer.hash:
        why = f"its {content.get('vocab_size')} tokens are not the recogniser's {tokenizer.vocab_size}"
        raise UserError(f"{path}: {why}; both must be trained with the same bpe.model")
    own = tokenizer_of(content, path)
    sizes = {**content["lm"], "vocab_size": own.vocab_size}
    check_sizes(sizes, path)
    with named(path):
        check_numbers(lm_weights_by_key(sizes), content["model"])
        model = new_lm(sizes)
    load_weights(model, content["model"], path)
    check_finite(content["model"], path)
    return model.eval(), own
