"""A language model over tokens: embedding, LSTM, softmax; for searches it also runs token by token."""

from __future__ import annotations

from model.precision import exact_dtype

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LmState = tuple[Tensor, Tensor]


class LstmLm(nn.Module):
    """Sundermeyer et al., "LSTM neural networks for language modeling" (2012).

    Dropout acts between layers only: Zaremba et al., "Recurrent neural network regularization" (2014). If `dim` equals
    `hidden`, the embedding's weight is also the output layer's: Press and Wolf, "Using the output embedding ..." (2017).
    """

    def __init__(
        self, vocab_size: int, dim: int, hidden: int, num_layers: int, dropout: float = 0.0, sos_eos_id: int = 1
    ) -> None:
        """Make a model with initial parameters over `vocab_size` tokens, blank included.

        dim: of the embedding. hidden: LSTM cells per layer. sos_eos_id: comes before each sentence and is predicted at its end.
        """
        super().__init__()
        self.vocab_size, self.sos_eos_id = vocab_size, sos_eos_id
        self.embedding = nn.Embedding(vocab_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(dim, hidden, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0)
        self.output = nn.Linear(hidden, vocab_size)
        if dim == hidden:
            self.output.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)  # the default, with a deviation of 1, is too large for the softmax
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor, token_lens: Tensor) -> Tensor:
        """Return the negative log-probability of each sentence in nats, its end included: (N,).

        tokens (N, U) int64, padded with any id; token_lens (N,), 0 if only the end. ValueError if the shapes do not match.
        """
        if tokens.dim() != 2 or token_lens.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens must be (N, U) and token_lens (N,), got {tuple(tokens.shape)} and {tuple(token_lens.shape)}"
            )
        position = torch.arange(tokens.size(1) + 1, device=tokens.device)
        ended = position >= token_lens[:, None]  # (N, U + 1)
        y = F.pad(tokens, (0, 1)).masked_fill(ended, self.sos_eos_id)  # the targets: the tokens, then the end
        x = F.pad(y[:, :-1], (1, 0), value=self.sos_eos_id)
        hidden, _ = self.lstm(self.dropout(self.embedding(x)))
        logits = self.output(self.dropout(hidden))
        nll = F.cross_entropy(logits.to(exact_dtype(logits)).flatten(0, 1), y.flatten(), reduction="none").view_as(y)
        return nll.masked_fill(position > token_lens[:, None], 0.0).sum(dim=1)

    def init_state(self, batch: int, device: torch.device | str) -> LmState:
        """Return the outputs and cells before a sentence (batch, num_layers, hidden); the first step takes <sos/eos>."""
        zeros = torch.zeros(batch, self.lstm.num_layers, self.lstm.hidden_size, dtype=self.output.weight.dtype, device=device)
        return zeros, zeros.clone()  # two tensors, since a search may write into them

    def step(self, tokens: Tensor, state: LmState) -> tuple[Tensor, LmState]:
        """Add one token to each of B hypotheses: tokens (B,) int64, first <sos/eos>, and a state, which is not changed.

        Return the log-probabilities of the next token (B, vocab_size), float32 (float64 for a float64 model), with the end of
        the sentence at <sos/eos>; and the new state.
        """
        h, c = (s.transpose(0, 1).contiguous() for s in state)
        out, (h, c) = self.lstm(self.dropout(self.embedding(tokens[:, None])), (h, c))
        logits = self.output(self.dropout(out[:, 0]))
        return logits.to(exact_dtype(logits)).log_softmax(dim=1), (h.transpose(0, 1), c.transpose(0, 1))
