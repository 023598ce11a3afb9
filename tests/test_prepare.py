"""From audio to cuts and features: what is prepared, and what becomes of bad input."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from local.common.atomic import atomic_write
from local.compute_features import main as compute_features
from local.config import load_config
from local.corpus.audio_files import BadAudio, check_audio, parallel
from local.corpus.corpus_yaml import load_corpus
from local.data.durations import num_frames
from local.data.features import make_extractor
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from local.prepare_noise import main as prepare_noise
from model.encoder.subsampling import subsampled
from tests.speech_tree import audio_of, make_part, set_text, write_noise

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

CORPUS = "name: test\nsource: librispeech\ntrain: [tr]\ndev: [dv]\ntest: [te]\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Parts tr (12 utterances), dv and te (6 each)."""
    (tmp_path / "corpus.yaml").write_text(CORPUS)
    make_part(tmp_path / "LibriSpeech", "tr")
    make_part(tmp_path / "LibriSpeech", "dv", speakers=1)
    make_part(tmp_path / "LibriSpeech", "te", speakers=1)
    return tmp_path / "LibriSpeech"


def manifests(tree: Path, *overrides: str) -> Path:
    data = tree.parent / "data"
    args = ["--corpus-yaml", str(tree.parent / "corpus.yaml"), "--corpus-dir", str(tree.parent), "--nproc", "2"]
    prepare_manifests([*args, "--data-dir", str(data), *overrides])
    return data


def prepare(tree: Path, *overrides: str) -> Path:
    """Stages 1 to 3; -> the data folder."""
    data = manifests(tree, *overrides)
    prepare_lang(["--data-dir", str(data), *overrides])
    prepare_cuts(["--data-dir", str(data), *overrides])
    return data


def dropped(data: Path) -> dict[str, str]:
    rows = [line.split("\t") for line in (data / "dropped.tsv").read_text().splitlines()]
    return {row[0]: row[2] for row in rows}


def cuts_of(data: Path, part: str, folder: str = "cuts") -> CutSet:
    return CutSet.from_file(data / folder / f"{part}.jsonl.gz").to_eager()


def fails(capsys: pytest.CaptureFixture, program, *args) -> str:
    """Run a program that must stop with one line; -> that line."""
    with pytest.raises(SystemExit) as stop:
        program(*args)
    assert stop.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


def test_good_corpus_loses_nothing(tree: Path) -> None:
    data = prepare(tree)
    assert {part: len(cuts_of(data, part)) for part in ("tr", "dv", "te")} == {"tr": 12, "dv": 6, "te": 6}
    assert (data / "dropped.tsv").read_text() == ""
    corpus = load_corpus(data / "corpus.yaml")
    assert (corpus.train, corpus.dev, corpus.test) == (["tr"], ["dv"], ["te"])
    tokens = (data / "lang" / "tokens.txt").read_text().splitlines()
    assert tokens[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert len((data / "lang" / "transcript.txt").read_text().splitlines()) == 12
    assert not list(data.rglob(".tmp*"))


@pytest.mark.parametrize("ending", ["flac", "wav"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated_files_are_found(tmp_path: Path, ending: str, share: float) -> None:
    path = write_noise(tmp_path / f"a.{ending}", 2.0)
    assert check_audio(path) == (32000, 16000, 1)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(BadAudio):
        check_audio(path)


def test_bad_audio_says_why(tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match="missing"):
        check_audio(tmp_path / "none.flac")
    (tmp_path / "text.flac").write_text("no audio at all")
    with pytest.raises(BadAudio, match="unreadable"):
        check_audio(tmp_path / "text.flac")
    with pytest.raises(BadAudio, match="without samples"):
        check_audio(write_noise(tmp_path / "empty.wav", 0.0))


def test_parallel_keeps_the_order() -> None:
    assert list(parallel(lambda x: x * x, range(100), 4)) == [x * x for x in range(100)]
    assert list(parallel(str, [], 2)) == []


def test_bad_utterances_are_named_and_the_rest_is_kept(tree: Path, capsys: pytest.CaptureFixture) -> None:
    audio_of(tree, "tr", "100-1-0000").unlink()
    broken = audio_of(tree, "tr", "100-1-0001")
    broken.write_bytes(broken.read_bytes()[:5000])
    set_text(tree, "tr", "100-1-0002", "")
    set_text(tree, "tr", "100-1-0003", "ONE TWO THREE FOUR FIVE SIX SEVEN " * 20)
    write_noise(audio_of(tree, "tr", "100-1-0004"), 25.0)
    write_noise(audio_of(tree, "tr", "100-1-0005"), 0.05)
    transcript = tree / "tr" / "101" / "1" / "101-1.trans.txt"
    transcript.write_text(transcript.read_text() + "101-1-0000 SEVEN SEVEN\n")
    text = transcript.read_text().splitlines()[0].split(maxsplit=1)[1]
    data = prepare(tree)
    reasons = dropped(data)
    assert "missing" in reasons["100-1-0000"] and "100-1-0000.flac" in reasons["100-1-0000"]
    assert "truncated" in reasons["100-1-0001"] and "100-1-0001.flac" in reasons["100-1-0001"]
    assert "empty transcript" in reasons["100-1-0002"]
    assert "more tokens than frames" in reasons["100-1-0003"]
    assert "data.max_utterance_seconds" in reasons["100-1-0004"]
    assert "data.min_utterance_seconds" in reasons["100-1-0005"]
    assert "duplicate id" in reasons["101-1-0000"]
    assert len(reasons) == 7
    kept = cuts_of(data, "tr")
    assert len(kept) == 6
    assert next(c for c in kept if c.id == "101-1-0000").supervisions[0].text == text
    out = capsys.readouterr().out
    assert all(name in out for name in reasons)
    assert "tr: 1 dropped (empty transcript)" in out


def test_times_of_words_become_alignments(tree: Path, capsys: pytest.CaptureFixture) -> None:
    path = tree / "tr" / "100" / "1" / "100-1.ctm"
    path.write_text(";; a comment\n100-1-0001 1 0.10 0.25 ONE\n100-1-0001 1 0.5 0.125 TWO 0.9\n")
    found = {cut.id: cut.supervisions[0].alignment for cut in cuts_of(prepare(tree), "tr")}
    items = found.pop("100-1-0001")["word"]
    assert [(i.symbol, i.start, i.duration) for i in items] == [("ONE", 0.1, 0.25), ("TWO", 0.5, 0.125)]
    assert len(found) == 11 and not any(found.values())
    path.write_text("100-1-0001 1 0.10 0.25 ONE\n100-1-0001 1 soon 0.25 TWO\n")
    assert "100-1.ctm:2: not 'utterance channel start duration word'" in fails(capsys, manifests, tree)


def test_no_usable_utterance_is_an_error(tree: Path, capsys: pytest.CaptureFixture) -> None:
    for path in (tree / "dv").rglob("*.flac"):
        path.unlink()
    assert "part 'dv'" in fails(capsys, manifests, tree)


def test_missing_part_names_those_there(tree: Path, capsys: pytest.CaptureFixture) -> None:
    line = fails(capsys, manifests, tree, "data.train_parts=[nix]")
    assert "part 'nix'" in line and "dv, te, tr" in line and "data.train_parts" in line
    data = prepare(tree, "data.train_parts=[tr,dv]", "data.dev_parts=[te]")
    assert load_corpus(data / "corpus.yaml").train == ["tr", "dv"]


def test_speakers_in_two_sets_are_warned_of(tree: Path, capsys: pytest.CaptureFixture) -> None:
    manifests(tree)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: 1 speakers")]
    assert len(warnings) == 3 and all("100" in line for line in warnings)


def test_unknown_characters(tree: Path, capsys: pytest.CaptureFixture) -> None:
    set_text(tree, "dv", "100-1-0000", "ONE Ü ONE")
    data = prepare(tree)
    assert len(cuts_of(data, "dv")) == 6  # kept for scoring
    line = "dv: 1 utterances have characters outside the model, kept for scoring: 100-1-0000 (Ü)"
    assert line in capsys.readouterr().out


def test_unknown_characters_in_training_are_dropped(tree: Path) -> None:
    data = manifests(tree)
    prepare_lang(["--data-dir", str(data)])
    (tree.parent / "corpus.yaml").write_text(CORPUS.replace("[tr]", "[tr, new]"))
    make_part(tree, "new", speakers=1)
    set_text(tree, "new", "100-1-0001", "ONE Ü ONE")
    manifests(tree)
    prepare_cuts(["--data-dir", str(data)])
    assert "characters outside the model: Ü" in dropped(data)["100-1-0001"]


def test_other_sampling_rates_are_resampled(tree: Path) -> None:
    make_part(tree, "tr", rate=8000)
    cut = cuts_of(prepare(tree), "tr")[0]
    assert cut.sampling_rate == 16000
    assert cut.load_audio().shape[1] == cut.num_samples


def test_features_are_stored_and_used_again(tree: Path, capsys: pytest.CaptureFixture) -> None:
    data = prepare(tree)
    compute_features(["--data-dir", str(data), "--nproc", "2"])
    cuts = cuts_of(data, "tr", "features")
    assert len(cuts) == 36 and len(cuts_of(data, "dv", "features")) == 6
    assert sum(c.id.endswith("_sp1.1") for c in cuts) == 12
    for cut in cuts:
        features = cut.load_features()
        assert features.shape == (num_frames(cut.duration), 80) and features.dtype == np.float32
    archives = {p: p.stat().st_mtime_ns for p in (data / "features" / "tr").iterdir()}
    write_noise(audio_of(tree, "tr", "100-1-0000"), 1.5, seed=9)
    prepare(tree)
    capsys.readouterr()
    compute_features(["--data-dir", str(data)])
    assert "tr: features of 33 cuts are there already" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == t for p, t in archives.items())
    again = {c.id: c for c in cuts_of(data, "tr", "features")}
    assert again["100-1-0000"].load_features().shape[0] == 150 and len(again) == 36


def test_stored_features_are_those_of_the_audio(tree: Path) -> None:
    data = prepare(tree)
    compute_features(["--data-dir", str(data)])
    extractor = make_extractor(load_config().features)
    for cut in cuts_of(data, "tr", "features"):
        expected = extractor.extract(cut.load_audio(), 16000)
        assert np.abs(cut.load_features() - expected).max() < 0.01


def test_a_dask_cluster_extracts_what_this_machine_would(tree: Path, capsys: pytest.CaptureFixture) -> None:
    from distributed import LocalCluster

    data = prepare(tree)
    compute_features(["--data-dir", str(data)])
    expected = {cut.id: cut.load_features() for cut in CutSet.from_file(data / "features" / "tr.jsonl.gz")}
    shutil.rmtree(data / "features")
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        compute_features(["--data-dir", str(data), "--dask", cluster.scheduler_address])
        found = {cut.id: cut.load_features() for cut in CutSet.from_file(data / "features" / "tr.jsonl.gz")}
    assert found.keys() == expected.keys() and all(np.array_equal(found[i], expected[i]) for i in found)
    with pytest.raises(SystemExit):
        compute_features(["--data-dir", str(data), "--dask", "nowhere"])
    assert "error: --dask nowhere: " in capsys.readouterr().err


def test_audio_that_vanished_gives_no_features_and_stops_nothing(tree: Path, capsys: pytest.CaptureFixture) -> None:
    data = prepare(tree)
    audio_of(tree, "te", "100-1-0003").unlink()
    compute_features(["--data-dir", str(data)])
    assert "no features for 100-1-0003" in capsys.readouterr().err
    assert len(cuts_of(data, "te", "features")) == 5


def test_noise_of_a_folder(tree: Path, tmp_path: Path) -> None:
    data = prepare(tree)
    write_noise(tmp_path / "musan" / "noise" / "a.wav", 23.0)
    write_noise(tmp_path / "musan" / "music" / "b.wav", 7.0, rate=8000)
    write_noise(tmp_path / "musan" / "music" / "short.wav", 2.0)
    prepare_noise(["--data-dir", str(data), f"augment.musan={tmp_path / 'musan'}"])
    assert [round(c.duration, 1) for c in cuts_of(data, "musan")] == [7.0, 10.0, 10.0]


def test_missing_inputs_name_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for program in (prepare_lang, prepare_cuts, compute_features):
        assert "stage 1 of prepare.sh" in fails(capsys, program, ["--data-dir", str(tmp_path)])


def test_full_disk_is_one_line(tree: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    data = manifests(tree)

    def full(path: Path):
        if path.name == "tokens.txt":
            raise OSError(28, "No space left on device", str(path))
        return atomic_write(path)

    monkeypatch.setattr("local.prepare_lang.atomic_write", full)
    assert "no space left" in fails(capsys, prepare_lang, ["--data-dir", str(data)])


def test_broken_writing_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ValueError), atomic_write(tmp_path / "a.txt") as tmp:
        tmp.write_text("new")
        raise ValueError
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_frames_after_subsampling() -> None:
    assert [subsampled(t) for t in (0, 8, 9, 12, 13, 95, 1000)] == [0, 0, 1, 1, 2, 22, 248]


def test_librispeech_piece(shared: Path, tmp_path: Path) -> None:
    part = "train-clean-100"
    (tmp_path / "corpus.yaml").write_text(
        f"name: librispeech\nsource: librispeech\ntrain: [{part}]\ndev: [{part}]\ntest: [{part}]\n"
    )
    data = tmp_path / "data"
    args = ["--corpus-yaml", str(tmp_path / "corpus.yaml"), "--corpus-dir", str(shared / "speech" / "LibriSpeech")]
    prepare_manifests([*args, "--data-dir", str(data), "--nproc", "2"])
    prepare_lang(["--data-dir", str(data)])
    prepare_cuts(["--data-dir", str(data)])
    assert len((data / "lang" / "tokens.txt").read_text().splitlines()) == 500
    with gzip.open(data / "cuts" / f"{part}.jsonl.gz") as f:
        assert len(f.readlines()) == 367


def test_stereo_takes_the_first_channel(tree: Path) -> None:
    path = audio_of(tree, "te", "100-1-0000")
    stereo = np.random.default_rng(0).uniform(-0.1, 0.1, (16000, 2))
    soundfile.write(path, stereo, 16000)
    cut = next(c for c in cuts_of(prepare(tree), "te") if c.id == "100-1-0000")
    assert np.abs(cut.load_audio()[0] - stereo[:, 0]).max() < 1e-4
