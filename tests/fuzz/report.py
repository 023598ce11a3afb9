"""Failures of a fuzzer as text: each kind once, with the seeds, the files and how to run it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.harness import Failure, Target, save

SHOWN, SEEDS_SHOWN, LINES = 20, 5, 25


def describe(target: Target, failures: Sequence[Failure], folder: Path) -> str:
    """Return a paragraph for each kind of failure, and save the files of its first case in `folder`."""
    kinds: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        kinds.setdefault(failure.signature, []).append(failure)
    texts = []
    for (kind, _), found in sorted(kinds.items(), key=lambda item: -len(item[1]))[:SHOWN]:
        first = found[0]
        seeds = ", ".join(str(failure.seed) for failure in found[:SEEDS_SHOWN])
        again = f"python -m tests.fuzz {target.name} --seed {first.seed}"
        detail = "\n".join(first.detail.strip().splitlines()[-LINES:])
        where = save(target, first.seed, folder) if first.seed >= 0 else "unchanged ones"
        texts.append(f"{target.name}: {kind}, {len(found)} times, seeds {seeds}\n  again: {again}\n  files: {where}\n{detail}")
    return "\n\n".join(texts)
