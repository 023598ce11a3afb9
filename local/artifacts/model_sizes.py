"""The sizes of a model, read off the shapes of its weights: for the import, and to say which keys another file needs."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from local.common.errors import UserError
from model.average import State
from model.encoder.subsampling import Conv2dSubsampling, subsampled

import torch

LAYER = r"encoder\.encoder\.layers\.(\d+)\."
WIDTH, CELLS, HIDDEN = "model.encoder.d_model", "model.encoder.rnn_hidden_size", "model.encoder.dim_feedforward"
DECODER, CONTEXT, JOINER = "model.decoder.dim", "model.decoder.context_size", "model.joiner.dim"
LAYERS, CHANNELS, TOKENS = "model.encoder.num_layers", "features.num_mel_bins", "lang.vocab_size"
GATES = "4 x cells"  # of an LSTM
# Tensors of the model, with the key that each of their axes comes from ("" if none).
AXES = tuple(
    (re.compile(pattern), keys)
    for pattern, keys in (
        (r"encoder\.encoder_embed\.out\.weight", (WIDTH, CHANNELS)),
        (LAYER + r"lstm\.weight_(ih|hh)_l0", (GATES, WIDTH)),
        (LAYER + r"lstm\.weight_hr_l0", (WIDTH, CELLS)),
        (LAYER + r"feed_forward\.0\.weight", (HIDDEN, WIDTH)),
        (LAYER + r"feed_forward\.4\.weight", (WIDTH, HIDDEN)),
        (r"decoder\.embedding\.weight", (TOKENS, DECODER)),
        (r"decoder\.conv\.weight", (DECODER, "", CONTEXT)),
        (r"joiner\.encoder_proj\.weight", (JOINER, WIDTH)),
        (r"joiner\.decoder_proj\.weight", (JOINER, DECODER)),
        (r"joiner\.output_linear\.weight", (TOKENS, JOINER)),
        (r"(simple_am_proj|ctc_head\.output_linear)\.weight", (TOKENS, WIDTH)),
        (r"simple_lm_proj\.weight", (TOKENS, DECODER)),
    )
)
# Tensors with a row for each token.
OF_TOKENS = re.compile(r"(decoder\.embedding|(joiner|ctc_head)\.output_linear|simple_(am|lm)_proj)\.(weight|bias)")


def sizes_of(state: State) -> dict[str, int]:
    """Return the sizes of a model by key, each the most frequent one among the tensors that have it.

    So one tensor of a wrong shape does not change them.
    """
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for name, value in state.items():
        for key, size in _axes_of(name, value):
            votes[key][size] += 1
    found = {key: counter.most_common(1)[0][0] for key, counter in votes.items()}
    numbers = [int(match[1]) for name in state if (match := re.match(LAYER, name))]
    if numbers:
        found[LAYERS] = max(numbers) + 1
    if DECODER in found:
        found.setdefault(CONTEXT, 1)  # the decoder has no convolution then
    return found


def _axes_of(name: str, value: torch.Tensor) -> Iterator[tuple[str, int]]:
    """Yield the keys that the axes of a tensor come from, and the value of each."""
    for pattern, keys in AXES:
        if pattern.fullmatch(name) and value.dim() == len(keys):
            for key, size in zip(keys, value.shape, strict=True):
                if key == GATES and size % 4 == 0:
                    yield CELLS, size // 4
                elif key == CHANNELS and size % Conv2dSubsampling.CHANNELS[-1] == 0:
                    yield CHANNELS, channels_for(size // Conv2dSubsampling.CHANNELS[-1])
                elif key not in (GATES, CHANNELS, ""):
                    yield key, size


def channels_for(left: int) -> int:
    """Return the features.num_mel_bins of which the front end leaves so many: the multiple of ten, else the least."""
    least = next(n for n in range(4 * left, 4 * left + 12) if subsampled(n) == left)
    return next((n for n in range(least, least + 4) if n % 10 == 0), least)


def check_fits(state: State, own: State, where: Path, adapted: bool = False) -> None:
    """Raise `UserError` unless weights have the names and shapes of `own`, those of a model or of a part of it.

    adapted: the number of tokens may differ. The message names the first tensor that does not fit, both shapes, and the keys
    to change.
    """
    for name, value in own.items():
        if name not in state:
            raise UserError(f"{where}: has no '{name}', which the model needs{_advice(state, own)}")
        theirs, ours = tuple(state[name].shape), tuple(value.shape)
        rows = adapted and OF_TOKENS.fullmatch(name)
        if (theirs[1:], len(theirs)) != (ours[1:], len(ours)) if rows else theirs != ours:
            raise UserError(f"{where}: '{name}' has the shape {theirs}, and the model needs {ours}{_advice(state, own)}")
        if state[name].is_floating_point() != value.is_floating_point():
            raise UserError(f"{where}: '{name}' has numbers of type {state[name].dtype}, and the model needs {value.dtype}")
    if unknown := next((name for name in state if name not in own), ""):
        raise UserError(f"{where}: has '{unknown}', which the model does not have{_advice(state, own)}")


def _advice(state: State, own: State) -> str:
    theirs, ours = sizes_of(state), sizes_of(own)
    keys = [f"{key}={theirs[key]}" for key in ours if key != TOKENS and theirs.get(key, ours[key]) != ours[key]]
    return f"; set {' '.join(keys)}" if keys else ""
