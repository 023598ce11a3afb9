"""Any mixture of forms, rates, channels and codecs, with damage: every utterance is in one part as it is, or is listed.

OWN_DATA_CASES=5000 pytest tests/own_data/test_any_mixture.py -m slow     tries more cases, others each time. Without the
variable the cases are the same in every run, so that what fails can be run again.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from local.config import load_config
from local.corpus.audio_reading import load_audio
from local.corpus.corpus_yaml import load_corpus
from local.corpus.screening import check_pairs
from local.corpus.shard_store import shard_store
from local.prepare_cuts import main as prepare_cuts
from local.prepare_manifests import main as prepare_manifests
from tests.own_data.claims import EITHER, KEPT, LOST, Claim, Found, Row, violations, violations_of_a_stop
from tests.own_data.forms import FORMS, corpora
from tests.own_data.plans import PartPlan, numbers
from tests.own_data.spoil import lists_of, spoil
from tests.own_data.tones import heard

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lhotse import CutSet

PARTS = ("train", "dev", "test")
CORPUS = "name: own\nsource: custom\ntrain: [train]\ndev: [dev]\ntest: [test]\noptions: {{commands: {commands}}}\n"
SPLITTABLE = 4  # usable utterances of train that suffice to split off dev and test
CASES, QUICK = int(os.environ.get("OWN_DATA_CASES", 500)), 20
FIXED = "OWN_DATA_CASES" not in os.environ
CONFIG = load_config(None, [])
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def write_corpus(root: Path, plan: dict[str, PartPlan]) -> list[Claim]:
    """Write a corpus into `root` and return what the utterances of the parts that are there may claim."""
    counter = numbers()
    claims = []
    for part, p in plan.items():
        mine = FORMS[p.form].write(root, part, p, counter)
        how, number = p.spoil
        if how and lists_of(root, part):
            lists = lists_of(root, part)
            path = lists[number % len(lists)]
            spoil(path, how)
            for claim in mine:
                claim.verdict, claim.why = max(claim.verdict, EITHER), f"{claim.why}, {path.name} {how}"
                claim.files.add(str(path))
            if not lists_of(root, part):
                continue  # nothing says that there is such a part
        claims += mine
    return claims


def run(root: Path, corpus_dir: Path, commands: bool) -> tuple[int, str, bool]:
    """Run stages 1 and 2; return their exit status, what they wrote to stderr, and whether audio was screened.

    An exception is a violation.
    """
    (root / "corpus.yaml").write_text(CORPUS.format(commands=str(commands).lower()))
    data = ["--data-dir", str(root / "data")]
    errors = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(errors))
        for program in ("manifests", "cuts"):  # reading it takes longer than all the rest
            stack.enter_context(patch(f"local.prepare_{program}.load_config", return_value=CONFIG))
        screening = stack.enter_context(patch("local.prepare_manifests.check_pairs", wraps=check_pairs))
        try:
            prepare_manifests(["--corpus-yaml", str(root / "corpus.yaml"), "--corpus-dir", str(corpus_dir), *data])
            prepare_cuts(data)
        except SystemExit as e:
            return int(e.code or 0), errors.getvalue(), screening.called
    return 0, errors.getvalue(), True


def kept_utterances(data: Path) -> Iterator[Found]:
    """Yield the utterances of all parts, loaded as training loads them. An exception is a violation."""
    store = shard_store(data, CONFIG.data, load_corpus(data / "corpus.yaml"))
    for part in PARTS:
        for cut in CutSet.from_file(data / "cuts" / f"{part}.jsonl.gz"):
            sound = load_audio(store.with_audio_loaded(cut))
            assert len(cut.supervisions) == 1 and sound.shape == (1, cut.num_samples), cut.id
            yield Found(part, cut.id, cut.supervisions[0].text or "", *heard(sound[0], cut.sampling_rate), cut.duration)


def dropped_rows(data: Path) -> list[Row]:
    """Return dropped.tsv: that of stage 2, or of stage 1 if stage 2 did not end."""
    listing = next((p for p in (data / "dropped.tsv", data / "manifests" / "dropped.tsv") if p.is_file()), None)
    if listing is None:
        return []
    return [Row(*line.split("\t")) for line in listing.read_text(encoding="utf-8").splitlines()]


def may_stop(plan: dict[str, PartPlan], claims: list[Claim]) -> bool:
    """Return whether an error is right: a part without a surely usable utterance, or too few to split off the others."""
    sure = {part: sum(c.part == part and c.verdict == KEPT and not c.merged for c in claims) for part in plan}
    given = {c.part for c in claims}
    return not all(sure.values()) or (given != set(PARTS) and sure["train"] < SPLITTABLE)


def check(plan: dict[str, PartPlan], commands: bool) -> None:
    """Prepare the corpus of a plan and check every utterance of it; if they are not allowed, those of commands are lost."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        claims = write_corpus(root / "corpus", plan)
        for claim in claims:
            if claim.command and not commands:
                claim.verdict, claim.why = LOST, f"{claim.why}, command"
        status, errors, screened = run(root, root / "corpus", commands)
        if status == 0:
            splits = {part: "train" for part in PARTS if not any(c.part == part for c in claims)}
            wrong = violations(claims, list(kept_utterances(root / "data")), dropped_rows(root / "data"), splits)
        else:
            lines = [line for line in errors.splitlines() if line.startswith("error: ")]
            wrong = [] if status == 1 and len(lines) == 1 else [f"exit status {status}: {lines}"]
            if not may_stop(plan, claims):
                wrong.append(f"stopped, though it has what it needs: {lines}")
            if screened:  # else it is about the lists: no audio was read
                wrong += [f"{w}, {lines}" for w in violations_of_a_stop(claims, dropped_rows(root / "data"))]
        assert not wrong, "\n".join(wrong)


@settings(max_examples=QUICK, derandomize=FIXED, suppress_health_check=SLOW)
@given(corpora(), st.booleans())
def test_a_few_mixtures(plan: dict[str, PartPlan], commands: bool) -> None:
    check(plan, commands)


@pytest.mark.slow
@settings(max_examples=CASES, derandomize=FIXED, suppress_health_check=SLOW)
@given(corpora(), st.booleans())
def test_any_mixture(plan: dict[str, PartPlan], commands: bool) -> None:
    check(plan, commands)
