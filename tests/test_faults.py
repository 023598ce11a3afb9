"""Damaged inputs: every program ends with one clear line or a counted skip, and leaves whole files behind.

FAULT_SEED=7 FAULT_CASES=1000 pytest tests/test_faults.py -m slow     hunts with other cases; a failure names its own.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("lhotse")
pytest.importorskip("kaldifst")

from tests.fault_formats import DAMAGES
from tests.fault_server import Run, Server
from tests.fault_world import CHECKS, World, check_whole

SEED, CASES, QUICK = int(os.environ.get("FAULT_SEED", 0)), int(os.environ.get("FAULT_CASES", 200)), 20
LONGEST = 700  # characters of a clear line


class Input(NamedTuple):
    """Files that are alike, the kind of damage that they take, and the programs that read them."""

    pattern: str
    kind: str
    programs: tuple[str, ...]


INPUTS = [
    Input("LibriSpeech/*/*/*/*.flac", "audio", ("manifests", "own", "features", "train", "decode")),
    Input("LibriSpeech/te/100/1/100-1-0000.flac", "audio", ("stream", "decode", "tune", "manifests")),
    Input("noise/*.wav", "audio", ("noise",)),
    Input("LibriSpeech/*/*/*/*.t*", "text", ("manifests",)),
    Input("LibriSpeech/*/*/*/*.ctm", "text", ("manifests",)),
    Input("corpus.yaml", "yaml", ("manifests",)),
    Input("own.yaml", "yaml", ("own",)),
    Input("own/*.tsv", "text", ("own",)),
    Input("own/kal/*", "text", ("own",)),
    Input("own/*.jsonl*", "jsonl", ("own",)),
    Input("conf.yaml", "yaml", ("train", "decode", "lang", "cuts", "features", "average", "tune", "lm", "manifests")),
    Input("conf.yaml", "yaml", ("train", "decode", "stored")),
    Input("tuned.yaml", "yaml", ("tuned",)),
    Input("data/corpus.yaml", "yaml", ("lang", "cuts", "features", "train", "decode", "lm", "tune")),
    Input("data/manifests/supervisions_*.jsonl.gz", "jsonl", ("lang", "cuts", "lm")),
    Input("data/manifests/recordings_*.jsonl.gz", "jsonl", ("cuts",)),
    Input("data/manifests/dropped.tsv", "text", ("cuts",)),
    Input("data/lang_bpe_30/bpe.model", "bpe", ("train", "lm", "graph", "ngram")),
    Input("data/lang_bpe_30/num_tokens/tr.tsv", "text", ("train", "stored")),
    Input("data/lang_bpe_30/transcript.txt", "text", ("lm", "graph", "ngram")),
    Input("data/cuts/tr.jsonl.gz", "jsonl", ("lang", "features", "train")),
    Input("data/cuts/[dt][ve].jsonl.gz", "jsonl", ("features", "train", "decode", "wer", "tune")),
    Input("data/features/*.jsonl.gz", "jsonl", ("features", "stored")),
    Input("data/features/*/*.f16", "bytes", ("features", "stored")),
    Input("data/lang_bpe_30/graph/LG.npz", "npz", ("decode",)),
    Input("exp/checkpoints/*.pt", "checkpoint", ("train", "average")),
    Input("exp/averaged.pt", "checkpoint", ("decode", "tune", "stream")),
    Input("exp/lm/l*.pt", "checkpoint", ("lm", "decode", "sample")),
    Input("exp/lm/bigram.arpa", "text", ("decode",)),
    Input("exp/lm/perplexity.json", "json", ("wer",)),
    Input("exp/*.csv", "text", ("train",)),
    Input("exp/decode/*/*.jsonl", "jsonl", ("wer",)),
    Input("exp/decode/*/*.stats.json", "json", ("wer",)),
    Input("hotwords.txt", "text", ("decode",)),
    Input("text.txt", "text", ("lm",)),
]
# Whatever the configuration says, training goes on for one more epoch and ends.
GOES_ON = {"train": ["train.num_epochs=3"], "stored": ["train.num_epochs=3"], "lm": ["lm.max_epochs=1"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("faults")
    server = Server(root)
    yield World(root, server)
    server.close()


@pytest.mark.slow
def test_undamaged(world: World) -> None:
    """What damaged inputs are held against."""
    for program in sorted({program for given in INPUTS for program in given.programs}):
        world.renew()
        run = world.run(program, *GOES_ON.get(program, []))
        assert run.code == 0 and "left out" not in run.err, f"{program}: {run}"
        CHECKS.get(program, lambda world, run: None)(world, run)


def test_damaged(world: World) -> None:
    check_cases(world, QUICK, first=CASES)


@pytest.mark.slow
def test_many_damaged(world: World) -> None:
    check_cases(world, CASES)


def check_cases(world: World, num: int, first: int = 0) -> None:
    """Cases first .. first + num - 1 of the seed; all of them run before it fails."""
    outcomes: Counter[str] = Counter()
    failures = []
    for case in range(first, first + num):
        outcome, story = try_case(world, case)
        outcomes[outcome] += 1
        if outcome == "failure":
            failures.append(f"FAULT_SEED={SEED}, case {case}: {story}")
    print(f"{num} cases: {', '.join(f'{n} {name}' for name, n in outcomes.most_common())}")
    assert not failures, f"{len(failures)} of {num}:\n" + "\n\n".join(failures)


def try_case(world: World, case: int) -> tuple[str, str]:
    """-> what became of it, and in words what was done and seen."""
    rng = random.Random(f"{SEED} {case}")
    given = INPUTS[case % len(INPUTS)]
    world.renew()
    path = rng.choice(sorted(world.now.glob(given.pattern)))
    done = rng.choice(DAMAGES[given.kind])(path, rng)
    program = rng.choice(given.programs)
    run = world.run(program, *GOES_ON.get(program, []))
    story = f"{program}, {path.relative_to(world.now)} {done}"
    try:
        return check(world, program, path, run), story
    except Exception as e:
        return "failure", f"{story}\n{type(e).__name__}: {str(e)[:300]}\n{run.code}: {run.out[-400:]}\n{run.err[-1500:]}"


def check(world: World, program: str, path: Path, run: Run) -> str:
    """The outcome; AssertionError, or whatever reading a file raises, where it is not as it must be."""
    assert run.code != -14, "it hangs"
    assert "Traceback" not in run.err
    errors = [line for line in run.err.splitlines() if line.startswith("error: ")]
    assert run.code in (0, 1) and len(errors) == run.code, "neither success nor one line"
    assert not [p for p in world.now.rglob(".t*-*")], "a temporary file is left"
    for written in world.changed():
        if written != path:
            check_whole(written)
    if run.code:
        assert run.err.rstrip().splitlines()[-1] == errors[0] and len(errors[0]) < LONGEST
        names = {path.name, path.stem, path.name.split(".")[0], path.parent.name if path.suffix == ".f16" else path.name}
        keys = re.search(r"\bkey '[\w.]+'|part[s]? '?\w+'?|utterance \S+|lang\.vocab_size|recording \S+", errors[0])
        assert keys or any(name in errors[0] for name in names), "the line does not name what is wrong"
        return "one-line errors"
    CHECKS.get(program, lambda world, run: None)(world, run)
    left_out = re.search(r"left out|dropped|passed over|no features for|not decoded|skipped|from the start", run.out + run.err)
    return "counted skips" if left_out else "unharmed"
