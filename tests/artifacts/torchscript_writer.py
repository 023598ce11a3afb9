"""A TorchScript file whose code has an effect. Not with annotations as text: the compiler of TorchScript cannot read them."""

from pathlib import Path
from typing import Tuple  # noqa: UP035  # the compiler of torch 1.13 knows this one

import torch


class Writes(torch.nn.Module):
    """A module whose code writes the file `mark` as soon as it is loaded: __setstate__ runs then."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    @torch.jit.export
    def __getstate__(self) -> Tuple[str, bool]:  # noqa: UP006
        return self.mark, self.training

    @torch.jit.export
    def __setstate__(self, state: Tuple[str, bool]) -> None:  # noqa: UP006
        self.mark, self.training = state[0], state[1]
        torch.save(torch.ones(3), self.mark)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write(path: Path, mark: Path) -> None:
    """Write the file `path`, whose code writes `mark`."""
    torch.jit.save(torch.jit.script(Writes(str(mark))), str(path))
