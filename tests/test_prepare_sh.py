"""prepare.sh on a small corpus: what runs again if the parts change their role, or the audio its content."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.corpus.noise_corpus import write

import pytest

pytestmark = pytest.mark.slow
ROLES = ["data.train_parts=[p]", "data.dev_parts=[q]", "data.test_parts=[r]"]
OTHERS = ["data.train_parts=[p,q]", "data.dev_parts=[r]", "data.test_parts=[r]"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Make parts p, q and r; q0 is longer than a training utterance may be."""
    for number, part in enumerate("pqr"):
        lines = []
        for i in range(4):
            write(tmp_path / "mine" / f"{part}{i}.wav", 10 * number + i, 25.0 if (part, i) == ("q", 0) else 2.0)
            lines.append(f"{part}{i}.wav\tONE {'ZWEI' if part == 'q' else 'TWO'} THREE\n")
        (tmp_path / "mine" / f"{part}.tsv").write_text("".join(lines))
    return tmp_path / "mine"


def stages(corpus: Path, *overrides: str) -> list[str]:
    """Run prepare.sh; return the stages that ran."""
    options = ["--corpus", "custom", "--corpus-dir", str(corpus), "--data-dir", str(corpus.parent / "data"), "--nj", "1"]
    options += ["--conf", "conf/base.yaml", "--python", sys.executable, "features.type=on_the_fly", "lang.vocab_size=20"]
    done = subprocess.run(["bash", "prepare.sh", *options, *overrides], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"^stage \d, (\w+): started", done.stdout, flags=re.MULTILINE)


def test_parts_may_change_their_role(corpus: Path) -> None:
    data = corpus.parent / "data"
    assert stages(corpus, *ROLES) == ["audio", "manifests", "cuts", "lang"] and stages(corpus, *ROLES) == []
    assert stages(corpus, *OTHERS)[-3:] == ["manifests", "cuts", "lang"]
    cuts = [json.loads(line)["id"] for line in gzip.decompress((data / "cuts" / "q.jsonl.gz").read_bytes()).splitlines()]
    assert cuts == ["q1", "q2", "q3"] and "ZWEI" in (data / "lang_bpe_20" / "transcript.txt").read_text()


def test_equal_manifests_are_no_reason_and_other_audio_is(corpus: Path) -> None:
    data = corpus.parent / "data"
    stages(corpus, *ROLES)
    before = json.loads((data / "summary.json").read_text())
    (data / ".done" / "manifests").unlink()
    assert stages(corpus, *ROLES) == ["manifests"] and json.loads((data / "summary.json").read_text()) == before
    write(corpus / "p0.wav", 99, 2.0)
    assert stages(corpus, *ROLES) == ["manifests", "cuts", "lang"]
