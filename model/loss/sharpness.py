"""How sharply tokens are placed in time: the share of a token's emission probability that its best frame has."""

from __future__ import annotations

from model.loss.interface import JoinerInput, Lattice
from model.loss.lattice import band_recursion
from model.loss.pruned import log_probs
from model.precision import product_dtype

import torch
from torch import Tensor


@torch.no_grad()
def token_peaks(given: JoinerInput, ranges: Tensor, lattice: Lattice) -> Tensor:
    """Return the largest probability that each token is emitted in one frame, given the transcript: (N, U).

    The probabilities of a token sum to 1 over all frames. A search that looks at one frame at a time loses a token whose
    probability is spread over many frames. ranges: (N, T, S), the band of the pruned loss. Padding, and the tokens of an
    utterance for which the band has no path, have 0.
    """
    product = product_dtype(given.enc)
    with torch.autocast(given.enc.device.type, enabled=False):
        px, py, _ = log_probs(given, ranges, lattice, product)
        _, px_occ, _ = band_recursion(px, py, ranges[:, :, 0].contiguous(), lattice.boundary)
    assert px_occ is not None
    found = px_occ[:, :-1].flatten(1)
    peaks = found.new_zeros(found.size(0), lattice.tokens.size(1) + 1)
    return peaks.scatter_reduce(1, ranges.flatten(1), found, "amax")[:, :-1]
