"""Files of language models: written by local/train_lm.py, read by whatever decodes or samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from local.checkpoint import load_file, load_weights, provenance, save_file
from local.config import config_hash
from local.errors import UserError
from local.schema import Config
from local.tokens import Tokenizer
from model.lm import LstmLm


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
    for key in ("lm", "bpe_model", "tokens_hash"):
        if key not in content:
            raise UserError(f"{path}: not a language model; stage 3 (lm) of run.sh makes one")
    if tokenizer is not None and content["tokens_hash"] != config_hash("\n".join(tokenizer.tokens)):
        raise UserError(
            f"{path}: its {content['vocab_size']} tokens are not the recogniser's {tokenizer.vocab_size}; "
            "both must be trained with the same lang/bpe.model"
        )
    model = LstmLm(**content["lm"])
    load_weights(model, content["model"], path)
    return model.eval(), Tokenizer.from_bytes(bytes(content["bpe_model"].tolist()))
