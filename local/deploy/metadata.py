"""The keys that sherpa-onnx reads from the graphs. It ends without an exception where one is missing or wrong."""

from __future__ import annotations

from pathlib import Path

from local.common.errors import UserError
from local.decoding.streaming import OVERLAP
from local.deploy.transducer_graphs import GRAPHS
from model.transducer import Transducer


def expected(model: Transducer, chunk_frames: int) -> dict[str, dict[str, str]]:
    """Return the keys and values that each graph of a model must have."""
    encoder, joiner = model.encoder, model.joiner
    sizes = {
        "encoder": {
            "num_encoder_layers": len(encoder.encoder.layers),
            "T": chunk_frames + OVERLAP,
            "decode_chunk_len": chunk_frames,
            "rnn_hidden_size": encoder.rnn_hidden_size,
            "d_model": encoder.d_model,
        },
        "decoder": {"vocab_size": model.vocab_size, "context_size": model.context_size},
        "joiner": {"joiner_dim": joiner.output_linear.in_features},
    }
    found = {name: {key: str(size) for key, size in values.items()} for name, values in sizes.items()}
    found["encoder"]["model_type"] = "lstm"
    return found


def check_metadata(folder: Path, model: Transducer, chunk_frames: int, int8: bool) -> None:
    """Raise `UserError` naming the first graph in `folder` and the key that is missing or wrong."""
    import onnx

    wanted = expected(model, chunk_frames)
    for name in GRAPHS:
        for ending in (".onnx", ".int8.onnx") if int8 else (".onnx",):
            path = folder / f"{name}{ending}"
            graph = onnx.load(path)
            own = {entry.key: entry.value for entry in graph.metadata_props}
            for key, value in wanted[name].items():
                if own.get(key) != value:
                    raise UserError(f"the gate: {path.name}: metadata key '{key}' is {own.get(key)!r}; must be {value!r}")
