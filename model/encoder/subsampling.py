"""The convolutional front end: it makes a quarter of the frames, each with d_model channels."""

from __future__ import annotations

from typing import overload

from model.kernels.matmul import linear
from model.layers.activation import make_activation
from model.layers.balancer import ActivationBalancer, Bounds
from model.layers.norm import make_norm
from model.layers.scaled import ScaledConv2d, ScaledLinear

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_FRAMES = 9  # the fewest frames that give one output frame
PAD_VALUE = -23.025850929940457  # log(1e-10): the features of digital silence


@overload
def subsampled(frames: Tensor) -> Tensor: ...
@overload
def subsampled(frames: int) -> int: ...
def subsampled(frames: int | Tensor) -> int | Tensor:
    """Return the output frames of the front end for `frames` input frames: ((T-3)//2 - 1)//2, at least 0."""
    if isinstance(frames, Tensor):
        return ((((frames - 3) >> 1) - 1) >> 1).clamp(min=0)
    return max((((frames - 3) >> 1) - 1) >> 1, 0)


class Conv2dSubsampling(nn.Module):
    """Three 3x3 convolutions without padding, strides 1, 2, 2, each with balancer and activation; then a linear layer.

    (N, T, F) -> (N, T', d_model), T' = ((T-3)//2 - 1)//2. Each output frame depends on 9 input frames, at steps of 4 frames.
    """

    CHANNELS = (8, 32, 128)
    STRIDES = (1, 2, 2)
    folded_by_bin: Tensor | None  # `by_bin()` of folded parameters

    def __init__(self, num_features: int, d_model: int, balance_prob: float, norm: str, activation: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width, stride in zip(self.CHANNELS, self.STRIDES, strict=True):
            layers += [
                ScaledConv2d(channels, width, 3, stride=stride),
                ActivationBalancer(1, balance_prob),
                make_activation(activation),
            ]
            channels = width
        self.conv = nn.Sequential(*layers)
        self.out = ScaledLinear(channels * subsampled(num_features), d_model)
        self.out_norm = make_norm(norm, d_model, time_axis=1, learn_eps=False)
        self.out_balancer = ActivationBalancer(-1, balance_prob, Bounds(min_positive=0.45, max_positive=0.55))
        self.register_buffer("folded_by_bin", None, persistent=False)

    def by_bin(self) -> Tensor:
        """Return the weight of `out` with its inputs bin by bin, as x lies in memory: the weight is smaller than x."""
        channels = self.CHANNELS[-1]
        return self.out.get_weight().view(len(self.out.weight), channels, -1).transpose(1, 2).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T', d_model) for x (N, T, F); fewer than 9 frames are padded with silence, so that T' is at least 1."""
        if x.size(1) < MIN_FRAMES:
            x = F.pad(x, (0, 0, 0, MIN_FRAMES - x.size(1)), value=PAD_VALUE)
        x = x.unsqueeze(1)
        if x.device.type == "cpu":  # channels last saves oneDNN's reordering and, with the lines below, all copies
            x = x.to(memory_format=torch.channels_last)
        x = self.conv(x)
        n, c, t, f = x.shape
        folded = self.folded_by_bin is not None
        weight = self.by_bin() if self.folded_by_bin is None else self.folded_by_bin
        x = linear(x.permute(0, 2, 3, 1).reshape(n, t, f * c), weight, self.out.get_bias(), folded=folded)
        return self.out_balancer(self.out_norm(x))
