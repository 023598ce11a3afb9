"""Build an ONNX graph node by node. The same calls give the same bytes: names are numbers, and nothing depends on hashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write
from local.common.errors import UserError

import numpy as np
import torch
from torch import Tensor

OPSET = 13
IR_VERSION = 8  # old clients refuse a newer one: onnxruntime 1.17 takes at most 9
LARGEST = 2_000_000_000  # bytes; a file with its weights inside is one protobuf message, whose limit is 2 GiB
Shape = Sequence[int | str]  # a name stands for a size that the client chooses


def numpy_of(x: Tensor) -> np.ndarray:
    """Return a tensor of any type and device as a float32 array."""
    return x.detach().to("cpu", torch.float32).contiguous().numpy()


class Graph:
    """The nodes and weights of a graph. Methods take and return names of values; all values are float32 unless they say it."""

    def __init__(self, name: str) -> None:
        """Begin a graph. Raises `UserError` if the package onnx is missing."""
        try:
            from onnx import TensorProto, helper, numpy_helper
        except ImportError as e:
            raise UserError(f"an ONNX graph needs the package onnx ({e}): pip install onnx") from None
        self._name, self._helper, self._numpy_helper = name, helper, numpy_helper
        self._types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: Shape, kind: str = "float32") -> str:
        """Declare the next input; clients count them. kind: float32 | int64."""
        self._inputs.append(self._helper.make_tensor_value_info(name, self._types[kind], list(shape)))
        return name

    def output(self, name: str, value: str, shape: Shape) -> None:
        """Declare `value` to be the next output, under the name `name`."""
        self._nodes.append(self._helper.make_node("Identity", [value], [name], f"Identity_{len(self._nodes)}"))
        self._outputs.append(self._helper.make_tensor_value_info(name, self._types["float32"], list(shape)))

    def weight(self, name: str, values: Tensor) -> str:
        """Store a weight, of a name of its own, as float32; any number of nodes may use it."""
        return self._store(name, numpy_of(values))

    def scalar(self, value: float) -> str:
        """Store a number; equal numbers are stored once."""
        return self._store(f"scalar_{value!r}", np.array(value, np.float32), again=True)

    def integers(self, values: Sequence[int]) -> str:
        """Store int64 numbers, such as a shape; equal ones are stored once."""
        return self._store("integers_" + "_".join(map(str, values)), np.array(values, np.int64), again=True)

    def _store(self, name: str, array: np.ndarray, again: bool = False) -> str:
        if name not in self._weights:
            self._weights[name] = self._numpy_helper.from_array(array, name)
        elif not again:
            raise ValueError(f"weight '{name}' is stored already")
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator of one output and return the output's name."""
        return self.nodes(kind, *inputs, outputs=1, **attributes)[0]

    def nodes(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add an operator and return the names of its outputs."""
        name = f"{kind}_{len(self._nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(self._helper.make_node(kind, list(inputs), names, name, **attributes))
        return names

    def linear(self, x: str, name: str, weight: Tensor, bias: Tensor | None) -> str:
        """Return x (..., K) times weight (M, K), transposed, plus bias (M,): (..., M).

        MatMul and Add, not Gemm: int8 versions replace a MatMul whose second factor is a weight.
        """
        y = self.node("MatMul", x, self.weight(f"{name}.weight", weight.t()))
        return y if bias is None else self.node("Add", y, self.weight(f"{name}.bias", bias))

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Return the parts of x along an axis."""
        return [x] if len(sizes) == 1 else self.nodes("Split", x, self.integers(sizes), outputs=len(sizes), axis=axis)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Return x in another shape; 0 keeps a size, -1 takes what is left."""
        return self.node("Reshape", x, self.integers(shape))

    def write(self, path: Path, metadata: Mapping[str, str | int]) -> None:
        """Check the graph and write it to a file, with its metadata. Raises `UserError` if it is too large for one file."""
        size = sum(len(w.raw_data) for w in self._weights.values())
        if size > LARGEST:
            raise UserError(f"{path}: {size / 1e9:.1f} GB of weights; an ONNX file with its weights inside has at most 2 GB")
        graph = self._helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, list(self._weights.values()))
        opset = self._helper.make_opsetid("", OPSET)
        model = self._helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        self._helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
        save_model(model, path)


def save_model(model: Any, path: Path) -> None:
    """Check an ONNX model and write it to a file; equal models give equal bytes."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as tmp:
        tmp.write_bytes(model.SerializeToString(deterministic=True))
