"""The corpora for trials: what they hold, and that preparation takes all of it but the broken files."""

from __future__ import annotations

from pathlib import Path

from local.prepare_manifests import main as prepare_manifests
from tests.own_data.make_trial import BROKEN, CODECS, JOINED, RATES, digits, write_kaldi, write_table

import pytest
import soundfile
from lhotse import RecordingSet, SupervisionSet

CORPUS = "name: trial\nsource: custom\ntrain: [train]\ndev: [dev]\ntest: [test]\n"


def prepared(root: Path, corpus_dir: Path) -> tuple[RecordingSet, SupervisionSet]:
    """Run stage 1 and return the manifests of all parts together."""
    (root / "corpus.yaml").write_text(CORPUS)
    data = root / "data"
    folders = ["--corpus-dir", str(corpus_dir), "--data-dir", str(data)]
    prepare_manifests(["--corpus-yaml", str(root / "corpus.yaml"), *folders])
    parts = ("train", "dev", "test")
    recordings = [r for p in parts for r in RecordingSet.from_file(data / "manifests" / f"recordings_{p}.jsonl.gz")]
    segments = [s for p in parts for s in SupervisionSet.from_file(data / "manifests" / f"supervisions_{p}.jsonl.gz")]
    return RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(segments)


def test_kaldi_directories(shared: Path, tmp_path: Path) -> None:
    train, test = (digits(shared / "speech", part)[: 4 * JOINED] for part in ("train-clean-5", "dev-clean-2"))
    write_kaldi(tmp_path / "kaldi" / "train", train, segments=True)
    write_kaldi(tmp_path / "kaldi" / "test", test, segments=False)
    recordings, supervisions = prepared(tmp_path, tmp_path / "kaldi")
    assert {s.id: s.text for s in supervisions} == {u.id: u.text for u in (*train, *test)}
    long = [s for s in supervisions if s.recording_id.startswith("long-")]
    assert len(long) == 2 * JOINED and len({s.recording_id for s in long}) == 2
    files = {u.id: u.path for u in train}
    for s in (long[0], long[-1]):
        sound = recordings[s.recording_id].load_audio(offset=s.start, duration=s.duration)
        assert sound[0] == pytest.approx(soundfile.read(files[s.id])[0], abs=1e-6)


def test_a_table_of_mixed_files(shared: Path, tmp_path: Path) -> None:
    utterances = digits(shared / "speech", "train-clean-5")[:300:8]
    write_table(tmp_path / "table", utterances)
    recordings, supervisions = prepared(tmp_path, tmp_path / "table")
    assert len(supervisions) == len(utterances) - len(BROKEN)
    assert {s.id for s in supervisions} == {u.id for n, u in enumerate(utterances) if n not in BROKEN}
    kinds = {(Path(r.sources[0].source).suffix, r.sampling_rate, r.num_channels) for r in recordings}
    assert len(kinds) == 2 * len(CODECS) * len(RATES)
    assert any("[" in (s.text or "") for s in supervisions)
