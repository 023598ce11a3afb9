"""Random numbers of torch: a seed per process, and their state in checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_apart(seed: int, rank: int, step: int) -> None:
    """Seed torch differently for each process and step."""
    torch.manual_seed(int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0]) >> 1)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the CPU's generator, and of the GPU's if the device is one."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned; the state of a run without a GPU leaves a GPU's generator as it is."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def restore_random_state(saved: dict[str, Any], device: torch.device, rank: int, seed: int, step: int) -> int:
    """Restore the state of process `rank` from a checkpoint at `step`; return how many processes wrote it.

    saved: the state of the first process, and with the key `others` those of the others. A process that had none is seeded.
    """
    states = [saved, *saved.get("others", [])]
    if rank < len(states):
        set_random_state(states[rank], device)
    else:
        seed_apart(seed, rank, step)
    return len(states)
