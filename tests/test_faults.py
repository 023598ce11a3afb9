"""Damage inputs: every program ends with one clear line, counts what it skips, or gives the results of undamaged inputs.

Damages that make another valid input, such as an edited text, may change the results; corruption of a format with checksums
may not. Whatever happens, programs only leave whole files.

FAULT_SEED=7 FAULT_CASES=1000 pytest tests/test_faults.py -m slow     tries other cases; a failure names its seed and case.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("lhotse")
pytest.importorskip("kaldifst")

from local.common.errors import TrainingDiverged, UserError
from tests.fault_formats import DAMAGES, half_a_character
from tests.fault_server import Run, Server
from tests.fault_world import CHECKS, World, check_whole, without_times
from tests.faults import CORRUPTIONS, Damage, deleted, flipped

SEED, CASES, QUICK = int(os.environ.get("FAULT_SEED", 0)), int(os.environ.get("FAULT_CASES", 200)), 20
LONGEST = 700  # characters of a clear line
EXIT_STATUS = (0, UserError.exit_status, TrainingDiverged.exit_status)
WITH_CHECKSUMS = {".gz", ".npz", ".flac", ".pt"}
PRINTS_RESULTS = {"sample", "stream", "wer"}  # other programs only print messages


class Input(NamedTuple):
    """Files of one sort, the kind of their damage, and the programs that read them."""

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
# One more epoch of training, whatever the configuration says
RESUMED = {"train": ["train.num_epochs=3"], "stored": ["train.num_epochs=3"], "lm": ["lm.max_epochs=1"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("faults")
    server = Server(root)
    yield World(root, server)
    server.close()


def test_a_silent_change_of_the_results_fails(tmp_path: Path) -> None:
    """Check the rules on a stub of a world, in which `results` are as given."""

    def outcome(file: str, damage: Damage, results: dict[str, object], message: str = "") -> str:
        run, undamaged = Run(0, "1 file\n", message), (Run(0, "1 file\n", ""), {"n.arpa": b"1", "output": ["1 file"]})
        stub: Any = SimpleNamespace(now=tmp_path, changed=list, name=lambda path: path.name)
        stub.results, stub.undamaged = lambda run, damaged: results, lambda *program: undamaged
        return check(stub, "ngram", tmp_path / file, damage, run)

    same: dict[str, object] = {"n.arpa": b"1", "output": ["1 file"]}
    assert outcome("text.gz", flipped, same) == "unharmed"
    assert outcome("text.gz", flipped, {**same, "n.arpa": b"2"}, "warning: 1 left out") == "other results, with a message"
    assert outcome("text.txt", flipped, {**same, "n.arpa": b"2"}) == "other results"
    assert outcome("text.gz", deleted, {"output": ["1 file"]}) == "other results"
    with pytest.raises(AssertionError, match=r"n\.arpa"):
        outcome("text.gz", flipped, {**same, "n.arpa": b"2"})


@pytest.mark.slow
def test_undamaged(world: World) -> None:
    """Run every program over undamaged inputs: the others are compared with these runs."""
    for program in sorted({program for given in INPUTS for program in given.programs}):
        world.renew()
        run = world.run(program, *RESUMED.get(program, []))
        assert run.code == 0 and "left out" not in run.err, f"{program}: {run}"
        CHECKS.get(program, lambda world, run: None)(world, run)


def test_damaged(world: World) -> None:
    check_cases(world, QUICK, first=CASES)


@pytest.mark.slow
def test_many_damaged(world: World) -> None:
    check_cases(world, CASES)


def check_cases(world: World, num: int, first: int = 0) -> None:
    """Run the cases first .. first + num - 1 of the seed; fail after all of them ran."""
    outcomes: Counter[str] = Counter()
    failures = []
    for case in range(first, first + num):
        outcome, story = try_case(world, case)
        outcomes[outcome] += 1
        if outcome == "failure":
            failures.append(f"FAULT_SEED={SEED}, case {case}: {story}")
    print(f"{num} cases: {', '.join(f'{n} {name}' for name, n in outcomes.most_common())}")
    assert not failures, f"{len(failures)} of {num}:\n" + "\n\n".join(failures)


HALVES = [given for given in INPUTS if given.kind in ("json", "jsonl", "yaml", "checkpoint")]


@pytest.mark.slow
@pytest.mark.parametrize("given", HALVES, ids=[f"{given.pattern} {given.programs[0]}" for given in HALVES])
def test_half_a_character_is_no_bug(world: World, given: Input) -> None:
    """What no file can hold, but JSON, YAML and checkpoints can say: in any text that a program reads, once per program."""
    failures = []
    for program in given.programs:
        rng = random.Random(f"{SEED} {program}")
        world.renew()
        path = rng.choice([path for path in sorted(world.now.glob(given.pattern)) if path.stat().st_size > 3])
        done = half_a_character(path, rng)
        run = world.run(program, *RESUMED.get(program, []))
        try:
            check(world, program, path, half_a_character, run)
        except Exception as e:
            failures.append(
                f"{program}, {path.name} {done}\n{type(e).__name__}: {e}\n{run.code}: {run.out[-200:]}\n{run.err[-900:]}"
            )
    assert not failures, "\n\n".join(failures)


def try_case(world: World, case: int) -> tuple[str, str]:
    """Return the outcome, and the story of the case in words."""
    rng = random.Random(f"{SEED} {case}")
    given = INPUTS[case % len(INPUTS)]
    world.renew()
    path = rng.choice(sorted(world.now.glob(given.pattern)))
    damage = rng.choice(DAMAGES[given.kind])
    done = damage(path, rng)
    program = rng.choice(given.programs)
    run = world.run(program, *RESUMED.get(program, []))
    story = f"{program}, {path.relative_to(world.now)} {done}"
    try:
        return check(world, program, path, damage, run), story
    except Exception as e:
        return "failure", f"{story}\n{type(e).__name__}: {str(e)[:300]}\n{run.code}: {run.out[-400:]}\n{run.err[-1500:]}"


def messages(program: str, run: Run) -> set[str]:
    """Return the lines that a program printed, without its results and without times."""
    return set(without_times(run.err if program in PRINTS_RESULTS else run.out + run.err))


def check(world: World, program: str, path: Path, damage: Damage, run: Run) -> str:
    """Return the outcome; raise AssertionError, or the error of reading a file, if it is not allowed."""
    assert run.code != -14, "it hangs"
    assert "Traceback" not in run.err
    errors = [line for line in run.err.splitlines() if line.startswith("error: ")]
    assert run.code in EXIT_STATUS and len(errors) == bool(run.code), "neither success nor one line"
    assert not [p for p in world.now.rglob(".t*-*")], "a temporary file is left"
    for written in world.changed():
        if written != path:
            check_whole(written)
    if run.code:
        assert run.err.rstrip().splitlines()[-1] == errors[0] and len(errors[0]) < LONGEST
        said = errors[0].replace(f"{world.now}/", "")  # whose folders could have the name by chance
        names = {path.name, path.stem, path.name.split(".")[0], path.parent.name if path.suffix == ".f16" else path.name}
        keys = re.search(r"\bkey '[\w.]+'|\bparts? '[\w-]+'|\butterance \S*\d\S*|\blang\.vocab_size|\brecording \S*\d\S*", said)
        named = any(re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", said) for name in names)
        assert keys or named, "the line does not name what is wrong"
        return "one-line errors"
    CHECKS.get(program, lambda world, run: None)(world, run)
    results = world.results(run, damaged=path)
    undamaged, expected = world.undamaged(program, *RESUMED.get(program, []))
    changed = [name for name in sorted(results.keys() | expected.keys()) if results.get(name) != expected.get(name)]
    if not set(changed) - {world.name(path)}:
        return "unharmed"
    if messages(program, run) - messages(program, undamaged):
        return "other results, with a message"
    strict = damage in CORRUPTIONS and path.suffix in WITH_CHECKSUMS
    assert not strict, f"a corrupted file changed {changed} without a message"
    return "other results"
