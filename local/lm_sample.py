"""Draw sentences from a language model.

.venv/bin/python -m local.lm_sample --lm exp/tiny/lm/lm.pt --num 10 --temperature 0.8
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.artifacts.language_model import load_lm
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.visible import visible
from local.data.tokenizer import BLANK_ID
from model.lm import LstmLm

import torch


@torch.no_grad()
def sample(model: LstmLm, num: int, temperature: float, generator: torch.Generator, max_tokens: int = 200) -> list[list[int]]:
    """Draw `num` sentences from softmax(log-probabilities / temperature), without blank; return up to `max_tokens` ids of each.

    The largest of scores with Gumbel noise is a draw from their softmax (Gumbel, 1954; Maddison et al., "A* sampling",
    2014). The noise is scaled by the temperature instead of the scores, so that temperature 0 takes the likeliest token.
    """
    device = model.output.weight.device
    tokens = torch.full((num,), model.sos_eos_id, device=device)
    state = model.init_state(num, device)
    ended = torch.zeros(num, dtype=torch.bool, device=device)
    drawn = []
    for _ in range(max_tokens):
        log_probs, state = model.step(tokens, state)
        log_probs[:, BLANK_ID] = -torch.inf
        exponential = torch.empty(log_probs.shape).exponential_(generator=generator).clamp_(min=1e-30)
        tokens = (log_probs - temperature * exponential.log().to(log_probs)).argmax(dim=1)
        tokens = tokens.masked_fill(ended, model.sos_eos_id)
        ended |= tokens == model.sos_eos_id
        drawn.append(tokens)
        if bool(ended.all()):
            break
    rows = torch.stack(drawn, dim=1).tolist()
    return [row[: row.index(model.sos_eos_id)] if model.sos_eos_id in row else row for row in rows]


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False)
    parser.add_argument("--lm", type=Path, required=True, help="lm.pt of local/train_lm.py")
    parser.add_argument("--num", type=int, default=10, help="number of sentences (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest token (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.num < 1:
        raise UserError(f"--num {args.num}: must be at least 1")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature}: must be at least 0 and finite")
    model, tokenizer = load_lm(args.lm)
    for ids in sample(model, args.num, args.temperature, torch.Generator().manual_seed(args.seed)):
        print(visible(tokenizer.decode(ids)))


if __name__ == "__main__":
    main()
