"""local/recognise.py: recordings of any length, their formats, and the digits that people spoke."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lhotse")
pytest.importorskip("soundfile")

from local import recognise
from local.artifacts.checkpoint import load_averaged, provenance, save_file
from local.config import load_config
from local.scoring.align import word_errors
from tests.digits import DEV, digits_folder, references, write_digits_checkpoint
from tests.digits import recognise as recognise_utterances
from tests.reference import RATE, read_audio
from tests.toy_experiment import SMALL, toy_tokenizer, toy_weights

import soundfile

pytestmark = pytest.mark.usefixtures("one_thread")
SPOKEN = 30  # utterances, about 1.2 minutes


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recognise")
    tokenizer, cfg = toy_tokenizer(), load_config(None, SMALL)
    save_file({"model": toy_weights(cfg, tokenizer, 0), **provenance(cfg, tokenizer)}, root / "averaged.pt")
    audio = 0.2 * np.random.default_rng(0).standard_normal((3 * RATE, 2)) * np.sin(np.linspace(0, 30, 3 * RATE))[:, None] ** 2
    soundfile.write(root / "one.wav", audio[:, 0], RATE)
    soundfile.write(root / "two.wav", audio, RATE)
    for name in ("a b.wav", "a_b.wav"):  # equal in CTM, which has no blanks in names
        soundfile.write(root / name, audio[:, 0], RATE)
    soundfile.write(root / "short.wav", audio[:100, 0], RATE)
    return root


def run(checkpoint: Path, *arguments: object) -> None:
    recognise.main([*map(str, arguments), "--checkpoint", str(checkpoint), "--method", "greedy_search", "decode.num_threads=1"])


def test_a_file_of_each_recording(toy: Path, tmp_path: Path) -> None:
    run(
        toy / "averaged.pt",
        toy / "one.wav",
        toy / "two.wav",
        toy / "short.wav",
        "--output",
        tmp_path,
        "--format",
        "json",
        "data.channel=both",
    )
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(found) == {"one.json", "two-0.json", "two-1.json", "short.json"}
    assert [found[f"two-{channel}.json"]["channel"] for channel in (0, 1)] == [1, 2]
    assert found["one.json"]["text"] == found["two-0.json"]["text"] != found["two-1.json"]["text"]
    assert found["short.json"]["segments"] == [] and found["one.json"]["duration"] == 3.0
    words = [word for segment in found["one.json"]["segments"] for word in segment["words"]]
    assert " ".join(word["word"] for word in words) == found["one.json"]["text"] != ""
    assert all(0 <= word["start"] < word["end"] <= 3.0 and 0 <= word["confidence"] <= 1 for word in words)


def test_on_standard_output(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(toy / "averaged.pt", toy / "one.wav")
    alone = capsys.readouterr().out
    run(toy / "averaged.pt", toy / "short.wav", toy / "one.wav")
    assert capsys.readouterr().out == "".join(f"one: {line}\n" for line in alone.splitlines()) != ""


def test_the_ending_of_the_output_chooses_the_format(toy: Path, tmp_path: Path) -> None:
    run(toy / "averaged.pt", toy / "one.wav", toy / "two.wav", "--output", tmp_path / "all.ctm")
    lines = (tmp_path / "all.ctm").read_text().splitlines()
    assert {line.split()[0] for line in lines} == {"one", "two"} and all(
        re.fullmatch(r"\w+ 1 \d+\.\d\d \d+\.\d\d \S+ [01]\.\d{4}", line) for line in lines
    )
    run(toy / "averaged.pt", toy / "one.wav", "--output", tmp_path / "one.srt")
    assert (tmp_path / "one.srt").read_text().startswith("1\n00:00:0")


def test_a_stream_is_cut_by_endpoints(toy: Path, tmp_path: Path) -> None:
    run(toy / "averaged.pt", toy / "one.wav", "--output", tmp_path / "x.json", "--endpoint-rules", "9", "9", "1.0")
    found = json.loads((tmp_path / "x.json").read_text())
    assert len(found["segments"]) > 1 and found["segments"][1]["begin"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "FILE"),
        (["none.wav"], "none.wav"),
        (["averaged.pt"], "averaged.pt"),
        (["one.wav", "one.wav"], "one"),
        (["a b.wav", "a_b.wav", "--format", "ctm"], "a_b"),
        (["one.wav", "two.wav", "--format", "srt"], "--output"),
        (["one.wav", "--output", "x.srt", "--format", "vtt"], "vtt"),
        (["one.wav", "--output", "one.wav"], "one.wav"),
        (["one.wav", "--window", "0"], "window"),
        (["one.wav", "--overlap", "11"], "10"),
        (["one.wav", "--endpoint-rules", "1", "0", "9"], "silence"),
        (["one.wav", "--method", "fast_beam_search_nbest_oracle"], "fast_beam_search_nbest_oracle"),
        (["one.wav", "decode.bem=3"], "bem"),
    ],
)
def test_errors_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, toy: Path, arguments: list[str], named: str
) -> None:
    monkeypatch.chdir(toy)
    with pytest.raises(SystemExit):
        recognise.main(["--checkpoint", "averaged.pt", *arguments])
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and named in error and "\n" not in error


# ---- human speech ----


@pytest.fixture(scope="module")
def spoken(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray], list[str], int]:
    """Return a checkpoint, utterances, their texts, and the errors of the utterances decoded alone."""
    checkpoint = write_digits_checkpoint(shared, tmp_path_factory.mktemp("digits"))
    texts = references(shared)
    chosen = dict(list(read_audio(digits_folder(shared, DEV)).items())[:: 180 // SPOKEN][:SPOKEN])
    found = recognise_utterances(load_averaged(checkpoint), list(chosen.values()))
    errors = sum(word_errors(texts[name], text) for name, text in zip(chosen, found, strict=True))
    return checkpoint, list(chosen.values()), [texts[name] for name in chosen], errors


def with_pauses(utterances: list[np.ndarray], kind: str) -> np.ndarray:
    """Return the utterances one after another, with pauses of 0.3 to 2 s of noise or of the utterance's own quiet."""
    generator, parts = np.random.default_rng(0), []
    for samples in utterances:
        length = int(generator.uniform(0.3, 2.0) * RATE)
        noise = 10 ** (-55 / 20) * generator.standard_normal(length)
        place = int(np.convolve(samples**2, np.full(RATE // 10, 1.0), "valid").argmin())
        quiet = np.resize(np.concatenate([(x := samples[place : place + RATE // 10]), x[::-1]]), length)
        parts += [samples, {"none": noise[:0], "noise": noise, "quiet": quiet}[kind]]
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("none", []),
        ("noise", []),
        ("quiet", []),
        ("none", ["--pause", "10", "--window", "10"]),
    ],
)
def test_a_long_recording_equals_its_utterances(
    spoken: tuple[Path, list[np.ndarray], list[str], int], tmp_path: Path, kind: str, options: list[str]
) -> None:
    checkpoint, utterances, texts, alone = spoken
    audio = with_pauses(utterances, kind)
    soundfile.write(tmp_path / "long.flac", audio, RATE)
    run(checkpoint, tmp_path / "long.flac", "--output", tmp_path / "long.json", *options)
    found = json.loads((tmp_path / "long.json").read_text())
    errors, words = word_errors(" ".join(texts), found["text"]), len(" ".join(texts).split())
    times = [word["start"] for segment in found["segments"] for word in segment["words"]]
    assert times == sorted(times) and times[-1] < len(audio) / RATE
    assert errors <= alone + 0.02 * words  # over 10 minutes it is 0.01; these are few words
