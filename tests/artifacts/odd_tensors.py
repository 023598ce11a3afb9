"""Files of torch.save with tensors that are not weights: of other layouts, devices and types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class Sub(torch.Tensor):
    pass


def negative() -> torch.Tensor:
    return torch.view_as_complex(torch.ones(2, 2)).conj().imag


ODD = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "csr": lambda: torch.eye(2).to_sparse_csr(),
    "meta": lambda: torch.empty(2, device="meta"),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "float8": lambda: torch.ones(2).to(getattr(torch, "float8_e4m3fn")),  # noqa: B009  # not in torch 1.13
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "subclass": lambda: torch.ones(2).as_subclass(Sub),
    "expanded": lambda: torch.ones(1).expand(10**12),
    "overlapping": lambda: torch.ones(6).as_strided((4, 3), (1, 1)),
    "transposed": lambda: torch.ones(2, 3).t(),
    "negative view": negative,
    "a storage many times": lambda: [torch.ones(1000).view(10, 100)] * 5000,
}


def raw(path: Path, content: Any) -> None:
    """Write what torch writes: `save_file` would make other values of some."""
    torch.save(content, path)
