"""Channels: those that are asked for are taken, trained on, and said once."""

from __future__ import annotations

from pathlib import Path

from local.config import load_config
from local.data.datamodule import AsrDataModule
from local.data.tokenizer import Tokenizer
from local.prepare_lang import main as prepare_lang
from local.prepare_noise import main as prepare_noise
from tests.corpus.noise_corpus import RATE, TEXT, equal, lhotse_manifests, prepare, recording, samples, segment, table, write

import numpy as np
import pytest
import soundfile


def test_channels_that_are_not_there_are_named(corpus: Path) -> None:
    write(corpus / "mono.wav", 1)
    write(corpus / "two.wav", 2, channels=2)
    write(corpus / "more.wav", 3, channels=2)
    recordings = [recording(corpus / "mono.wav"), recording(corpus / "two.wav", channels=2), recording(corpus / "more.wav")]
    lhotse_manifests(corpus, recordings, [segment("mono", 1), segment("two", 1), segment("more", 0)])
    cuts, reasons = prepare(corpus)
    assert list(reasons) == ["mono"] and "channel" in reasons["mono"] and "1" in reasons["mono"]
    assert equal(cuts["two"], samples(2, channels=2)[:, 1]) and equal(cuts["more"], samples(3, channels=2)[:, 0])


def stereo(path: Path, seed: int, quiet: float = 1.0) -> np.ndarray:
    """Write two channels, the first multiplied by `quiet`; return them (S, 2)."""
    audio = samples(seed, channels=2) * (quiet, 1.0)
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    return audio


def test_channels_are_taken_as_asked_and_said_once(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = {"s": stereo(corpus / "s.wav", 1), "t": stereo(corpus / "t.wav", 2, quiet=1e-4)}
    mono = write(corpus / "m.wav", 3)
    table(corpus, "s.wav", "t.wav", "m.wav")
    expected = {
        "first": {"s": audio["s"][:, 0], "t": audio["t"][:, 0], "m": mono},
        "loudest": {"s": loudest(audio["s"]), "t": audio["t"][:, 1], "m": mono},
        "mix": {"s": audio["s"].mean(1), "t": audio["t"].mean(1), "m": mono},
        "both": {"m": mono, **{f"{n}-{c}": x[:, c] for n, x in audio.items() for c in (0, 1)}},
    }
    for channel, wanted in expected.items():
        cuts, reasons = prepare(corpus, f"data.channel={channel}")
        out = capsys.readouterr().out
        assert not reasons and set(cuts) == set(wanted)
        assert {name: equal(cuts[name], x, 1e-5) for name, x in wanted.items()} == dict.fromkeys(wanted, True), channel
        assert all(cut.supervisions[0].text == TEXT for cut in cuts.values())
        assert (
            len([line for line in out.splitlines() if line.startswith("train: 2 of 3 ") and f"data.channel={channel}" in line])
            == 1
        )
        silent = [line for line in out.splitlines() if "silent" in line and line.startswith("train: 1 of ")]
        assert len(silent) == (channel in ("first", "both")) and all(" t" in line for line in silent)


def loudest(audio: np.ndarray) -> np.ndarray:
    return audio[:, int(np.square(audio).mean(0).argmax())]


def test_utterances_of_both_channels_have_ids_of_their_own(corpus: Path) -> None:
    stereo(corpus / "a.wav", 1)
    for n, name in enumerate(("a-0", "a-0-0")):
        write(corpus / f"{name}.wav", 5 + n)
    table(corpus, "a.wav", "a-0.wav", "a-0-0.wav")
    cuts, _ = prepare(corpus, "data.channel=both")
    assert len(cuts) == 4 and {"a-0", "a-0-0", "a-1"} < set(cuts)
    assert equal(cuts["a-0"], samples(5)[:, 0])


def test_the_mean_of_channels_is_trained_on_at_all_speeds_with_noise(corpus: Path) -> None:
    """The mean is a transform of lhotse's, so speed, resampling and noise work on it as on any cut."""
    stereo(corpus / "s.wav", 1)
    table(corpus, "s.wav")
    write(corpus.parent / "noise" / "n.wav", 9, 7.0)
    options = ["data.channel=mix", "data.num_workers=0", f"augment.musan={corpus.parent / 'noise'}", "augment.musan_prob=1.0"]
    prepare(corpus, *options)
    data = corpus.parent / "data"
    prepare_noise(["--data-dir", str(data), *options])
    prepare_lang(["--data-dir", str(data), *options])
    cfg = load_config(None, options)
    module = AsrDataModule(cfg, data, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"))
    batches = module.train_dataloader(1)
    ids = [name for batch in batches for name in batch.ids]
    assert sorted(ids) == ["s", "s_sp0.9", "s_sp1.1"] and batches.skipped == 0 and batches.last_problem == ""
