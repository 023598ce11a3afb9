"""The LSTM encoder of icefall's `lstm_transducer_stateless3` (Z. Yao, D. Povey and others, 2022), with its parameter names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from model.encoder.subsampling import Conv2dSubsampling, subsampled
from model.kernels.matmul import is_chunk
from model.layers.activation import make_activation
from model.layers.balancer import ActivationBalancer, Bounds
from model.layers.dropout import Dropout
from model.layers.gradient_filter import GradientFilter
from model.layers.norm import make_norm
from model.layers.scaled import ScaledLinear, ScaledRNN

import torch
from torch import Tensor, nn

States = tuple[Tensor, Tensor]
"""h (layers, N, d_model) and c (layers, N, rnn_hidden_size)."""


@dataclass(frozen=True)
class LayerOptions:
    """Sizes and choices of a layer, as in `model.encoder` of conf/base.yaml.

    filter_threshold: None: no gradient filter. merged: whether `train.lstm` is merged.
    """

    rnn: str
    d_model: int
    rnn_hidden_size: int
    dim_feedforward: int
    dropout: float
    layer_dropout: float
    balance_prob: float
    norm: str
    activation: str
    filter_threshold: float | None
    merged: bool


class RecurrentLayer(nn.Module):
    """y = x + dropout(lstm(x)); y = y + dropout(ff(y)); y = norm(balancer(y)); out = alpha y + (1 - alpha) x.

    alpha is 1 in evaluation; in training min(0.1 + warmup, 1), or 0.1 with probability `layer_dropout` (stochastic depth).
    merged: in training, `ScaledRNN` multiplies the projection into the recurrent weights; the results differ by rounding.
    """

    def __init__(self, o: LayerOptions) -> None:
        super().__init__()
        self.layer_dropout, self.merged = o.layer_dropout, o.merged
        self.lstm = ScaledRNN(o.rnn, o.d_model, o.rnn_hidden_size, o.d_model)
        self.feed_forward = nn.Sequential(
            ScaledLinear(o.d_model, o.dim_feedforward),
            ActivationBalancer(-1, o.balance_prob),
            make_activation(o.activation),
            Dropout(o.dropout),
            ScaledLinear(o.dim_feedforward, o.d_model, initial_scale=0.25),
        )
        self.dropout = Dropout(o.dropout)
        self.balancer = ActivationBalancer(-1, o.balance_prob, Bounds(0.45, 0.55, max_abs=6.0))
        self.norm_final = make_norm(o.norm, o.d_model, time_axis=0)
        self.gradient_filter = None if o.filter_threshold is None else GradientFilter(o.filter_threshold)
        self.compilable = (o.rnn, o.norm, o.activation) == ("lstm", "basic", "double_swish")

    def forward(
        self, x: Tensor, h: Tensor, c: Tensor, warmup: float, from_zeros: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run x (T, N, C), h (1, N, C), c (1, N, hidden) -> out (T, N, C), last h and c; `warmup` as in `LstmEncoder`.

        from_zeros: h and c are known to be zeros.
        """
        alpha = 1.0
        if self.training:
            keep = self.layer_dropout == 0 or torch.rand(()).item() >= self.layer_dropout
            alpha = min(0.1 + warmup, 1.0) if keep else 0.1
        residual = x
        params, filtered = self.lstm.scaled_parameters(), x
        if self.gradient_filter is not None:
            filtered, params = self.gradient_filter(x, params)
        rnn_out, h, c = self.lstm(filtered, h, c, params, merged=self.merged and self.training and from_zeros)
        y = x + self.dropout(rnn_out)
        y = y + self.dropout(self.feed_forward(y))
        y = self.norm_final(self.balancer(y))
        return (y if alpha == 1.0 else torch.lerp(residual.to(y.dtype), y, alpha)), h, c

    def folded_parameters(self) -> tuple[list[Tensor], list[Tensor], Tensor] | None:
        """Return weights, biases and the norm's parameter as `model.kernels.chunk` takes them; None if it does not."""
        if not (self.compilable and self.lstm.folded):
            return None
        w_ih, w_hh, b_ih, b_hh, *w_hr = self.lstm.scaled_parameters()
        first, last = (cast(ScaledLinear, self.feed_forward[i]) for i in (0, -1))
        weights = [w_ih, w_hh, w_hr[0] if w_hr else w_hh.new_empty(0, 1), first.weight, last.weight]
        return weights, [b_ih, b_hh, first.bias, last.bias], cast(Tensor, self.norm_final.eps)


class RecurrentStack(nn.Module):
    """The layers one after another."""

    def __init__(self, layers: list[RecurrentLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, states: States, warmup: float, from_zeros: bool = False) -> tuple[Tensor, States]:
        """Run all layers: x (T, N, C) -> out (T, N, C) and new states. from_zeros: `states` are known to be zeros."""
        if not self.training and is_chunk(x, x.size(0) * x.size(1)):
            found = [cast(RecurrentLayer, layer).folded_parameters() for layer in self.layers]
            parameters = [p for p in found if p is not None]
            if len(parameters) == len(self.layers):
                from model.kernels.chunk import layers

                x, h, c = layers(x, *states, *zip(*parameters, strict=True))
                return x, (h, c)
        hs, cs = [], []
        for i, layer in enumerate(self.layers):
            x, h, c = layer(x, states[0][i : i + 1], states[1][i : i + 1], warmup, from_zeros)
            hs.append(h)
            cs.append(c)
        return x, (torch.cat(hs), torch.cat(cs))


class LstmEncoder(nn.Module):
    """Features (N, T, F) -> encoder output (N, T', d_model), left to right, with states for streaming.

    feature_floor: (F,), or None. In evaluation, features below it are lifted to it: digital silence is far below all that a
    model was trained on, and is answered with words. It is not a weight: checkpoints keep it apart.
    """

    feature_floor: Tensor | None

    def __init__(self, num_features: int, num_layers: int, o: LayerOptions) -> None:
        super().__init__()
        self.num_features, self.d_model, self.rnn_hidden_size = num_features, o.d_model, o.rnn_hidden_size
        self.encoder_embed = Conv2dSubsampling(num_features, o.d_model, o.balance_prob, o.norm, o.activation)
        self.encoder = RecurrentStack([RecurrentLayer(o) for _ in range(num_layers)])
        self.register_buffer("feature_floor", None, persistent=False)

    def initial_states(self, batch_size: int, like: Tensor) -> States:
        """Return zero states for `batch_size` sequences, on the device and in the type of `like`."""
        h = like.new_zeros(len(self.encoder.layers), batch_size, self.d_model)
        return h, like.new_zeros(len(self.encoder.layers), batch_size, self.rnn_hidden_size)

    def forward(
        self, x: Tensor, x_lens: Tensor, states: States | None = None, warmup: float = 1.0
    ) -> tuple[Tensor, Tensor, States]:
        """Encode features x (N, T, num_features) of x_lens (N,) int64 frames; ValueError for another shape.

        states: those returned for the frames before, or None.
        warmup: batches so far / warm-up batches; in training, below 0.9, a layer's output is mixed with its input.
        Return out (N, T', d_model), out_lens (N,) = ((x_lens-3)//2 - 1)//2, and the states after the last frame (valid for
        sequences without padding).
        """
        if x.ndim != 3 or x.size(2) != self.num_features:
            raise ValueError(f"features must have the shape (N, T, {self.num_features}), got {tuple(x.shape)}")
        if self.feature_floor is not None and not self.training:
            x = torch.maximum(x, self.feature_floor)
        y = self.encoder_embed(x).transpose(0, 1)
        given = states or self.initial_states(x.size(0), y)
        y, states = self.encoder(y, given, warmup, from_zeros=states is None)
        return y.transpose(0, 1), subsampled(x_lens), states
