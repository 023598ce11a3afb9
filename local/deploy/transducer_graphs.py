"""A transducer as the three ONNX graphs that sherpa-onnx runs (its online LSTM transducer, with icefall's names and metadata).

Clients take inputs and outputs by their order, and the metadata by name: a missing key ends them. The first decoder context is
-1, ..., -1, 0, with -1 for "no token yet". `temperature` and `blank_penalty` are part of the joiner's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from local.common.errors import UserError
from local.decoding.streaming import OVERLAP, STRIDE
from local.deploy.encoder_graph import add_encoder, encoder_problem
from local.deploy.nodes import Graph
from model.decoder import StatelessDecoder
from model.layers.scaled import ScaledLinear
from model.search.contexts import Joint
from model.transducer import Transducer

import torch

GRAPHS = ("encoder", "decoder", "joiner")


def graph_problem(model: Transducer) -> str | None:
    """Return why `model` cannot be written, naming the key of its config; None if it can be."""
    return encoder_problem(model.encoder)


@torch.no_grad()
def write_graphs(
    model: Transducer,
    folder: Path,
    chunk_frames: int,
    *,
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
    source: Mapping[str, str] | None = None,
) -> None:
    """Write encoder.onnx, decoder.onnx and joiner.onnx of a model in evaluation mode into an existing folder.

    chunk_frames: feature frames per call, a multiple of 4; the encoder also needs the 5 frames that follow them.
    temperature divides the logits, blank_penalty is subtracted from blank's, as in the searches. source: further metadata of
    the encoder, such as the checkpoint's hash. Raises `UserError` if the model cannot be written (`graph_problem`) or onnx is
    missing, ValueError for a chunk_frames or temperature out of range.
    """
    if chunk_frames < STRIDE or chunk_frames % STRIDE:
        raise ValueError(f"chunk_frames must be a multiple of {STRIDE}, got {chunk_frames}")
    if model.training:
        raise ValueError("the model must be in evaluation mode")
    if why := graph_problem(model):
        raise UserError(f"the model cannot be exported: {why}")
    encoder, joiner = model.encoder, model.joiner
    graph = Graph("encoder")
    add_encoder(graph, encoder, joiner.encoder_proj, chunk_frames + OVERLAP, chunk_frames // STRIDE)
    facts = {
        "model_type": "lstm",
        "version": "1",
        "model_author": "",
        "num_encoder_layers": len(encoder.encoder.layers),
        "T": chunk_frames + OVERLAP,
        "decode_chunk_len": chunk_frames,
        "rnn_hidden_size": encoder.rnn_hidden_size,
        "d_model": encoder.d_model,
    }
    graph.write(folder / "encoder.onnx", {**(source or {}), **facts})

    graph = Graph("decoder")
    _add_decoder(graph, model.decoder, joiner.decoder_proj)
    graph.write(folder / "decoder.onnx", {"context_size": model.context_size, "vocab_size": model.vocab_size})

    graph = Graph("joiner")
    _add_joiner(graph, Joint(model, temperature, blank_penalty))
    graph.write(folder / "joiner.onnx", {"joiner_dim": joiner.output_linear.in_features})


def _add_decoder(graph: Graph, decoder: StatelessDecoder, proj: ScaledLinear) -> None:
    """Add y (N, context_size) int64 -> decoder_out (N, J), the joiner's projection applied."""
    y = graph.input("y", ("N", decoder.context_size), "int64")
    ids = torch.arange(-1, decoder.vocab_size, device=decoder.embedding.weight.device)
    table = graph.weight("embedding.weight", decoder.embedding(ids))
    x = graph.node("Gather", table, graph.node("Add", y, graph.integers([1])))  # row 0 is that of "no token yet", id -1
    if decoder.conv is not None:  # a weight per channel and place in the context
        x = graph.node("Mul", x, graph.weight("conv.weight", decoder.conv.get_weight().squeeze(1).t()))
    x = graph.node("Relu", graph.node("ReduceSum", x, graph.integers([1]), keepdims=0))
    graph.output("decoder_out", graph.linear(x, "decoder_proj", proj.get_weight(), proj.get_bias()), ("N", proj.out_features))


def _add_joiner(graph: Graph, joint: Joint) -> None:
    """Add encoder_out (N, J), decoder_out (N, J) -> logit (N, vocab_size)."""
    vocab, width = joint.weight.shape
    inputs = [graph.input(name, ("N", width)) for name in ("encoder_out", "decoder_out")]
    hidden = graph.node("Tanh", graph.node("Add", *inputs))
    graph.output("logit", graph.linear(hidden, "output", joint.weight, joint.bias), ("N", vocab))
