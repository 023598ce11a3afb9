"""Fold the learned scales into the parameters, for models that only recognise: else every chunk multiplies all weights."""

from __future__ import annotations

from model.encoder.subsampling import Conv2dSubsampling
from model.layers.scaled import ScaledEmbedding, scaled

import torch
from torch import nn


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Replace each parameter p of scale s by p exp(s), in place; the scales become None. A folded model stays as it is.

    Results stay equal bit by bit, except for chunks of few frames: these then take `model.kernels.chunk`, which adds in another
    order. The model takes no gradients any more, and a model with scales cannot load its state.
    """
    for module in model.modules():
        for name, scale in _scales(module).items():
            p, s = getattr(module, name), getattr(module, scale)
            if s is not None:
                setattr(module, name, nn.Parameter(scaled(p, s).detach(), requires_grad=False))
                setattr(module, scale, None)
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Conv2dSubsampling):
            module.folded_by_bin = module.by_bin().contiguous()


def _scales(module: nn.Module) -> dict[str, str]:
    """Return the names of a layer's own parameters that have a scale, each with the scale's name."""
    if isinstance(module, ScaledEmbedding):
        return {"weight": "scale"}
    names = module._parameters
    return {name: f"{name}_scale" for name in names if f"{name}_scale" in names}
