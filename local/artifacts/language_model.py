"""Files of language models: written by local/train_lm.py, read by whatever decodes or samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import check_finite, load_file, load_weights, provenance, save_file, tokenizer_of
from local.common.errors import UserError
from local.config import config_hash
from local.config.schema import Config
from local.data.tokenizer import Tokenizer
from model.lm import LstmLm

import torch


def lm_sizes(cfg: Config, vocab_size: int) -> dict[str, Any]:
    """The arguments of `LstmLm`, from section `lm` of the config."""
    lm = cfg.lm
    sizes = {"dim": lm.dim, "hidden": lm.hidden, "num_layers": lm.num_layers, "dropout": lm.dropout}
    return {"vocab_size": vocab_size, **sizes}


def save_lm(model: LstmLm, cfg: Config, tokenizer: Tokenizer, path: Path, **facts: Any) -> None:
    """Write weights, sizes, tokens and their hash, config and versions; `facts` (plain values) stand beside them."""
    content = {"model": model.state_dict(), "lm": lm_sizes(cfg, tokenizer.vocab_size), **provenance(cfg, tokenizer)}
    save_file({**facts, **content}, path)


def load_lm(path: Path, tokenizer: Tokenizer | None = None) -> tuple[LstmLm, Tokenizer]:
    """The model in evaluation mode, on the CPU, and its tokens.

    tokenizer: the recogniser's. Raises `UserError` naming the file where its tokens are not the language model's, and
    where the file is missing, damaged or no language model.
    """
    content = load_file(path)
    for key, kind in (("lm", dict), ("bpe_model", torch.Tensor), ("tokens_hash", str)):
        if not isinstance(content.get(key), kind):
            raise UserError(f"{path}: not a language model; stage 3 (lm) of run.sh makes one")
    if tokenizer is not None and content["tokens_hash"] != config_hash("\n".join(tokenizer.tokens)):
        raise UserError(
            f"{path}: its {content.get('vocab_size')} tokens are not the recogniser's {tokenizer.vocab_size}; "
            "both must be trained with the same bpe.model"
        )
    own = tokenizer_of(content, path)
    try:
        model = LstmLm(**{**content["lm"], "vocab_size": own.vocab_size})
    except (TypeError, ValueError, RuntimeError) as e:
        raise UserError(f"{path}: its sizes ('lm') are none of a language model's: {str(e).splitlines()[0][:200]}") from None
    load_weights(model, content["model"], path)
    check_finite(content["model"], path)
    return model.eval(), own
