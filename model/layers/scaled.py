"""Linear, convolution, embedding and recurrent layers whose parameters carry a learned scale.

Each weight or bias `p` has a scalar `s`; the layer uses `p * exp(s)`, so one scalar's step changes a tensor's overall size.
Scheme and parameter names are those of icefall's `scaling.py` (D. Povey and others, 2022), so its published weights load.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from model.kernels import compiled_on
from model.kernels.matmul import conv2d, linear
from model.layers.lstm import lstm_cpu
from model.precision import exact_dtype, product_dtype

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_STD = 0.1
COMPILED_MIN_SIZE = 1 << 18  # elements; for fewer, calling the compiled pass takes longer than it saves
# The scaled parameters are new tensors in every pass, so cuDNN has to copy them into one chunk each time.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk of memory")


def _init_uniform(weight: Tensor, initial_speed: float) -> float:
    """Fill `weight` uniformly with the standard deviation 0.1 / initial_speed, and return that."""
    std = INITIAL_STD / initial_speed
    bound = math.sqrt(3) * std
    nn.init.uniform_(weight, -bound, bound)
    return std


def _initial_weight_scale(fan_in: int, std: float, initial_scale: float) -> float:
    """Return the log of the factor that turns `std` into initial_scale / sqrt(fan_in)."""
    return math.log(initial_scale) + math.log(fan_in**-0.5 / std)


class _Scale(torch.autograd.Function):
    """p exp(s). The gradient of s is a sum over all of p whose terms nearly cancel, so it is made in float64."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, s: Tensor) -> Tensor:
        factor = s.exp()
        ctx.save_for_backward(p, factor)
        return p * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        p, factor = ctx.saved_tensors
        grad = grads[0]
        large = p.numel() >= COMPILED_MIN_SIZE and p.dtype == grad.dtype == torch.float32
        if large and p.is_contiguous() and grad.is_contiguous() and compiled_on(p.device):
            from model.kernels.math import scale_backward

            d_p, total = scale_backward(grad, p, float(factor))
            return d_p, total * factor
        return grad * factor, (grad * p).sum(dtype=torch.float64).to(p.dtype) * factor


def scaled(p: Tensor, s: Tensor | None) -> Tensor:
    """Return p * exp(s), the tensor in use, for a parameter p of any shape and its scalar s; p itself if s is folded (None)."""
    return p if s is None else _Scale.apply(p, s)


class _Scaled(nn.Module):
    """A mixin for a torch layer with `weight` and `bias`: adds `weight_scale`, `bias_scale` and the scaled accessors."""

    weight: Any  # the torch layer's
    bias: Any

    def _add_scales(self, initial_scale: float, initial_speed: float) -> None:
        std = _init_uniform(self.weight.data, initial_speed)
        fan_in = self.weight[0].numel()
        self.weight_scale = nn.Parameter(torch.tensor(_initial_weight_scale(fan_in, std, initial_scale)))
        if self.bias is None:
            self.register_parameter("bias_scale", None)
        else:
            nn.init.zeros_(self.bias)
            self.bias_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))

    def get_weight(self) -> Tensor:
        """Return weight * exp(weight_scale), the weight in use."""
        return scaled(self.weight, self.weight_scale)

    def get_bias(self) -> Tensor | None:
        """Return bias * exp(bias_scale), the bias in use, or None."""
        return None if self.bias is None else scaled(self.bias, self.bias_scale)


class ScaledLinear(nn.Linear, _Scaled):
    """`nn.Linear` with scaled parameters: (..., in_features) -> (..., out_features)."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, initial_scale: float = 1.0, initial_speed: float = 1.0
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self._add_scales(initial_scale, initial_speed)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (..., out_features) for x (..., in_features)."""
        return linear(x, self.get_weight(), self.get_bias(), folded=self.weight_scale is None)


class ScaledConv1d(nn.Conv1d, _Scaled):
    """`nn.Conv1d` with scaled parameters: (N, C, T) -> (N, C', T'). Zero padding only."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, groups: int = 1, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size, groups=groups, bias=bias)
        self._add_scales(1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (N, C', T') for x (N, C, T)."""
        return F.conv1d(x, self.get_weight(), self.get_bias(), self.stride, self.padding, self.dilation, self.groups)


class ScaledConv2d(nn.Conv2d, _Scaled):
    """`nn.Conv2d` with scaled parameters: (N, C, T, F) -> (N, C', T', F'). Zero padding only."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride)
        self._add_scales(1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (N, C', T', F') for x (N, C, T, F)."""
        return conv2d(x, self.get_weight(), self.get_bias(), self.stride)


class ScaledEmbedding(nn.Module):
    """An embedding with one learned scale: ids (...) int64 -> (..., embedding_dim). Ids below 0 give zeros."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim))
        nn.init.normal_(self.weight, std=INITIAL_STD)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_STD)))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings (..., embedding_dim) of ids (...)."""
        embedded = F.embedding(ids.clamp(min=0), self.weight)
        if self.scale is not None:
            embedded = embedded * self.scale.exp()
        return embedded * (ids >= 0).unsqueeze(-1)


GATES = {"lstm": 4, "gru": 3, "rnn": 1}


class ScaledRNN(nn.Module):
    """One recurrent layer with scaled parameters, optionally with a projection of its output (lstm only).

    The projection is that of Sak et al., "Long short-term memory based recurrent neural network architectures" (2014).
    mode: lstm | gru | rnn (tanh). hidden_size: cells. proj_size: output width; equal to hidden_size without a projection.
    """

    def __init__(self, mode: str, input_size: int, hidden_size: int, proj_size: int) -> None:
        super().__init__()
        if mode not in GATES:
            raise ValueError(f"unknown recurrent layer '{mode}'; choose one of {', '.join(GATES)}")
        if proj_size != hidden_size and mode != "lstm":
            raise ValueError(f"'{mode}' has no projection: hidden size {hidden_size} must equal width {proj_size}")
        self.mode, self.hidden_size = mode, hidden_size
        rows = GATES[mode] * hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih_l0": (rows, input_size),
            "weight_hh_l0": (rows, proj_size),
            "bias_ih_l0": (rows,),
            "bias_hh_l0": (rows,),
        }
        if proj_size != hidden_size:
            shapes["weight_hr_l0"] = (proj_size, hidden_size)
        self.names = tuple(shapes)
        for name, shape in shapes.items():
            param = torch.zeros(shape)
            is_weight = name.startswith("weight")
            scale = _initial_weight_scale(hidden_size, _init_uniform(param, 1.0), 1.0) if is_weight else 0.0
            self.register_parameter(name, nn.Parameter(param))
            self.register_parameter(name + "_scale", nn.Parameter(torch.tensor(scale)))

    @property
    def folded(self) -> bool:
        """Return whether the parameters have no scales any more (`model.folding`)."""
        return self.weight_ih_l0_scale is None

    def scaled_parameters(self) -> list[Tensor]:
        """Return the parameters in use, in torch's order: w_ih, w_hh, b_ih, b_hh and, with a projection, w_hr."""
        return [scaled(getattr(self, name), getattr(self, name + "_scale")) for name in self.names]

    def forward(
        self, x: Tensor, h0: Tensor, c0: Tensor, params: list[Tensor], *, merged: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the layer: x (T, N, C), h0 (1, N, proj_size), c0 (1, N, hidden_size) -> out (T, N, proj_size), h, c.

        params: `scaled_parameters()`, perhaps passed through the gradient filter. gru and rnn return c0 unchanged.
        merged: run an lstm with projection by `_merged`. h0 and c0 must be zeros.
        """
        if merged:
            return self._merged(x, c0, params)
        if self.mode == "lstm" and x.device.type == "cpu":
            states = h0[0].to(exact_dtype(x)), c0[0].to(exact_dtype(x))
            out, h, c = lstm_cpu(x.to(exact_dtype(x)), *states, params, product_dtype(x))
            return out, h.unsqueeze(0), c.unsqueeze(0)
        # Autocast runs cuDNN's layers in float16 even if it was asked for bfloat16; gradients of summed losses overflow that.
        dtype = product_dtype(x)
        options = (True, 1, 0.0, self.training, False, False)
        with torch.autocast(x.device.type, enabled=False):
            x, h0, c0, params = x.to(dtype), h0.to(dtype), c0.to(dtype), [p.to(dtype) for p in params]
            if self.mode == "lstm":
                return torch._VF.lstm(x, (h0, c0), params, *options)  # type: ignore[attr-defined]
            function = torch._VF.gru if self.mode == "gru" else torch._VF.rnn_tanh  # type: ignore[attr-defined]
            out, h = function(x, h0, params, *options)
            return out, h, c0

    def _merged(self, x: Tensor, zeros: Tensor, params: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Run an lstm with projection as one without: it saves a GPU the projection's kernels in every frame.

        With h = W_hr m, the gates' recurrent share is W_hh h = (W_hh W_hr) m, so the layer is an lstm over m (T, N,
        hidden_size) of recurrent weights W_hh W_hr; one product for all frames makes out = m W_hr'. This needs h0 = 0, which
        is W_hr m0 for m0 = 0; other h0 may have no m0. Autograd gives the gradients of W_hh and W_hr.
        zeros: (1, N, hidden_size), both states before the first frame.
        """
        w_ih, w_hh, b_ih, b_hh, w_hr = params
        with torch.autocast(x.device.type, enabled=False):  # a product in bfloat16 would round the weights twice
            recurrent = linear(w_hh, w_hr.t(), None)
        m, _, c = self.forward(x, zeros, zeros, [w_ih, recurrent, b_ih, b_hh])
        out = linear(m, w_hr, None)
        return out, out[-1:], c
