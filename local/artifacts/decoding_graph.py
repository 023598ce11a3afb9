"""Files of decoding graphs: written by local/prepare_graph.py, read by whatever decodes."""

from __future__ import annotations

from pathlib import Path

from local.common.atomic import atomic_write
from local.common.errors import UserError
from local.config import config_hash
from local.data.tokenizer import Tokenizer
from model.search.graph import Graph

import numpy as np

ARRAYS = ("offsets", "labels", "next_states", "weights", "finals")


def save_graph(graph: Graph, tokenizer: Tokenizer, path: Path) -> None:
    """Write the graph's arrays and a hash of the tokens that its labels are."""
    arrays = {name: getattr(graph, name) for name in ARRAYS}
    with atomic_write(path) as tmp, tmp.open("wb") as f:
        np.savez_compressed(f, tokens_hash=np.array(tokens_hash(tokenizer)), **arrays)


def load_graph(path: Path, tokenizer: Tokenizer) -> Graph:
    """The graph of a file by `save_graph`. Raises `UserError` where it is missing, none, or of other tokens."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content = dict(file)
        graph, made_for = Graph(**{name: content[name] for name in ARRAYS}), str(content["tokens_hash"])
    except FileNotFoundError:
        raise UserError(f"{path} is missing; local/prepare_graph.py makes it") from None
    except Exception as e:  # numpy and zipfile raise whatever they happen upon
        raise UserError(f"{path}: not a decoding graph by local/prepare_graph.py ({e})") from None
    if made_for != tokens_hash(tokenizer):
        raise UserError(f"{path}: made for other tokens than the recogniser's; both need the same bpe.model")
    if graph.labels.dtype.kind != "i" or int(graph.labels.max(initial=0)) >= tokenizer.vocab_size:
        raise UserError(f"{path}: damaged: it has labels that are no tokens; local/prepare_graph.py makes it")
    return graph


def tokens_hash(tokenizer: Tokenizer) -> str:
    """As checkpoints have it."""
    return config_hash("\n".join(tokenizer.tokens))
