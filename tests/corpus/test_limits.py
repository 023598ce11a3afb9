"""Audio and manifests that would cost without bound, and noise that is damaged: one clear line each, and the rest is used."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.corpus import audio_reading, lhotse_manifests
from local.corpus.audio_files import check_audio, what_is_missing
from local.corpus.audio_reading import BadAudio, load_audio, read_audio
from local.corpus.dropped import Dropped
from local.corpus.shard_store import ShardStore
from local.decoding.audio_pieces import open_checked
from local.prepare_noise import main as prepare_noise
from tests.corpus.noise_corpus import (
    RATE,
    TEXT,
    equal,
    prepare,
    recording,
    segment,
    table,
    write,
)
from tests.corpus.noise_corpus import (
    lhotse_manifests as write_manifests,
)

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording


def silence(form: str, seconds: float = 0.1, **options: str) -> bytearray:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(int(seconds * RATE)), RATE, format=form, **options)
    return bytearray(out.getvalue())


def changed(data: bytearray, place: int, form: str, value: int) -> bytes:
    struct.pack_into(form, data, place, value)
    return bytes(data)


def flac(shift: int, bits: int, value: int) -> bytes:
    """Return FLAC with another value in the 64 bits of rate (20), channels (3), sample size (5) and samples (36)."""
    data = silence("FLAC")
    (found,) = struct.unpack_from(">Q", data, 18)
    return changed(data, 18, ">Q", (found & ~(((1 << bits) - 1) << shift)) | value << shift)


HEADERS = {  # what a header states, and what the reason must name
    "rate.au": (changed(silence("AU", subtype="PCM_16"), 16, ">I", 2**31 - 1), "2147483647 Hz"),
    "low.au": (changed(silence("AU", subtype="PCM_16"), 16, ">I", 1), "1 Hz"),
    "channels.au": (changed(silence("AU", subtype="PCM_16"), 20, ">I", 1000), "1000"),
    "rate.flac": (flac(44, 20, 1048575), "1048575 Hz"),
    "samples.flac": (flac(0, 36, 2**36 - 1), str(audio_reading.MOST_SAMPLES)),
    "rate.wav": (changed(silence("WAV"), 24, "<I", 2**32 - 1), "rate.wav"),
    "channels.wav": (changed(silence("WAV"), 22, "<H", 65535), "channels.wav"),
}


def processor_seconds() -> float:
    """Return those of this process and of the children that it has waited for: others may load the machine."""
    return sum(os.times()[:4])


def test_what_headers_claim_is_bounded(corpus: Path) -> None:
    write(corpus / "good.wav", 1)
    for name, (data, _) in HEADERS.items():
        (corpus / name).write_bytes(data)
    table(corpus, "good.wav", *HEADERS)
    began = processor_seconds()
    cuts, reasons = prepare(corpus)
    assert list(cuts) == ["good"] and processor_seconds() - began < 20
    found = list(reasons.values())
    for name, (data, named) in HEADERS.items():
        assert any(named in reason and name in reason for reason in found), (name, found)
        for source in (corpus / name, io.BytesIO(data)):
            with pytest.raises((BadAudio, soundfile.LibsndfileError)):  # not MemoryError
                read_audio(source)


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3", "WAV"])
def test_decoding_needs_the_memory_of_a_block(tmp_path: Path, form: str) -> None:
    with soundfile.SoundFile(tmp_path / "long", "w", RATE, 1, format=form) as f:
        for _ in range(10):
            f.write(np.zeros(30 * RATE))
    tracemalloc.start()
    info = check_audio(tmp_path / "long")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert info.num_samples >= 300 * RATE and peak < 10e6  # all of it has 19 MB


def test_length_is_bounded_whether_or_not_it_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated, unstated = silence("FLAC", 60.0), flac(0, 36, 0)
    unstated = bytes(unstated[:42]) + bytes(stated[42:])
    (tmp_path / "stated.flac").write_bytes(stated)
    (tmp_path / "unstated.flac").write_bytes(unstated)
    for name in ("stated.flac", "unstated.flac"):
        assert check_audio(tmp_path / name).num_samples == 60 * RATE
    monkeypatch.setattr(audio_reading, "MOST_LOADED", 10 * RATE)
    for name in ("stated.flac", "unstated.flac"):  # a cut may state less than its file has, and then all of it is read
        with pytest.raises(BadAudio, match="160000"):
            read_audio(tmp_path / name)
        assert read_audio(tmp_path / name, 50.0, 9.0)[0].shape == (1, 9 * RATE)
        cut = MonoCut(
            "a", 0.0, 1.0, 0, recording=Recording("a", [AudioSource("file", [0], str(tmp_path / name))], RATE, RATE, 1.0)
        )
        with pytest.raises(BadAudio, match="160000"):
            load_audio(cut)
    monkeypatch.setattr(audio_reading, "MOST_SAMPLES", 50 * RATE)
    for name in ("stated.flac", "unstated.flac"):
        with pytest.raises(BadAudio, match="800000"):
            check_audio(tmp_path / name)
    monkeypatch.setattr(audio_reading, "MOST_BYTES", 100)
    soundfile.write(tmp_path / "a.mp3", np.zeros(RATE), RATE, format="MP3", bitrate_mode="CONSTANT")
    (tmp_path / "a.mp3").write_bytes(b"ID3\3\0\0\0\0\0\0" + (tmp_path / "a.mp3").read_bytes())
    with pytest.raises(BadAudio, match="bytes"):  # MP3 with tags is read as a whole
        check_audio(tmp_path / "a.mp3")


def test_an_utterance_of_hours_is_left_out(corpus: Path) -> None:
    write(corpus / "good.wav", 1)
    with soundfile.SoundFile(corpus / "long.flac", "w", 1000, 1) as f:
        for _ in range(7201):
            f.write(np.zeros(1000, dtype=np.int16))
    table(corpus, "good.wav")
    (corpus / "test.tsv").write_text(f"good.wav\t{TEXT}\nlong.flac\t{TEXT}\n")  # a test set is not limited by seconds
    _, reasons = prepare(corpus)
    assert list(reasons) == ["long"] and "7201 s" in reasons["long"] and "long.flac" in reasons["long"]


def transform(name: str, **values: object) -> dict[str, Any]:
    return {"name": name, "kwargs": values}


TRANSFORMS: dict[str, tuple[Any, str]] = {  # and channels; what the reason must name
    "speed of 0.00001": ([transform("Speed", factor=1e-5)], "factor"),
    "speed of NaN": ([transform("Speed", factor=float("nan"))], "factor"),
    "speed of text": ([transform("Speed", factor="fast")], "factor"),
    "speed of 0": ([transform("Speed", factor=0)], "factor"),
    "speeds": (20 * [transform("Speed", factor=0.5)], "factor"),
    "tempo": ([transform("Tempo", factor=1e9)], "factor"),
    "rate": ([transform("Resample", source_sampling_rate=RATE, target_sampling_rate=10**9)], "target_sampling_rate"),
    "no rate": ([transform("Resample", source_sampling_rate=0, target_sampling_rate=RATE)], "source_sampling_rate"),
    "volume": ([transform("Volume", factor=1e300)], "factor"),
    "wpe": ([transform("DereverbWPE", n_fft=10**9)], "n_fft"),
    "room": ([transform("ReverbWithImpulseResponse", rir_generator={"max_T60": 1e9})], "max_T60"),
    "a in a room": ([transform("ReverbWithImpulseResponse", rir_generator={"a": float("inf")})], "a of"),
    "room's rate": ([transform("ReverbWithImpulseResponse", rir_generator={"sr": 10**9})], "sr"),
    "many": (1000 * [transform("Volume", factor=1.0)], "1000"),
    "type": ({"sources": [{"type": [[], []], "channels": [0], "source": "x"}]}, "type"),
    "channels": ({"sources": [{"type": "file", "channels": "a", "source": "x"}]}, "channels"),
    "channel of text": ({"sources": [{"type": "file", "channels": ["a"], "source": "x"}]}, "channels"),
    "channel ids": ({"channel_ids": {"a": 1}}, "channels"),
    "unknown": ([transform("Shell", command="touch PWNED")], "Shell"),
}


def test_transforms_of_manifests_are_bounded(corpus: Path) -> None:
    write(corpus / "good.wav", 1)
    lines = [recording(corpus / "good.wav").to_dict()]
    for name, (transforms, _) in TRANSFORMS.items():
        values = {"transforms": transforms} if isinstance(transforms, list) else transforms
        lines.append({**recording(corpus / "good.wav").to_dict(), "id": name, **values})
    write_manifests(corpus, [], [segment("good"), *(segment(name) for name in TRANSFORMS)])
    (corpus / "recordings_train.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    began = processor_seconds()
    cuts, reasons = prepare(corpus)
    assert list(cuts) == ["good"] and processor_seconds() - began < 20
    for number, (_, named) in enumerate(TRANSFORMS.values(), 2):
        place = f"recordings_train.jsonl.gz:{number}"
        assert any(named in why for key, why in reasons.items() if key.endswith(place)), place


def test_reverberation_and_odd_rates_of_manifests(corpus: Path) -> None:
    """Usual transforms stay allowed; a sampling rate must be one."""
    write(corpus / "good.wav", 1)
    good = recording(corpus / "good.wav")
    write(corpus / "other.wav", 2)  # of the same file it would be a copy, which is left out
    usual = recording(corpus / "other.wav").perturb_speed(1.1).perturb_volume(0.05).resample(8000).reverb_rir()
    lines = [good.to_dict(), {**usual.to_dict(), "id": "usual"}, {**good.to_dict(), "id": "odd", "sampling_rate": 16000.5}]
    lines.append({**good.to_dict(), "id": "high", "sampling_rate": 10**9, "num_samples": 10**9})
    names = ("good", "usual", "odd", "high")
    write_manifests(corpus, [], [segment(name, duration=0.5) for name in names])
    (corpus / "recordings_train.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    cuts, reasons = prepare(corpus)
    assert set(cuts) == {"good", "usual"}, reasons
    assert sum("sampling_rate" in reason for reason in reasons.values()) == 2


def test_a_manifest_that_unpacks_without_end_is_an_error(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> None:
        for _ in lhotse_manifests.items(corpus / "cuts_train.jsonl.gz", MonoCut, "train", []):
            pass

    (corpus / "cuts_train.jsonl.gz").write_bytes(gzip.compress(b"\n" + bytes(1 << 26), 1))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"cuts_train\.jsonl\.gz:2"):
        read()
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()
    monkeypatch.setattr(lhotse_manifests, "LONGEST_LINE", 1 << 16)
    (corpus / "cuts_train.jsonl.gz").write_bytes(gzip.compress(b"\n" * (1 << 21), 9))
    with pytest.raises(UserError, match=r"cuts_train\.jsonl\.gz:\d+"):
        read()
    monkeypatch.setattr(lhotse_manifests, "MOST_MALFORMED", 1000)
    (corpus / "cuts_train.jsonl.gz").write_bytes(gzip.compress(b"x\n" * 10**6, 1))
    with pytest.raises(UserError, match=r"cuts_train\.jsonl\.gz:1002"):
        read()


def test_what_is_left_out_for_other_reasons_is_not_malformed(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(corpus / "good.wav", 1)
    line = json.dumps(recording(corpus / "good.wav").to_cut().to_dict()) + "\n"
    (corpus / "cuts_train.jsonl.gz").write_bytes(gzip.compress(3 * line.encode()))
    monkeypatch.setattr(lhotse_manifests, "MOST_MALFORMED", 1)
    dropped: list[Dropped] = []
    for _ in lhotse_manifests.items(corpus / "cuts_train.jsonl.gz", MonoCut, "train", dropped):
        dropped += 2 * [Dropped("a", "train", "supervision exceeds its cut")]
    assert len(dropped) == 6 and not any(d.kind == "malformed line" for d in dropped)


def test_a_place_in_a_shard_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(10_000))
    for place in ("0+99999999999999", "99999999999999999999999+5", "-5+5", "0+-1", "x"):
        with pytest.raises(BadAudio, match=r"a\.tar"):
            ShardStore(tmp_path, 1.0).open(AudioSource("shar", [0], f"{tmp_path}/a.tar#{place}"))


def noise_cuts(corpus: Path) -> list[dict[str, Any]]:
    """Return a good cut of noise, as lhotse writes it."""
    write(corpus / "noise.wav", 2, 7.0)
    return [MonoCut("good", 0.0, 7.0, 0, recording=recording(corpus / "noise.wav", 7.0)).to_dict()]


def packed(*lines: Any) -> bytes:
    return gzip.compress("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode())


def with_recording(cut: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**cut, "id": "bad", "recording": {**cut["recording"], **values}}


BAD_NOISE: dict[str, Callable[[dict[str, Any]], Any]] = {  # a line beside a good one
    "a recording": lambda good: good["recording"],
    "a supervision": lambda good: segment("bad").to_dict(),
    "no object": lambda good: [1, 2],
    "half a line": lambda good: json.dumps(good)[:50],
    "NaN": lambda good: {**good, "id": "bad", "duration": float("nan")},
    "endless": lambda good: {**good, "id": "bad", "duration": 1e300},
    "negative start": lambda good: {**good, "id": "bad", "start": -5.0},
    "text as number": lambda good: {**good, "id": "bad", "duration": "7"},
    "no recording": lambda good: {k: v for k, v in good.items() if k != "recording"},
    "missing file": lambda good: with_recording(good, sources=[{"type": "file", "channels": [0], "source": "/nowhere/x.wav"}]),
    "no sources": lambda good: with_recording(good, sources=[]),
    "no rate": lambda good: with_recording(good, sampling_rate=0),
    "another channel": lambda good: {**good, "id": "bad", "channel": 5},
    "padding": lambda good: {"id": "bad", "type": "PaddingCut", "duration": 1e12, "sampling_rate": RATE, "feat_value": 0.0},
    "half a character": lambda good: {**good, "id": "\ud800"},
    "id of a number": lambda good: {**good, "id": 7},
    "supervision of nothing": lambda good: {**good, "id": "bad", "supervisions": [{}]},
    "huge": lambda good: with_recording(good, num_samples=10**300, duration=10**300 / RATE, sampling_rate=RATE),
    "unknown type": lambda good: {**good, "id": "bad", "type": "Command"},
    "video": lambda good: with_recording(
        good,
        sources=[
            {
                **good["recording"]["sources"][0],
                "video": {"fps": 25.0, "num_frames": 175, "height": 4, "width": 4},
            }
        ],
    ),
}
BAD_MANIFESTS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": lambda good: b"",
    "empty gzip": lambda good: packed(),
    "no gzip": lambda good: b"this is not gzip",
    "cut off": lambda good: packed(*10 * [good])[:-20],
    "bytes": lambda good: gzip.compress(b"\xff\xfe\n"),
    "no cuts": lambda good: packed(good["recording"]),
    "a list": lambda good: packed([good]),
    "zero bytes": lambda good: gzip.compress(bytes(1000)),
}


def make_noise(corpus: Path, source: Path) -> None:
    prepare_noise(["--data-dir", str(corpus.parent / "data"), f"augment.musan={source}"])


@pytest.mark.parametrize("name", BAD_NOISE)
def test_bad_noise_is_named_and_the_rest_is_used(corpus: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (good,) = noise_cuts(corpus)
    (corpus / "noise.jsonl.gz").write_bytes(packed(BAD_NOISE[name](good), good))
    make_noise(corpus, corpus / "noise.jsonl.gz")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("warning: ") and ("noise.jsonl.gz:1" in lines[0] or "bad" in lines[0])
    assert [cut.id[:4] for cut in CutSet.from_file(corpus.parent / "data/cuts/musan.jsonl.gz")] == ["good"]


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_bad_manifest_of_noise_is_one_line(corpus: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "noise.jsonl.gz").write_bytes(BAD_MANIFESTS[name](*noise_cuts(corpus)))
    with pytest.raises(SystemExit):
        make_noise(corpus, corpus / "noise.jsonl.gz")
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: noise left out: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and "noise.jsonl.gz" in errors[0]


def test_noise_of_another_kind_is_one_line(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "empty").mkdir()
    (corpus / "noise.yaml").write_text("- !!python/object/apply:os.system ['touch PWNED']\n")
    for source in (corpus / "empty", corpus / "noise.yaml", corpus / "gone"):
        with pytest.raises(SystemExit):
            make_noise(corpus, source)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: augment.musan=") and str(source) in line
    (corpus / "many.jsonl").write_text("x\n" * 100)
    with pytest.raises(SystemExit):
        make_noise(corpus, corpus / "many.jsonl")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 22 and "100" in lines[-2] and "many.jsonl" in lines[-1]


def test_raw_audio_is_one_line(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Audio without a header, by every way to name it; a WAV of that name is read."""
    noise = write(corpus / "good.wav", 1)
    for name in ("a.raw", "b.RAW"):
        (corpus / name).write_bytes((noise * 32768).astype("<i2").tobytes())
    (corpus / "c.raw").write_bytes((corpus / "good.wav").read_bytes())
    table(corpus, "good.wav", "a.raw", "b.RAW", "c.raw")
    (corpus / "dev.tsv").unlink()
    (corpus / "dev").mkdir()
    (corpus / "dev" / "wav.scp").write_text(f"good {corpus}/good.wav\nk {corpus}/a.raw\n")
    (corpus / "dev" / "text").write_text(f"good {TEXT}\nk {TEXT}\n")
    (corpus / "test.tsv").unlink()
    recordings = [recording(corpus / name) for name in ("good.wav", "a.raw")]
    cuts = [MonoCut(r.id, 0.0, 1.0, 0, [segment(r.id)], recording=r) for r in recordings]
    CutSet.from_cuts(cuts).to_file(corpus / "cuts_test.jsonl.gz")
    found, reasons = prepare(corpus)
    assert set(found) == {"good", "c"} and equal(found["c"], noise)
    assert set(reasons) == {"a", "b", "k"} and all("without a header" in reason for reason in reasons.values())
    with pytest.raises(UserError, match=r"a\.raw: .*without a header"):
        open_checked(corpus / "a.raw", "first")
    with pytest.raises(BadAudio, match="without a header"):
        read_audio(corpus / "b.RAW")
    (good,) = noise_cuts(corpus)
    bad = with_recording(good, sources=[{"type": "file", "channels": [0], "source": f"{corpus}/a.raw"}])
    (corpus / "noise.jsonl.gz").write_bytes(packed(bad, good))
    capsys.readouterr()
    make_noise(corpus, corpus / "noise.jsonl.gz")
    (line,) = capsys.readouterr().err.splitlines()
    assert "bad" in line and "without a header" in line


def test_raw_audio_beside_its_text_is_one_line(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "train").mkdir()
    for number in range(3):
        (corpus / "train" / f"a{number}.raw").write_bytes(bytes(32000))
        (corpus / "train" / f"a{number}.txt").write_text(TEXT)
    with pytest.raises(SystemExit):
        prepare(corpus)
    (line,) = capsys.readouterr().err.splitlines()
    assert "train has audio without a header (a" in line and ".raw" in line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_in_place_of_a_file_is_no_file(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be read for ever."""
    write(corpus / "good.wav", 1)
    (corpus / "train").mkdir()
    for name in ("train.tsv", "train/cuts.000000.jsonl.gz", "train/recording.000000.tar", "noise.jsonl.gz", "a.wav"):
        os.mkfifo(corpus / name)
    with pytest.raises(SystemExit):
        prepare(corpus)
    assert "error: " in capsys.readouterr().err
    (corpus / "train.tsv").unlink()
    for path in (corpus / "train").iterdir():
        path.unlink()
    table(corpus, "good.wav", "a.wav")
    _, reasons = prepare(corpus)
    assert "missing" in reasons["a"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        make_noise(corpus, corpus / "noise.jsonl.gz")
    assert "noise.jsonl.gz" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["au", "snd", "vox", "gsm", "raw", "wav", "aiff"])
def test_a_name_makes_no_audio(tmp_path: Path, ending: str) -> None:
    """Libsndfile would take bytes without a header for 8 kHz mu-law or ADPCM, by the ending."""
    (tmp_path / f"a.{ending}").write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(BadAudio, match="without a header" if ending == "raw" else "recognised"):
        check_audio(tmp_path / f"a.{ending}")
    with pytest.raises((BadAudio, soundfile.LibsndfileError)):
        read_audio(tmp_path / f"a.{ending}")


def test_blocks_that_give_more_than_the_header_states_are_damage(tmp_path: Path) -> None:
    """Training reads what the header states. Damaged MP3 gives more in blocks, undamaged ones a few samples at most."""
    soundfile.write(tmp_path / "a.mp3", np.sin(np.arange(5 * RATE)), RATE, format="MP3")
    with soundfile.SoundFile(tmp_path / "a.mp3") as f:
        for more, missing in ((0, ""), (RATE // 100, ""), (RATE, f"{f.frames + RATE} of {f.frames} samples")):
            assert what_is_missing(tmp_path / "a.mp3", f, f.frames + more) == missing


def test_an_utterance_that_starts_at_the_end_is_outside(corpus: Path) -> None:
    write(corpus / "good.wav", 1)
    (corpus / "train.tsv").write_text(
        f"path\ttext\tid\toffset\tduration\ngood.wav\t{TEXT}\ta\t0\t1\ngood.wav\t{TEXT}\tb\t1.0\t0.05\n"
    )
    cuts, reasons = prepare(corpus)
    assert list(cuts) == ["a"] and list(reasons) == ["b"] and "outside" in reasons["b"]
