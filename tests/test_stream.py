"""local/stream.py: from a checkpoint and an audio file to its output."""

from __future__ import annotations

import builtins
import io
import json
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lhotse")
pytest.importorskip("soundfile")

from local import stream
from local.artifacts.checkpoint import load_averaged, provenance, save_file
from local.artifacts.decoding_graph import save_graph
from local.common.signals import Stopped
from local.common.visible import escaped_output
from local.config import load_config
from local.config.methods import METHODS
from local.data.features import make_extractor
from local.decoding.audio_pieces import open_checked
from local.decoding.batch_decoder import BatchDecoder
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from model.build import build_model
from model.search.graph import trivial_graph
from tests.digits import DEV, digits_folder, write_digits_checkpoint
from tests.reference import read_audio
from tests.toy_experiment import HEAD, SMALL, save_toy_lm, toy_tokenizer

import soundfile
from lhotse import Recording

RATE = 16000


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make averaged.pt of an untrained model that emits tokens, the files that methods need, and audio."""
    root = tmp_path_factory.mktemp("stream")
    tokenizer, cfg = toy_tokenizer(), load_config(None, [*SMALL, HEAD])
    (root / "lm").mkdir()
    save_toy_lm(cfg, tokenizer, root / "lm")
    save_graph(trivial_graph(tokenizer.vocab_size), tokenizer, root / "lang_bpe_500" / "graph" / "LG.npz")
    (root / "hotwords.txt").write_text("TWO ONE\nTHREE\t6\n", encoding="utf-8")
    torch.manual_seed(0)
    model = build_model(cfg, tokenizer.vocab_size)
    with torch.no_grad():
        for name, parameter in model.encoder.encoder_embed.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(std=0.2)
        model.joiner.encoder_proj.weight.normal_()
        model.joiner.output_linear.weight.normal_(std=0.5)
        model.joiner.output_linear.bias[:3] = torch.tensor([2.0, -9.0, -9.0])
    save_file({"model": model.state_dict(), **provenance(cfg, tokenizer)}, root / "averaged.pt")
    generator = np.random.default_rng(0)
    audio = 0.2 * generator.standard_normal(int(1.3 * RATE)) * np.sin(np.linspace(0, 9, int(1.3 * RATE))) ** 2
    soundfile.write(root / "one.wav", audio, RATE)
    soundfile.write(root / "low.wav", audio[: RATE // 2], RATE // 2)
    soundfile.write(root / "two.wav", np.stack([1e-5 * audio, audio], 1), RATE)  # the second channel is one.wav
    return root


def run(folder: Path, file: str, *arguments: str) -> None:
    stream.main([str(folder / file), "--checkpoint", str(folder / "averaged.pt"), *arguments])


@torch.no_grad()
def whole(folder: Path, file: str, method: str, *overrides: str) -> tuple[str, float]:
    """Return the text that local/decode.py finds in the whole file, and its seconds."""
    model, cfg, tokenizer = load_averaged(folder / "averaged.pt", list(overrides))
    recording = Recording.from_file(folder / file).resample(RATE)
    x = make_extractor(cfg.features).extract(torch.from_numpy(recording.load_audio()), RATE).unsqueeze(0)
    resources = Resources(model, tokenizer, torch.device("cpu"), folder, folder / "lang_bpe_500", clean=str)
    recogniser = Recogniser(method, resources, cfg.decode)
    decoder = BatchDecoder(model, {method: recogniser}, cfg.decode.tail_frames, torch.device("cpu"))
    return tokenizer.decode(decoder.run(x, torch.tensor([x.shape[1]]), [file])[method][0].tokens), recording.duration


@pytest.mark.parametrize(
    ("method", "file"), [(name, "one.wav") for name in METHODS if not METHODS[name].oracle] + [("greedy_search", "low.wav")]
)
def test_final_result(capsys: pytest.CaptureFixture[str], folder: Path, method: str, file: str) -> None:
    hotwords = f"decode.hotwords={folder / 'hotwords.txt'}"
    run(folder, file, hotwords, "--method", method, "--chunk", "0.12", "--data-dir", str(folder))
    *partials, final, cost = capsys.readouterr().out.splitlines()
    text, seconds = whole(folder, file, method, hotwords)
    assert text and final == f"0.00 - {seconds:.2f}: {text}"
    assert len(partials) > 2 and all(re.fullmatch(r"\d\.\d\d: .*", line) for line in partials)
    assert partials == sorted(set(partials), key=lambda line: float(line.split(":")[0]))
    assert re.fullmatch(rf"{seconds:.2f} s of audio recognised in \d+\.\d\d s: RTF \d\.\d{{4}}", cost)


def test_several_channels(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    texts = []
    for file, channel in (("one.wav", "first"), ("two.wav", "loudest"), ("two.wav", "first")):
        run(folder, file, "--method", "greedy_search", f"data.channel={channel}")
        said = capsys.readouterr()
        texts.append(said.out.splitlines()[:-1])
        assert ("2 channels" in said.err and f"data.channel={channel}" in said.err) == (file == "two.wav")
    assert texts[0] == texts[1] != texts[2]


def test_the_mean_of_the_channels(folder: Path) -> None:
    both = soundfile.read(folder / "two.wav")[0]
    audio = open_checked(folder / "two.wav", "mix")
    (samples,) = torch.cat(list(audio.pieces(RATE)), 1).numpy()
    assert np.abs(samples - both.mean(1)).max() < 1e-4
    assert torch.cat(list(audio.pieces(RATE // 2)), 1).shape == (1, len(both) // 2)


def test_real_time(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    began = stream.time.perf_counter()
    run(folder, "one.wav", "--real-time", "decode.beam=2")
    assert stream.time.perf_counter() - began > 1.3
    latency = re.fullmatch(
        r"the final result came (\d+) ms after the end of the audio", capsys.readouterr().out.splitlines()[-1]
    )
    assert latency and int(latency[1]) < 5000


def test_utterances(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    run(folder, "one.wav", "--endpoint-rules", "5", "5", "0.4", "--chunk", "0.08", "--method", "greedy_search")
    finals = [line for line in capsys.readouterr().out.splitlines() if " - " in line]
    assert [line.split(":")[0] for line in finals] == ["0.00 - 0.45", "0.45 - 0.90", "0.90 - 1.30"]
    run(folder, "one.wav", "--endpoint", "--method", "greedy_search")  # shorter than the longest utterance
    assert sum(" - " in line for line in capsys.readouterr().out.splitlines()) == 1


def test_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "10")
    run(folder, "one.wav", "--method", "greedy_search")
    line, *_ = capsys.readouterr().out.split("\n")
    *partials, final = line.split("\r\x1b[K")[1:]
    assert len(partials) > 1 and max(map(len, partials)) == 9
    assert final == "0.00 - 1.30: " + whole(folder, "one.wav", "greedy_search")[0]


def pcm(path: Path) -> bytes:
    return soundfile.read(path, dtype="int16")[0].tobytes()


class Pipe(io.BytesIO):
    """Standard input whose pieces have odd numbers of bytes; at the end of its data it raises, if it has something to raise."""

    def __init__(self, data: bytes, end: BaseException | None = None) -> None:
        super().__init__(data)
        self.end = end

    def read1(self, size: int | None = -1) -> bytes:
        if not (piece := super().read1(333)) and self.end is not None:
            raise self.end
        return piece


def live(monkeypatch: pytest.MonkeyPatch, data: bytes, end: BaseException | None = None) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(data, end), isatty=lambda: False))


def final(out: str) -> str:
    return next(line for line in out.splitlines() if " - " in line)


@pytest.mark.parametrize("rest", [b"", b"\x01"])
def test_raw_samples_on_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, rest: bytes
) -> None:
    run(folder, "one.wav", "--method", "greedy_search")
    expected = final(capsys.readouterr().out)
    live(monkeypatch, pcm(folder / "one.wav") + rest)
    stream.main(["-", "--checkpoint", str(folder / "averaged.pt"), "--method", "greedy_search", "--no-endpoint"])
    assert final(capsys.readouterr().out) == expected


def test_ctrl_c_ends_the_audio(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    live(monkeypatch, pcm(folder / "one.wav"), Stopped(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        stream.main(["-", "--checkpoint", str(folder / "averaged.pt"), "--method", "greedy_search", "--no-endpoint"])
    assert ended.value.code == 130 and whole(folder, "one.wav", "greedy_search")[0] in final(capsys.readouterr().out)


def test_several_files_and_json(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    run(folder, "one.wav", str(folder / "low.wav"), "--method", "greedy_search", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    finals = [line for line in lines if line["type"] == "final"]
    assert [line["source"] for line in finals] == [str(folder / "one.wav"), str(folder / "low.wav")] and len(lines) > 4
    for file, line in zip(("one.wav", "low.wav"), finals, strict=True):
        assert line["text"] == whole(folder, file, "greedy_search")[0] == " ".join(word["word"] for word in line["words"])
        times = [word["start"] for word in line["words"]]
        assert times == sorted(times) and line["begin"] <= times[0] and all(0 <= w["confidence"] <= 1 for w in line["words"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["-"], "ffmpeg"), (["-", "one.wav"], "-"), (["-", "--real-time"], "--real-time"), ([], "FILE")],
)
def test_inputs_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, arguments: list[str], named: str
) -> None:
    live(monkeypatch, (folder / "one.wav").read_bytes())  # a WAV, with its header
    with pytest.raises(SystemExit):
        stream.main([*arguments, "--checkpoint", str(folder / "averaged.pt")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and named in error


@pytest.mark.parametrize(("problem", "named"), [(ImportError("no"), "pip install"), (OSError("PortAudio"), "PortAudio")])
def test_no_microphone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, problem: Exception, named: str
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "sounddevice":
            raise problem
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SystemExit):
        stream.main(["--microphone", "--checkpoint", str(folder / "averaged.pt"), "--method", "greedy_search"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and named in error


def test_a_muted_microphone_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shared: Path, tmp_path: Path
) -> None:
    checkpoint = write_digits_checkpoint(shared, tmp_path)
    first, second = list(read_audio(digits_folder(shared, DEV)).values())[:2]
    zeros = np.zeros(5 * RATE, dtype=np.float32)
    texts = []
    for parts in ([zeros], [first, zeros, second], [first], [second]):
        live(monkeypatch, (np.concatenate(parts) * 32767).astype("<i2").tobytes())
        stream.main(["-", "--checkpoint", str(checkpoint), "--method", "greedy_search"])
        lines = [line for line in capsys.readouterr().out.splitlines() if " - " in line]
        texts.append(" ".join(line.split(": ")[1] for line in lines))
    assert texts[0] == "" and texts[1] == f"{texts[2]} {texts[3]}" and texts[2] and texts[3]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["none.wav"], "none.wav"),
        (["two.wav", "data.channel=both"], "data.channel"),
        (["averaged.pt"], "averaged.pt"),
        (["one.wav", "--chunk", "0.01"], "0.04"),
        (["one.wav", "--endpoint-rules", "1", "0", "9"], "silence"),
        (["one.wav", "--method", "fast_beam_search", "decode.fast_beam_backend=k2"], "k2"),
        (["one.wav", "--method", "fast_beam_search_nbest_oracle"], "fast_beam_search_nbest_oracle"),
        (["one.wav", "--method", "modified_beam_search_lm_rescore", "decode.lm=no.pt"], "no.pt"),
        (["one.wav", "--method", "fast_beam_search_LG"], "LG"),
        (["one.wav", "decode.bem=3"], "bem"),
    ],
)
def test_errors_in_one_line(capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], named: str) -> None:
    with pytest.raises(SystemExit):
        run(folder, *arguments)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and named in error and "\n" not in error


@pytest.mark.parametrize("terminal", [True, False])
def test_words_of_a_hostile_model_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch, terminal: bool) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    display = stream.Display()
    segment = stream.Segment("one\n0.00: forged\x1b[2J", None, 0.0, 1.0, None)  # type: ignore[arg-type]
    with escaped_output():
        display.partial(segment)
        display.final(segment)
    out = capsys.readouterr().out
    assert out.replace("\r\x1b[K", "").count("\x1b") == 0 and out.count(r"one\n0.00: forged\x1b[2J") == 2
    assert out.count("\r\x1b[K") == 2 * terminal
