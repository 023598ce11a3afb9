"""Token log-probabilities for many (frame, context) pairs at once; everything that stays the same is computed once.

The decoder is stateless: its output depends on the last `context_size` tokens only. The number of a context has its tokens,
each plus one, as digits to the base vocab_size + 1 (-1, "no token yet", is the digit 0).
"""

from __future__ import annotations

from typing import Any

from model.kernels.beam_state import Numbering

import torch

# If there are at most this many contexts, the decoder's outputs for all are computed beforehand (44 tokens, 2 in a context).
MAX_TABLE = 2048
# More computed contexts than this are not taken over into the next batch.
MAX_CACHED = 65536


class Contexts:
    """Numbers contexts, and gives the joiner's projection of the decoder's output for them, each computed only once."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """Prepare a table for `model`, whose weights are on `device`; ValueError if the contexts are too many for 62 bits."""
        self.model = model
        self.size = int(model.context_size)
        self.base = int(model.vocab_size) + 1
        self.numbering = Numbering(self.base, self.base ** (self.size - 1))
        if self.base**self.size >= 2**62:
            raise ValueError(f"{self.size} tokens of context over {model.vocab_size} tokens are too many to number")
        self.device = device
        self._complete = self.base**self.size <= MAX_TABLE
        self._rows = torch.empty(0)
        if self._complete:
            self._rows = self._compute(torch.arange(self.base**self.size, device=device))
        # The contexts computed so far in rising order, and the row of `_rows` of each.
        self._keys = torch.empty(0, dtype=torch.int64, device=device)
        self._slots = torch.empty(0, dtype=torch.int64, device=device)

    def trim(self) -> None:
        """Empty the table if it has become large. Call this between batches."""
        if len(self._keys) > MAX_CACHED:
            self._keys, self._slots, self._rows = (x.new_empty(0) for x in (self._keys, self._slots, self._rows))

    def number(self, tokens: list[int]) -> int:
        """Return the number of a context given as `context_size` token ids (-1: no token yet)."""
        number = 0
        for token in tokens:
            number = number * self.base + token + 1
        return number

    def decode(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return the projected decoder output (..., J) for context numbers of any shape (...)."""
        flat = contexts.reshape(-1)
        rows = flat if self._complete else self._find(flat)
        return self._rows.index_select(0, rows).view(*contexts.shape, self._rows.shape[1])

    def _find(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return the rows of `contexts` in `_rows`; compute those that are missing."""
        if len(self._keys):
            place = torch.searchsorted(self._keys, contexts).clamp_(max=len(self._keys) - 1)
            missing = contexts[self._keys[place] != contexts]
            if not len(missing):
                return self._slots[place]
        else:
            missing = contexts
        missing = missing.unique()
        self._append(self._compute(missing), len(self._keys))
        new_slots = torch.arange(len(self._keys), len(self._keys) + len(missing), device=self.device)
        self._keys, order = torch.cat([self._keys, missing]).sort()
        self._slots = torch.cat([self._slots, new_slots])[order]
        return self._slots[torch.searchsorted(self._keys, contexts)]

    def _append(self, rows: torch.Tensor, used: int) -> None:
        """Store rows after the `used` ones; the storage doubles when it is full."""
        if used + len(rows) > len(self._rows):
            larger = rows.new_empty(max(1024, 2 * (used + len(rows))), rows.shape[1])
            if used:
                larger[:used] = self._rows[:used]
            self._rows = larger
        self._rows[used : used + len(rows)] = rows

    def _compute(self, contexts: torch.Tensor) -> torch.Tensor:
        powers = [self.base**i for i in range(self.size - 1, -1, -1)]
        digits = torch.stack([contexts // power % self.base for power in powers], dim=1)
        decoder_out = self.model.decoder(digits - 1, need_pad=False).squeeze(1)
        return self.model.joiner.decoder_proj(decoder_out).float()


class Joint:
    """The joiner's output layer, its scaled weights computed once, followed by temperature and log-softmax."""

    def __init__(self, model: Any, temperature: float, blank_penalty: float) -> None:
        """Divide the model's logits by `temperature`, above 0; subtract `blank_penalty` from blank's."""
        layer = model.joiner.output_linear
        weight, bias = layer.get_weight().float(), layer.get_bias().float()
        if blank_penalty:
            bias = bias.clone()
            bias[model.blank_id] -= blank_penalty
        # log_softmax(logits / temperature): the layer's weights include the division.
        self.weight, self.bias = weight / temperature, bias / temperature

    def log_probs(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities (..., V) for encoder and decoder projections that broadcast to (..., J)."""
        hidden = torch.add(enc, dec).tanh_()
        return torch.nn.functional.linear(hidden, self.weight, self.bias).log_softmax(-1)
