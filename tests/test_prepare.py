"""From audio to cuts, tokens and features: the files that preparation writes, and its errors for bad input."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from local.common.atomic import atomic_write, write_text
from local.common.errors import UserError
from local.compute_features import main as compute_features
from local.config import load_config
from local.corpus.audio_files import check_all, check_audio
from local.corpus.audio_reading import BadAudio
from local.corpus.corpus_yaml import load_corpus
from local.data.datamodule import AsrDataModule
from local.data.durations import num_frames, tokens_fit
from local.data.features import make_extractor
from local.data.token_counts import UNUSABLE, counts_file, read_token_counts, write_token_counts
from local.data.tokenizer import Tokenizer, lang_dir
from local.data.training_cuts import ShuffledCuts
from local.prepare_cuts import main as prepare_cuts
from local.prepare_lang import main as prepare_lang
from local.prepare_manifests import main as prepare_manifests
from local.prepare_noise import main as prepare_noise
from local.training.trainer import Trainer
from model.encoder.subsampling import subsampled
from tests.speech_tree import audio_of, make_part, set_text, write_noise

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
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
    args = ["--corpus-yaml", str(tree.parent / "corpus.yaml"), "--corpus-dir", str(tree.parent), "--nj", "2"]
    prepare_manifests([*args, "--data-dir", str(data), *overrides])
    return data


def prepare(tree: Path, *overrides: str) -> Path:
    """Run stages 1 to 3 and return the data folder."""
    data = manifests(tree, *overrides)
    prepare_cuts(["--data-dir", str(data), *overrides])
    prepare_lang(["--data-dir", str(data), *overrides])
    return data


def dropped(data: Path) -> dict[str, str]:
    """Return the reasons of dropped cuts by id: by stages 1 and 2, and by stage 3 with 500 tokens."""
    listings = [data / "dropped.tsv", data / "lang_bpe_500" / "dropped.tsv"]
    rows = [line.split("\t") for listing in listings if listing.exists() for line in listing.read_text().splitlines()]
    return {row[0]: row[2] for row in rows}


def cuts_of(data: Path, part: str, folder: str = "cuts") -> CutSet:
    return CutSet.from_file(data / folder / f"{part}.jsonl.gz").to_eager()


def fails(capsys: pytest.CaptureFixture, program, *args) -> str:
    """Run a program that must stop with one line of error, and return it."""
    with pytest.raises(SystemExit) as stop:
        program(*args)
    assert stop.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


def test_good_corpus_loses_nothing(tree: Path) -> None:
    data = prepare(tree)
    assert {part: len(cuts_of(data, part)) for part in ("tr", "dv", "te")} == {"tr": 12, "dv": 6, "te": 6}
    assert dropped(data) == {}
    corpus = load_corpus(data / "corpus.yaml")
    assert (corpus.train, corpus.dev, corpus.test) == (["tr"], ["dv"], ["te"])
    tokens = (data / "lang_bpe_500" / "tokens.txt").read_text().splitlines()
    assert tokens[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert len((data / "lang_bpe_500" / "transcript.txt").read_text().splitlines()) == 12
    assert not list(data.rglob(".tmp*"))


@pytest.mark.parametrize("ending", ["flac", "wav"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated_files_are_found(tmp_path: Path, ending: str, share: float) -> None:
    path = write_noise(tmp_path / f"a.{ending}", 2.0)
    assert check_audio(path)[:3] == (32000, 16000, 1)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(BadAudio):
        check_audio(path)


def test_the_same_data_give_the_same_bytes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all later stages would run again."""
    before = {path: path.read_bytes() for path in prepare(tree).rglob("*.jsonl.gz")}
    monkeypatch.setattr("gzip.time.time", lambda: 1e9)
    prepare(tree)
    assert len(before) == 9 and all(path.read_bytes() == content for path, content in before.items())


def test_bad_audio_says_why(tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match="missing"):
        check_audio(tmp_path / "none.flac")
    (tmp_path / "text.flac").write_text("no audio at all")
    with pytest.raises(BadAudio, match="unreadable"):
        check_audio(tmp_path / "text.flac")
    with pytest.raises(BadAudio, match="without samples"):
        check_audio(write_noise(tmp_path / "empty.wav", 0.0))


def test_parallel_keeps_the_order() -> None:
    assert list(check_all(abs, range(100), 4, "numbers")) == [(x, x) for x in range(100)]
    assert list(check_all(str, [], 2, "nothing")) == []


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
    counts = read_token_counts(counts_file(data / "lang_bpe_500", "tr"))
    assert [c.id for c in kept if counts[c.id] == UNUSABLE] == ["100-1-0003"]
    assert len(kept) == 7
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
    assert "100-1.ctm:2:" in fails(capsys, manifests, tree)


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
    assert any(line.startswith("dv: 1 ") and "100-1-0000 (Ü)" in line for line in capsys.readouterr().out.splitlines())


def test_unknown_characters_in_training_are_dropped(tree: Path) -> None:
    set_text(tree, "tr", "100-1-0001", "ONE Ü ONE")
    rare = "lang.character_coverage=0.99"
    data = prepare(tree, rare)
    assert dropped(data) == {"100-1-0001": "characters outside the model: Ü"}
    counts = read_token_counts(counts_file(data / "lang_bpe_500", "tr"))
    assert [name for name, count in counts.items() if count == UNUSABLE] == ["100-1-0001"]
    assert len(ShuffledCuts([data / "cuts" / "tr.jsonl.gz"], data / "lang_bpe_500", 1, False, False)) == 11


def one_step(data: Path, exp: Path, vocab_size: int) -> int:
    """Train one step and return the number of tokens in the model."""
    small = [f"model.encoder.{key}=16" for key in ("d_model", "rnn_hidden_size", "dim_feedforward")]
    cfg = load_config(
        None,
        [
            *small,
            "model.encoder.num_layers=1",
            "model.decoder.dim=16",
            "model.joiner.dim=16",
            "data.num_workers=0",
            "train.max_steps=1",
            "train.max_duration=10",
            "train.num_epochs=1",
            f"lang.vocab_size={vocab_size}",
        ],
    )
    tokenizer = Tokenizer.from_file(lang_dir(data, cfg.lang) / "bpe.model")
    trainer = Trainer(cfg, AsrDataModule(cfg, data, tokenizer), exp, torch.device("cpu"))
    trainer.run()
    return trainer.model.decoder.embedding.weight.size(0)


def test_two_numbers_of_tokens_share_cuts_and_features(tree: Path, tmp_path: Path) -> None:
    data = prepare(tree, "lang.vocab_size=20")
    compute_features(["--data-dir", str(data)])
    # These describe all numbers of tokens, or who wrote last.
    known = [data / name for name in ("README.md", "summary.json", ".lock", ".readers")]
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file() and path not in known}
    prepare_lang(["--data-dir", str(data), "lang.vocab_size=30"])
    assert all(path.read_bytes() == content for path, content in before.items())
    first, second = data / "lang_bpe_20", data / "lang_bpe_30"
    new = {path.relative_to(second) for path in second.rglob("*") if path.is_file()}
    assert new == {path.relative_to(first) for path in first.rglob("*") if path.is_file()} and len(new) == 7
    made = {path for path in data.rglob("*") if path.is_file() and path not in known}
    assert made - set(before) == {second / path for path in new}
    assert [one_step(data, tmp_path / str(n), n) for n in (20, 30)] == [20, 30]


def test_tokens_of_another_number_are_named(tree: Path, capsys: pytest.CaptureFixture) -> None:
    data = prepare(tree, "lang.vocab_size=20")
    with pytest.raises(UserError, match=r"lang_bpe_500/bpe.model .* prepare.sh .*lang_bpe_20"):
        Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model")


def test_counts_that_do_not_belong_to_the_cuts_are_an_error(tree: Path) -> None:
    data = prepare(tree)
    lang, manifest = data / "lang_bpe_500", data / "cuts" / "tr.jsonl.gz"
    path = counts_file(lang, "tr")
    lines = path.read_text().splitlines()
    for wrong, message in ((lines[1:], "100-1-0000"), ([*lines[:3], "100-1-0003 2"], r"tr.tsv:4"), (["\t1"], r"tr.tsv:1")):
        path.write_text("".join(f"{line}\n" for line in wrong))
        with pytest.raises(UserError, match=rf"tr.tsv.*{message}|{message}.*prepare.sh"):
            ShuffledCuts([manifest], lang, 1, True, False)
    path.unlink()
    with pytest.raises(UserError, match=r"tr.tsv is missing; .*prepare.sh"):
        ShuffledCuts([manifest], lang, 1, True, False)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), min_size=1), st.integers(-1, 1000)
    )
)
def test_any_counts_come_back(tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int]) -> None:
    path = tmp_path_factory.mktemp("counts") / "tr.tsv"
    write_token_counts(counts, path)
    assert read_token_counts(path) == counts


@given(st.floats(0.0, 40.0), st.integers(0, 1000))
def test_tokens_fit_if_each_has_a_frame(seconds: float, tokens: int) -> None:
    assert tokens_fit(seconds, tokens) == (subsampled(num_frames(seconds)) >= max(1, tokens))


def test_other_sampling_rates_are_resampled(tree: Path) -> None:
    make_part(tree, "tr", rate=8000)
    cut = cuts_of(prepare(tree), "tr")[0]
    assert cut.sampling_rate == 16000
    assert cut.load_audio().shape[1] == cut.num_samples


def test_features_are_stored_and_used_again(tree: Path, capsys: pytest.CaptureFixture) -> None:
    data = prepare(tree)
    compute_features(["--data-dir", str(data), "--nj", "2"])
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
    assert "tr: features of 33 cuts" in capsys.readouterr().out
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
    compute_features(["--data-dir", str(data), "data.max_lost=0.2"])
    assert "te: no features for 100-1-0003" in capsys.readouterr().err
    assert len(cuts_of(data, "te", "features")) == 5


def test_noise_of_a_folder(tree: Path, tmp_path: Path) -> None:
    data = prepare(tree)
    write_noise(tmp_path / "musan" / "noise" / "a.wav", 23.0)
    write_noise(tmp_path / "musan" / "music" / "b.wav", 7.0, rate=8000)
    write_noise(tmp_path / "musan" / "music" / "short.wav", 2.0)
    prepare_noise(["--data-dir", str(data), f"augment.musan={tmp_path / 'musan'}"])
    assert [round(c.duration, 1) for c in cuts_of(data, "musan")] == [7.0, 10.0, 10.0]


def test_missing_inputs_name_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for program in (prepare_cuts, prepare_lang, compute_features):
        error = fails(capsys, program, ["--data-dir", str(tmp_path)])
        assert f"{tmp_path}/corpus.yaml" in error and "stage 1 (manifests) of prepare.sh" in error


def test_full_disk_is_one_line(tree: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepare(tree)

    def full(path: Path, text: str) -> None:
        if path.name == "tokens.txt":
            raise OSError(28, "No space left on device", str(path))
        write_text(path, text)

    monkeypatch.setattr("local.prepare_lang.write_text", full)
    assert "tokens.txt" in fails(capsys, prepare_lang, ["--data-dir", str(data)])


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
    prepare_manifests([*args, "--data-dir", str(data), "--nj", "2"])
    prepare_cuts(["--data-dir", str(data)])
    prepare_lang(["--data-dir", str(data)])
    assert len((data / "lang_bpe_500" / "tokens.txt").read_text().splitlines()) == 500
    with gzip.open(data / "cuts" / f"{part}.jsonl.gz") as f:
        assert len(f.readlines()) == 367


def test_stereo_takes_the_first_channel(tree: Path) -> None:
    path = audio_of(tree, "te", "100-1-0000")
    stereo = np.random.default_rng(0).uniform(-0.1, 0.1, (16000, 2))
    soundfile.write(path, stereo, 16000)
    cut = next(c for c in cuts_of(prepare(tree), "te") if c.id == "100-1-0000")
    assert np.abs(cut.load_audio()[0] - stereo[:, 0]).max() < 1e-4
