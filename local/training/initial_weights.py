"""A training that starts from the weights of another model (train.init), and weights that do not change (train.freeze)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from local.artifacts.model_sizes import OF_TOKENS, check_fits
from local.artifacts.weights_file import read_weights
from local.common.errors import UserError
from local.config.limits import shown
from local.config.schema import Config, TrainConfig
from local.data.tokenizer import Tokenizer
from model.average import State

import torch
from torch import nn

OPTIONAL = "ctc_head"  # a file without this module fits a model with it


def start_from(model: nn.Module, cfg: Config, tokens: list[str]) -> str:
    """Take the weights of the file train.init, or those below train.init_modules; return what was done, in words.

    tokens: those of `model`. If the file has other ones, rows of tokens that both have are taken, and the others keep their
    initial values. Raises `UserError` for a file that cannot be read, a module that does not exist, and a tensor that does
    not fit.
    """
    train = cfg.train
    path = Path(train.init or "")
    state, theirs, smoothing = read_weights(path)
    own = model.state_dict()
    names = of_modules(own, train.init_modules, "train.init_modules") if train.init_modules else _all(state, own)
    part = {name: own[name] for name in names}
    kept = {name: value for name, value in state.items() if not _is_foreign(name, train.init_modules, own)}
    has_tokens = any(OF_TOKENS.fullmatch(name) for name in names)
    if has_tokens and theirs is None:
        if train.init_tokens is None:
            raise UserError(
                f"{path} does not say its tokens: name its bpe.model by key 'train.init_tokens', or leave out what has tokens "
                "by key 'train.init_modules', such as [encoder]"
            )
        theirs = Tokenizer.from_file(train.init_tokens).tokens
    check_fits(kept, part, path, adapted=True)
    text = f"starting from {path}: {len(part)} of {len(own)} tensors"
    if others := sorted({name.partition(".")[0] for name in own.keys() - part.keys()}):
        text += f"; initial values stay in {', '.join(others)}"
    if has_tokens and theirs is not None:
        _check_rows(kept, theirs, train, path)
        if theirs != tokens:
            rows, others_rows = shared_rows(tokens, theirs)
            text += f"; {len(rows)} of {len(tokens)} tokens are in its {len(theirs)}, the other rows keep their initial values"
            kept = {name: _with_rows(own, name, value, rows, others_rows) for name, value in kept.items()}
    model.load_state_dict({**own, **{name: kept[name] for name in names}})
    if has_tokens and any(getattr(cfg.loss, key) != value for key, value in smoothing.items()):
        keys = " ".join(f"loss.{key}={value:g}" for key, value in smoothing.items())
        text += f"\nwarning: {path} was trained with {keys}: set them, or what it learnt for pruning is lost"
    return text


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Let the parameters below `prefixes`, the value of train.freeze, get no gradient: no optimiser changes them.

    Raises `UserError` naming a prefix that no parameter has, or if no parameter is left.
    """
    parameters = dict(model.named_parameters())
    for name in of_modules(parameters, prefixes, "train.freeze"):
        parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise UserError("key 'train.freeze': nothing is left to train")


def of_modules(names: Iterable[str], prefixes: Sequence[str], key: str) -> list[str]:
    """Return the names below `prefixes`, which end where a part of a name ends: layers.1 is not the beginning of layers.10.

    Raises `UserError` with the configuration's `key` and the first prefix that no name has.
    """
    names = list(names)
    for prefix in prefixes:
        if not any(_is_below(name, prefix) for name in names):
            modules = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UserError(f"key '{key}': nothing in the model is named '{shown(prefix)}'; its modules are {modules}")
    return [name for name in names if any(_is_below(name, prefix) for prefix in prefixes)]


def _is_below(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix.rstrip('.')}.")


def _all(state: State, own: State) -> list[str]:
    """Return the names of all weights of the model, but those of `OPTIONAL` if the file has none of them."""
    absent = not any(_is_below(name, OPTIONAL) for name in state)
    return [name for name in own if not (absent and _is_below(name, OPTIONAL))]


def _is_foreign(name: str, modules: Sequence[str], own: State) -> bool:
    """Return whether a weight of the file is not asked for, or is of a module that the model does not have."""
    if modules:
        return not any(_is_below(name, prefix) for prefix in modules)
    return not any(_is_below(other, name.partition(".")[0]) for other in own)


def _check_rows(state: State, tokens: list[str], train: TrainConfig, path: Path) -> None:
    """Raise `UserError` if the rows of a file are not those of its tokens."""
    for name, value in state.items():
        if OF_TOKENS.fullmatch(name) and len(value) != len(tokens):
            source = train.init_tokens or "the file"
            raise UserError(f"{path}: '{name}' has {len(value)} rows, and {source} has {len(tokens)} tokens")


def shared_rows(tokens: list[str], theirs: list[str]) -> tuple[list[int], list[int]]:
    """Return the ids of the tokens that both have, ours and theirs, in our order."""
    ids = {token: i for i, token in enumerate(theirs)}
    pairs = [(i, ids[token]) for i, token in enumerate(tokens) if token in ids]
    return [i for i, _ in pairs], [i for _, i in pairs]


def _with_rows(own: State, name: str, value: torch.Tensor, rows: list[int], others: list[int]) -> torch.Tensor:
    """Return our tensor with those rows of `value` that are shared; `value` itself if its rows are not tokens."""
    if not OF_TOKENS.fullmatch(name):
        return value
    changed = own[name].clone()
    changed[rows] = value[others].to(changed)
    return changed
