"""torch's random numbers: a process's own, and their state as checkpoints have it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def seed_apart(seed: int, rank: int, step: int) -> None:
    """Seed this process as no other process or step is."""
    torch.manual_seed(int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0]) >> 1)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The CPU's generator, and the GPU's where the device is one."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on from `random_state()`'s; a GPU's generator stays as it is where the state is of a run without one."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
