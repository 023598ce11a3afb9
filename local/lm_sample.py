"""Sentences drawn from a language model: local/lm_sample.py --lm exp/tiny/lm/lm.pt --num 10 --temperature 0.8 --seed 1"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from local.artifacts.language_model import load_lm
from local.common.cli import program
from local.common.errors import UserError
from local.data.tokenizer import BLANK_ID
from model.lm import LstmLm

import torch


@torch.no_grad()
def sample(model: LstmLm, num: int, temperature: float, generator: torch.Generator, max_tokens: int = 200) -> list[list[int]]:
    """Token ids of `num` sentences from softmax(log-probabilities / temperature); longer ones end at `max_tokens`.

    Adding Gumbel noise and taking the largest draws from a softmax (Gumbel, 1954; Maddison et al., "A* sampling", 2014).
    With the noise, instead of the scores, scaled by the temperature, 0 needs no case of its own: the likeliest token.
    Blank is never drawn: no sentence has it.
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", type=Path, required=True)
    parser.add_argument("--num", type=int, default=10)
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest token each time")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    if args.num < 1:
        raise UserError(f"--num {args.num}: at least 1 is needed")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature}: a number from 0 on is meant")
    model, tokenizer = load_lm(args.lm)
    for ids in sample(model, args.num, args.temperature, torch.Generator().manual_seed(args.seed)):
        print(tokenizer.decode(ids))


if __name__ == "__main__":
    main()
