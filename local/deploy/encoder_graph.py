"""The encoder as an ONNX graph, for chunks of a fixed length; its LSTMs are written out frame by frame.

The ONNX operator LSTM has no projection. What does not depend on the frame before is one product over all frames of a chunk.
Values are (frames, N, channels), as in the model, so that a frame is a slice.
"""

from __future__ import annotations

from typing import cast

from local.deploy.nodes import Graph
from model.encoder.lstm import LstmEncoder, RecurrentLayer
from model.encoder.subsampling import Conv2dSubsampling
from model.layers.activation import DoubleSwish
from model.layers.norm import BasicNorm
from model.layers.scaled import ScaledConv2d, ScaledLinear, ScaledRNN

import torch
from torch import Tensor, nn

ACTIVATIONS = {nn.ReLU: "Relu", nn.Sigmoid: "Sigmoid", nn.Tanh: "Tanh"}  # besides DoubleSwish


def encoder_problem(encoder: LstmEncoder) -> str | None:
    """Return why an encoder cannot be written for streaming clients, with the key of its config; None if it can be."""
    modules = list(encoder.modules())
    if odd := [m.mode for m in modules if isinstance(m, ScaledRNN) and m.mode != "lstm"]:
        return f"key 'model.encoder.rnn' is {odd[0]}; clients know the states of 'lstm' only"
    if any(isinstance(m, nn.InstanceNorm1d) for m in modules):
        return "key 'model.encoder.norm' is instance, which needs all frames of an utterance; any other norm can be exported"
    return None


def add_encoder(graph: Graph, encoder: LstmEncoder, proj: ScaledLinear, frames: int, chunk: int) -> None:
    """Add inputs, nodes and outputs of `encoder`, in evaluation, followed by the joiner's projection `proj`.

    x (N, frames, F), state0 (L, N, d_model), state1 (L, N, cells) -> encoder_out (N, chunk, J), new_state0, new_state1.
    """
    layers = [cast(RecurrentLayer, layer) for layer in encoder.encoder.layers]
    shapes = [(len(layers), "N", width) for width in (encoder.d_model, encoder.rnn_hidden_size)]
    x = graph.input("x", ("N", frames, encoder.num_features))
    states = [graph.input(f"state{i}", shape) for i, shape in enumerate(shapes)]
    if encoder.feature_floor is not None:
        x = graph.node("Max", x, graph.weight("feature_floor", encoder.feature_floor))
    x = _front_end(graph, encoder.encoder_embed, x)
    hs, cs = ([*graph.split(state, [1] * len(layers), axis=0)] for state in states)
    for i, layer in enumerate(layers):
        x, hs[i], cs[i] = _layer(graph, layer, f"layer{i}", (x, hs[i], cs[i]), chunk)
    x = graph.linear(x, "encoder_proj", proj.get_weight(), proj.get_bias())
    graph.output("encoder_out", graph.node("Transpose", x, perm=[1, 0, 2]), ("N", chunk, proj.out_features))
    for i, parts in enumerate((hs, cs)):
        graph.output(f"new_state{i}", graph.node("Concat", *parts, axis=0), shapes[i])


def _front_end(graph: Graph, embed: Conv2dSubsampling, x: str) -> str:
    """Return x (N, T, F) -> (T', N, d_model)."""
    x = graph.node("Unsqueeze", x, graph.integers([1]))
    for i, module in enumerate(embed.conv):
        if isinstance(module, ScaledConv2d):
            weight, bias = module.get_weight(), cast(Tensor, module.get_bias())
            weights = graph.weight(f"conv{i}.weight", weight), graph.weight(f"conv{i}.bias", bias)
            x = graph.node("Conv", x, *weights, kernel_shape=list(module.kernel_size), strides=list(module.stride))
        else:
            x = _activation(graph, module, x)
    x = graph.node("Transpose", x, perm=[2, 0, 1, 3])  # (N, C, T', F') -> (T', N, C, F')
    x = graph.linear(graph.reshape(x, [0, 0, -1]), "embed", embed.out.get_weight(), embed.out.get_bias())
    return _norm(graph, embed.out_norm, "embed_norm", x)


def _layer(graph: Graph, layer: RecurrentLayer, name: str, inputs: tuple[str, str, str], frames: int) -> tuple[str, str, str]:
    """Return out (T', N, d_model), last h (1, N, d_model), last c (1, N, cells) for x, h, c of the same shapes."""
    x, h, c = inputs
    out, h, c = _lstm(graph, layer.lstm, f"{name}.lstm", (x, h, c), frames)
    x = y = graph.node("Add", x, out)
    for i, module in enumerate(layer.feed_forward):
        if isinstance(module, ScaledLinear):
            y = graph.linear(y, f"{name}.feed_forward{i}", module.get_weight(), module.get_bias())
        else:
            y = _activation(graph, module, y)
    return _norm(graph, layer.norm_final, f"{name}.norm", graph.node("Add", x, y)), h, c


def _lstm(graph: Graph, lstm: ScaledRNN, name: str, inputs: tuple[str, str, str], frames: int) -> tuple[str, str, str]:
    """Return all outputs (T', N, P), the last one (1, N, P) and the last cells (1, N, H) for x (T', N, C), h and c."""
    x, h, c = inputs
    w_ih, w_hh, b_ih, b_hh, *projection = lstm.scaled_parameters()
    cells = lstm.hidden_size
    by_x = graph.linear(x, f"{name}.ih", _output_gate_third(w_ih), _output_gate_third(b_ih + b_hh))
    recurrent = graph.weight(f"{name}.hh.weight", _output_gate_third(w_hh).t())
    projections = [graph.weight(f"{name}.hr.weight", w.t()) for w in projection]
    outputs = []
    for by_frame in graph.split(by_x, [1] * frames, axis=0):
        gates = graph.node("Add", by_frame, graph.node("MatMul", h, recurrent))
        ifo, g = graph.split(gates, [3 * cells, cells], axis=2)
        i, f, o = graph.split(graph.node("Sigmoid", ifo), [cells] * 3, axis=2)
        c = graph.node("Add", graph.node("Mul", f, c), graph.node("Mul", i, graph.node("Tanh", g)))
        h = graph.node("Mul", o, graph.node("Tanh", c))
        for w in projections:
            h = graph.node("MatMul", h, w)
        outputs.append(h)
    return (graph.node("Concat", *outputs, axis=0) if frames > 1 else h), h, c


def _output_gate_third(gates: Tensor) -> Tensor:
    """Return rows in the order i, f, o, g, so that the gates with a sigmoid lie side by side; torch's is i, f, g, o."""
    i, f, g, o = gates.chunk(4)
    return torch.cat([i, f, o, g])


def _activation(graph: Graph, module: nn.Module, x: str) -> str:
    """Return a module's output; balancers and dropout do nothing in evaluation."""
    if isinstance(module, DoubleSwish):
        return graph.node("Mul", x, graph.node("Sigmoid", graph.node("Add", x, graph.scalar(-1.0))))
    kind = ACTIVATIONS.get(type(module))
    return x if kind is None else graph.node(kind, x)


def _norm(graph: Graph, norm: nn.Module, name: str, x: str) -> str:
    """Return x (T', N, C) after a norm that treats each frame by itself; in evaluation, batch norm does."""
    norm = getattr(norm, "norm", norm)  # batch norm is inside a change of axes
    if isinstance(norm, BasicNorm):
        square = graph.node("ReduceMean", graph.node("Mul", x, x), axes=[-1])
        eps = graph.weight(f"{name}.eps", norm.eps.exp())
        return graph.node("Div", x, graph.node("Sqrt", graph.node("Add", square, eps)))
    if isinstance(norm, nn.Identity):
        return x
    weight, bias = norm.weight, norm.bias
    if isinstance(norm, nn.BatchNorm1d):
        weight = weight * (norm.running_var + norm.eps).rsqrt()
        bias = bias - norm.running_mean * weight
    elif isinstance(norm, nn.GroupNorm):
        grouped = graph.reshape(x, [0, 0, norm.num_groups, -1])
        x = graph.reshape(_standard(graph, grouped, norm.eps), [0, 0, -1])
    else:
        x = _standard(graph, x, norm.eps)
    x = graph.node("Mul", x, graph.weight(f"{name}.weight", weight))
    return graph.node("Add", x, graph.weight(f"{name}.bias", bias))


def _standard(graph: Graph, x: str, eps: float) -> str:
    """Return x with mean 0 and variance 1 along the last axis; opset 13 has no operator for it."""
    x = graph.node("Sub", x, graph.node("ReduceMean", x, axes=[-1]))
    variance = graph.node("ReduceMean", graph.node("Mul", x, x), axes=[-1])
    return graph.node("Div", x, graph.node("Sqrt", graph.node("Add", variance, graph.scalar(eps))))
