"""Files of decoding graphs: local/prepare_graph.py writes them, decoding reads them."""

from __future__ import annotations

from pathlib import Path

from local.common.atomic import atomic_write
from local.common.errors import UserError, reason
from local.data.tokenizer import Tokenizer
from model.search.graph import Graph

import numpy as np

ARRAYS = ("offsets", "labels", "next_states", "weights", "finals")


def save_graph(graph: Graph, tokenizer: Tokenizer, path: Path) -> None:
    """Write the arrays of a graph, and a hash of the tokens that its labels stand for."""
    arrays = {name: getattr(graph, name) for name in ARRAYS}
    with atomic_write(path) as tmp, tmp.open("wb") as f:
        np.savez_compressed(f, tokens_hash=np.array(tokenizer.hash), **arrays)


def load_graph(path: Path, tokenizer: Tokenizer) -> Graph:
    """Read a file of `save_graph`. Raises `UserError` if it is missing, not a graph, damaged, or made for other tokens."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content = dict(file)
        graph, made_for = Graph(**{name: content[name] for name in ARRAYS}), str(content["tokens_hash"])
    except FileNotFoundError:
        raise UserError(f"{path} is missing; local/prepare_graph.py makes it") from None
    except Exception as e:  # numpy and zipfile raise many kinds on damaged files
        raise UserError(f"{path}: not a decoding graph of local/prepare_graph.py ({reason(e)})") from None
    if made_for != tokenizer.hash:
        raise UserError(f"{path}: made for other tokens than the recogniser's; both need the same bpe.model")
    if graph.labels.dtype.kind != "i" or int(graph.labels.max(initial=0)) >= tokenizer.vocab_size:
        raise UserError(f"{path}: damaged: it has labels that are not tokens; local/prepare_graph.py makes it again")
    return graph
