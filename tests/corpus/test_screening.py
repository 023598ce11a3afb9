"""Audio that users bring: what is kept can be loaded by training and is complete; the rest is named with a reason."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

from local.config import load_config
from local.corpus.audio_reading import read_audio
from local.corpus.mpeg import frame_at
from local.data.datamodule import AsrDataModule
from local.data.tokenizer import Tokenizer
from local.prepare_lang import main as prepare_lang
from local.prepare_noise import main as prepare_noise
from tests.corpus.noise_corpus import (
    RATE,
    TEXT,
    allow_commands,
    dropped,
    equal,
    lhotse_manifests,
    loaded,
    prepare,
    recording,
    samples,
    segment,
    table,
    write,
)

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut
from lhotse.audio.backend import LibsndfileBackend


def without(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Make `folder` the only place of programs and return it."""
    folder.mkdir()
    for name in ("sh", "cat", "env"):
        os.symlink(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}", folder / name)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_sphere_files_are_loaded_or_named(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, corpus.parent / "bin")
    good = write(corpus / "a.sph", 1, format="NIST", subtype="PCM_16")
    whole = (corpus / "a.sph").read_bytes()
    (corpus / "cut.sph").write_bytes(whole[: len(whole) // 2])
    (corpus / "shorten.sph").write_bytes(whole[:1024].replace(b"pcm", b"pcm,embedded-shorten-v2.00")[:1024] + whole[1024:])
    table(corpus, "a.sph", "cut.sph", "shorten.sph")
    cuts, reasons = prepare(corpus)
    assert list(cuts) == ["a"] and equal(cuts["a"], good)
    assert "truncated" in reasons["cut"] and "cut.sph" in reasons["cut"]
    assert "sph2pipe" in reasons["shorten"] and "shorten.sph" in reasons["shorten"]


def test_transforms_are_loaded_or_named(corpus: Path) -> None:
    """What stage 1 keeps, training loads; whether lhotse's tempo works depends on torchaudio."""
    cuts = []
    for n, name in enumerate(("plain", "speed", "tempo", "volume", "reverb")):
        write(corpus / f"{name}.wav", n)
        whole = recording(corpus / f"{name}.wav")
        cut = MonoCut(name, 0.0, 1.0, 0, [segment(name)], recording=whole)
        change = {"speed": lambda c: c.perturb_speed(1.1), "tempo": lambda c: c.perturb_tempo(1.1)}
        change |= {"volume": lambda c: c.perturb_volume(2.0), "reverb": lambda c: c.reverb_rir()}
        cuts.append(change.get(name, lambda c: c)(cut))
    CutSet.from_cuts(cuts).to_file(corpus / "cuts_train.jsonl.gz")
    kept, reasons = prepare(corpus, "data.min_utterance_seconds=0")
    assert len(kept) + len(reasons) == 5 and len(kept) >= 3
    for cut in kept.values():
        assert abs(len(loaded(cut)) - cut.num_samples) <= 1
    by_name = {name.partition("_")[0]: cut for name, cut in kept.items()}  # lhotse adds what it did to ids
    assert equal(by_name["plain"], samples(0)[:, 0]) and equal(by_name["volume"], 2 * samples(3)[:, 0], 1e-4)
    assert len(loaded(by_name["speed"])) == pytest.approx(RATE / 1.1, abs=1)
    assert all(name in kept or "tempo" in name or "reverb" in name for name in (c.supervisions[0].id for c in cuts))
    assert all(".wav" in reason and ("Tempo" in reason or "Reverb" in reason) for reason in reasons.values())


def with_data_size(path: Path, size: int, riff: int | None = None) -> None:
    content = path.read_bytes()
    assert content[36:40] == b"data"
    riff = min(size + 36, 0xFFFFFFFF) if riff is None else riff
    path.write_bytes(content[:4] + struct.pack("<I", riff) + content[8:40] + struct.pack("<I", size) + content[44:])


PIPED = [0, 0x7FFFF000, 0x7FFFFFFF, 0x7FFFFFFF - 36, 0x7FFFFFFE, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFF - 44, 0xFFFFFFFE]


def test_headers_written_for_a_pipe_are_no_damage(corpus: Path) -> None:
    audio = {f"p{size:x}": (write(corpus / f"p{size:x}.wav", n), size) for n, size in enumerate(PIPED)}
    for name, (_, size) in audio.items():
        with_data_size(corpus / f"{name}.wav", size)
    write(corpus / "cut.wav", 50)
    (corpus / "cut.wav").write_bytes((corpus / "cut.wav").read_bytes()[:-2])
    write(corpus / "empty.wav", 51, seconds=0.0)
    write(corpus / "tagged.wav", 52, seconds=0.0)
    with open(corpus / "tagged.wav", "ab") as f:
        f.write(b"LIST" + struct.pack("<I", 16) + b"INFOIART" + struct.pack("<I", 4) + b"me\0\0")
    table(corpus, *(f"{name}.wav" for name in audio), "cut.wav", "empty.wav", "tagged.wav")
    cuts, reasons = prepare(corpus)
    assert {name: equal(cuts[name], expected) for name, (expected, _) in audio.items()} == dict.fromkeys(audio, True)
    assert set(reasons) == {"cut", "empty", "tagged"} and "truncated" in reasons["cut"] and "2 bytes" in reasons["cut"]


def of_unknown_length(flac: bytes) -> bytes:
    """Return a FLAC file with 0 as number of samples in STREAMINFO, as an encoder writes to a pipe."""
    content = bytearray(flac)
    assert content[:4] == b"fLaC" and content[4] & 0x7F == 0
    content[8 + 13] &= 0xF0
    content[8 + 14 : 8 + 18] = bytes(4)
    return bytes(content)


def test_flac_of_unknown_length_is_read(corpus: Path) -> None:
    audio = write(corpus / "r.flac", 1, seconds=21.3)
    whole = (corpus / "r.flac").read_bytes()
    (corpus / "train").mkdir()
    (corpus / "r.flac").write_bytes(of_unknown_length(whole))
    (corpus / "cut.flac").write_bytes(of_unknown_length(whole)[: len(whole) // 2])
    (corpus / "train" / "wav.scp").write_text(
        f"r {corpus}/r.flac\ncut {corpus}/cut.flac\np cat {corpus}/r.flac |\n"  # a pipe is read from memory
    )
    (corpus / "train" / "segments").write_text("a r 0 -1\nb r 17.5 19.25\nc cut 0 5\nd p 20 -1\n")
    (corpus / "train" / "text").write_text("".join(f"{name} {TEXT}\n" for name in "abcd"))
    cuts, reasons = prepare(corpus, "data.max_utterance_seconds=30", yaml=allow_commands(corpus))
    expected = {"a": audio, "b": audio[int(17.5 * RATE) : int(19.25 * RATE)], "d": audio[20 * RATE :]}
    assert {name: equal(cuts[name], x) for name, x in expected.items()} == dict.fromkeys("abd", True)
    assert list(reasons) == ["c"] and "cut.flac" in reasons["c"]


def test_rounded_durations_are_no_damage(corpus: Path) -> None:
    seconds = {f"u{n}": 1 + n * 0.00137 for n in range(12)}
    recordings, segments = [], []
    for n, (name, length) in enumerate(seconds.items()):
        write(corpus / f"{name}.wav", n, length)
        stated = round(length, 2)
        recordings.append(recording(corpus / f"{name}.wav", stated))
        segments.append(segment(name, duration=stated))
    write(corpus / "short.wav", 50, 0.45)
    lhotse_manifests(corpus, [*recordings, recording(corpus / "short.wav")], [*segments, segment("short")])
    cuts, reasons = prepare(corpus)
    assert list(reasons) == ["short"] and "7200 of 16000" in reasons["short"]
    for n, (name, length) in enumerate(seconds.items()):
        found, all_of_it = loaded(cuts[name]), samples(n, length)[:, 0]
        least = min(len(found), len(all_of_it))
        assert (
            abs(len(found) - len(all_of_it)) <= 0.005 * RATE + 1
            and np.abs(found - all_of_it[: len(found)])[:least].max() < 1e-6
        )
        assert cuts[name].recording.num_samples == len(all_of_it)  # the decoded length counts


def test_a_wrong_rate_is_called_a_wrong_rate(corpus: Path) -> None:
    for name in ("good", "half", "same"):
        write(corpus / f"{name}.wav", 1)
    recordings = [
        recording(corpus / "good.wav"),
        recording(corpus / "half.wav", rate=8000),
        recording(corpus / "same.wav", 2.0, rate=8000),  # as many samples as the file has
    ]
    lhotse_manifests(corpus, recordings, [segment("good"), segment("half"), segment("same", duration=2.0)])
    cuts, reasons = prepare(corpus)
    assert list(cuts) == ["good"] and set(reasons) == {"half", "same"}
    assert all(r.startswith("sampling rate") and "8000" in r and "16000" in r and ".wav" in r for r in reasons.values())


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU", "W64", "RF64", "NIST", "FLAC", "OGG", "MP3", "CAF"])
def test_truncated_files_of_all_formats_are_refused(corpus: Path, form: str) -> None:
    subtype = {"subtype": "PCM_16"} if form in ("W64", "RF64", "NIST", "CAF") else {}
    write(corpus / "good.snd", 1, 2.0, format=form, **subtype)
    whole = (corpus / "good.snd").read_bytes()
    for n, share in enumerate((0.2, 0.5, 0.97)):
        (corpus / f"cut{n}.snd").write_bytes(whole[: int(share * len(whole))])
    table(corpus, "good.snd", "cut0.snd", "cut1.snd", "cut2.snd")
    cuts, reasons = prepare(corpus)
    assert list(cuts) == ["good"] and set(reasons) == {"cut0", "cut1", "cut2"}
    assert len(loaded(cuts["good"])) == 2 * RATE


def test_every_exception_of_the_libraries_is_a_reason(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(corpus / "good.wav", 1)
    (corpus / "headless.raw").write_bytes(bytes(1000))
    (corpus / "text.wav").write_text("this is not audio")
    (corpus / "nothing.flac").write_bytes(b"")
    (corpus / "folder.wav").mkdir()
    (corpus / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(5000))
    (corpus / "many.wav").write_bytes(
        struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 60, b"WAVEfmt ", 16, 1, 65535, *[RATE] * 2, 2, 16, b"data", 24) + bytes(24)
    )
    bad = ["headless.raw", "text.wav", "nothing.flac", "folder.wav", "noise.mp3", "many.wav"]
    table(corpus, "good.wav", *bad)
    cuts, reasons = prepare(corpus)
    assert list(cuts) == ["good"] and {name: name in reasons[name.split(".")[0]] for name in bad} == dict.fromkeys(bad, True)
    assert reasons["headless"].startswith("audio without a header")

    def broken(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(soundfile.SoundFile, "read", broken)
    with pytest.raises(SystemExit):
        prepare(corpus)
    assert "MemoryError" in dropped(corpus.parent / "data" / "manifests")["good"]


def test_reasons_come_before_the_error(corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (corpus / "train").mkdir()
    (corpus / "train" / "wav.scp").write_text(
        "".join(f"u{n} no-such-program -f wav {n}.sph |\n" for n in range(40)) + "v false |\n"
    )
    (corpus / "train" / "text").write_text("".join(f"u{n} {TEXT}\n" for n in range(40)) + f"v {TEXT}\nw {TEXT}\n")
    with pytest.raises(SystemExit):
        prepare(corpus, yaml=allow_commands(corpus))
    said = capfd.readouterr()
    reasons = dropped(corpus.parent / "data" / "manifests")
    assert len(reasons) == 42
    assert all(
        reasons[f"u{n}"].startswith("command failed: exit 127: ") and f"no-such-program -f wav {n}.sph" in reasons[f"u{n}"]
        for n in range(40)
    )
    assert "no-such-program" in reasons["u0"].split(":")[-2] + reasons["u0"] and "exit 1" in reasons["v"]
    assert sum(line.startswith("  dropped ") for line in said.out.splitlines()) == 6  # five of a kind, and w
    assert "train: 41 dropped (command failed)" in said.out and "41" in said.err and "command failed" in said.err
    assert len(said.err.strip().splitlines()) == 1 and "BytesIO" not in said.out + said.err


def test_mpeg_decoder_is_silent(corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libmpg123 warns of a stream size that differs from the header's, here as another file was appended."""
    write(corpus / "a.mp3", 1, 2.0)
    with open(corpus / "a.mp3", "ab") as f:
        f.write(b"TAG" + bytes(5000))
    soundfile.SoundFile(corpus / "a.mp3").close()
    assert "Warning" in capfd.readouterr().err  # else this test shows nothing
    table(corpus, "a.mp3")
    cuts, _ = prepare(corpus)
    assert len(loaded(cuts["a"])) == 2 * RATE
    assert capfd.readouterr().err == ""
    os.write(2, b"standard error is there again")
    assert "again" in capfd.readouterr().err


@pytest.mark.parametrize("tag", [b"", b"ID3\3\0\0\0\0\7\x76" + bytes(1014)])
@pytest.mark.parametrize("loud", [0, 1])
def test_mp3_of_variable_bit_rate_without_a_header_is_read_wholly(corpus: Path, loud: int, tag: bytes) -> None:
    """The library guesses the length from the first frame's bit rate: here too long or too short."""
    parts = [samples(n, 2.0)[:, 0] * (2.0 if n % 2 == loud else 0.0) for n in range(8)]
    options = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.5}
    soundfile.write(corpus / "full.mp3", np.concatenate(parts), RATE, **options)  # type: ignore[arg-type]
    data = (corpus / "full.mp3").read_bytes()
    first = frame_at(data, 0)
    assert first and data[first.tag : first.tag + 4] == b"Xing"
    (corpus / "v.mp3").write_bytes(tag + data[first.size :] + b"TAG" + bytes(125))
    table(corpus, "full.mp3", "v.mp3")
    cuts, reasons = prepare(corpus)
    assert not reasons and abs(len(loaded(cuts["v"])) - 16 * RATE) < 0.2 * RATE
    assert loaded(cuts["full"]).shape == (16 * RATE,)
    half = cuts["v"].truncate(offset=8.5, duration=1.0)
    whole = loaded(cuts["v"])[int(8.6 * RATE) : int(9.5 * RATE)]  # the decoder needs some frames to be exact after seeking
    assert np.abs(loaded(half)[int(0.1 * RATE) :] - whole).max() < 1e-3


def test_other_formats_need_ffmpeg(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = without(monkeypatch, corpus.parent / "bin")
    write(corpus / "good.wav", 1)
    (corpus / "song.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(100))
    (corpus / "bad.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(10))
    table(corpus, "good.wav", "song.m4a", "bad.m4a")
    cuts, reasons = prepare(corpus)
    assert list(cuts) == ["good"] and all(
        reasons[n].startswith("needs ffmpeg") and f"{n}.m4a" in reasons[n] for n in ("song", "bad")
    )
    script = f'#!/bin/sh\ncase "$*" in *song.m4a*) cat {corpus}/good.wav;; *) echo "moov atom not found" >&2; exit 1;; esac\n'
    (folder / "ffmpeg").write_text(script)
    (folder / "ffmpeg").chmod(0o755)
    cuts, reasons = prepare(corpus)
    assert set(cuts) == {"good", "song"} and equal(cuts["song"], loaded(cuts["good"]))
    assert "moov atom not found" in reasons["bad"]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_last_problem_comes_out_of_the_loader(corpus: Path, workers: int) -> None:
    write(corpus / "a.wav", 1)
    table(corpus, "a.wav")
    prepare(corpus)
    data = corpus.parent / "data"
    prepare_lang(["--data-dir", str(data)])
    (corpus / "a.wav").unlink()
    cfg = load_config(None, [f"data.num_workers={workers}"])
    module = AsrDataModule(cfg, data, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"))
    batches = module.train_dataloader(1)
    assert sum(len(batch) for batch in batches) == 0 and batches.skipped == 3
    assert re.search(r"utterance a\S* \(.*a\.wav\): .*missing", batches.last_problem)


def test_noise_that_cannot_be_loaded_is_left_out(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(corpus / "a.wav", 1)
    table(corpus, "a.wav")
    prepare(corpus)
    write(corpus / "n.wav", 2, 7.0)
    cuts = [MonoCut(n, 0.0, 7.0, c, recording=recording(corpus / "n.wav", 7.0)) for n, c in (("good", 0), ("bad", 1))]
    CutSet.from_cuts(cuts).to_file(corpus / "noise.jsonl.gz")
    arguments = ["--data-dir", str(corpus.parent / "data"), f"augment.musan={corpus / 'noise.jsonl.gz'}"]
    prepare_noise(arguments)
    assert [c.id[:4] for c in CutSet.from_file(corpus.parent / "data/cuts/musan.jsonl.gz")] == ["good"]
    assert "bad" in capsys.readouterr().err
    (corpus / "noise.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(SystemExit):
        prepare_noise(arguments)
    assert "noise.jsonl.gz" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["flac", "wav", "mp3", "ogg"])
def test_the_reader_gives_the_bits_of_lhotses_own(corpus: Path, ending: str) -> None:
    """The numbers of trainings that were done with lhotse's reader stay."""
    write(corpus / f"a.{ending}", 1, 3.0)
    own = LibsndfileBackend()
    for offset, duration in ((0.0, None), (0.0, 3.0), (1.25, 0.5), (2.0, None)):
        expected, rate = own.read_audio(str(corpus / f"a.{ending}"), offset, duration)
        found, found_rate = read_audio(str(corpus / f"a.{ending}"), offset, duration)
        assert rate == found_rate and np.array_equal(found, expected)
