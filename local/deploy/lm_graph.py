"""The language model as the ONNX graph that sherpa-onnx adds to modified beam search (shallow fusion)."""

from __future__ import annotations

from pathlib import Path

from local.deploy.nodes import Graph
from model.lm import LstmLm

import torch
from torch import Tensor


@torch.no_grad()
def write_lm(lm: LstmLm, path: Path) -> None:
    """Write the graph of a model in evaluation mode, with its weights. Raises `UserError` if onnx is missing.

    x (N, U) int64, h0 and c0 (layers, N, hidden) -> log_softmax (N, U, V), next_h0, next_c0.
    """
    graph, lstm = Graph("lm"), lm.lstm
    state = (lstm.num_layers, "N", lstm.hidden_size)
    x = graph.input("x", ("N", "U"), "int64")
    hs, cs = (graph.split(graph.input(name, state), [1] * lstm.num_layers, axis=0) for name in ("h0", "c0"))
    table = graph.weight("embedding.weight", lm.embedding.weight)
    x = graph.node("Transpose", graph.node("Gather", table, x), perm=[1, 0, 2])  # (U, N, dim), which LSTM takes
    for i in range(lstm.num_layers):
        w_ih, w_hh, b_ih, b_hh = (getattr(lstm, f"{kind}_l{i}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        parts = {"W": _onnx_order(w_ih), "R": _onnx_order(w_hh), "B": torch.cat([_onnx_order(b_ih), _onnx_order(b_hh)])}
        weights = [graph.weight(f"layer{i}.{name}", part.unsqueeze(0)) for name, part in parts.items()]
        y, hs[i], cs[i] = graph.nodes("LSTM", x, *weights, "", hs[i], cs[i], outputs=3, hidden_size=lstm.hidden_size)
        x = graph.node("Squeeze", y, graph.integers([1]))  # the axis of directions
    logits = graph.linear(graph.node("Transpose", x, perm=[1, 0, 2]), "output", lm.output.weight, lm.output.bias)
    graph.output("log_softmax", graph.node("LogSoftmax", logits, axis=-1), ("N", "U", lm.vocab_size))
    for name, states in (("next_h0", hs), ("next_c0", cs)):
        graph.output(name, graph.node("Concat", *states, axis=0), state)
    facts = {"num_layers": lstm.num_layers, "hidden_size": lstm.hidden_size, "sos_id": lm.sos_eos_id}
    graph.write(path, facts)


def _onnx_order(gates: Tensor) -> Tensor:
    """Return rows in ONNX's order i, o, f, g; torch's is i, f, g, o."""
    i, f, g, o = gates.chunk(4)
    return torch.cat([i, o, f, g])
