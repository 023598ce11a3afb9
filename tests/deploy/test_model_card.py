"""README.md of an export: its head is what Hugging Face reads, its command lines work as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from local import export
from local.artifacts.checkpoint import load_file, provenance, save_file, weights_hash
from local.artifacts.decoded_sets import write_set
from local.common.errors import UserError
from local.config import load_config
from local.deploy.model_card import results_of
from local.deploy.sherpa import recogniser_options
from model.build import build_model
from tests.deploy.exported import run_export, write_digits
from tests.digits import references
from tests.toy_experiment import SMALL, make_experiment, toy_tokenizer

import pytest
import soundfile
import yaml

for package in ("onnx", "onnxruntime", "sherpa_onnx"):
    pytest.importorskip(package, reason="needs requirements-export.txt")
BIN = Path(sys.executable).parent
PROGRAM = shutil.which("sherpa-onnx", path=f"{BIN}:{os.environ['PATH']}")
installed = pytest.mark.skipif(PROGRAM is None, reason="needs sherpa-onnx-bin (requirements-export.txt)")
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
WEIGHTS = "0123456789abcdef"


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the recorded digits, with all that a model card can have."""
    root = write_digits(shared, tmp_path_factory.mktemp("card"))
    (root / "words.txt").write_text("SEVEN\t3\n")
    words = ["--no-gate", "--int8", "--hotwords", str(root / "words.txt"), "--language", "en", "--license", "cc-by-sa-4.0"]
    run_export(root, root / "out", *words)
    return root / "out"


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def head_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load(text_of(folder).split("---\n")[1])


def command_lines(folder: Path) -> list[str]:
    """Return the command lines of the card."""
    return [line for block in re.findall(r"```bash\n(.*?)```", text_of(folder), re.DOTALL) for line in block.splitlines()]


def run(words: list[str], folder: Path) -> str:
    """Run a program in `folder`, and return all that it says."""
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def result(output: str) -> dict[str, Any]:
    """Return the result of sherpa-onnx, the line of JSON among what it says."""
    return next(json.loads(line) for line in output.splitlines() if line.startswith("{"))


@installed
def test_the_command_lines_of_files(shared: Path, folder: Path) -> None:
    lines = [line for line in command_lines(folder) if line.startswith("sherpa-onnx ")]
    assert len(lines) == 4 and all(line.endswith(" test_wavs/0.wav") for line in lines)
    expected = next(iter(references(shared).values()))
    for line in lines:
        found = result(run(shlex.split(line), folder))
        assert found["text"].strip() == expected, line
        hotwords = "hotwords.txt" in line
        assert bool(found["context_scores"]) == hotwords
        if hotwords:  # each token of the phrase gets its share
            sevens = sum(found["context_scores"])
            assert sevens == pytest.approx(3.0 * expected.split().count("SEVEN"), abs=0.01)
    assert sum(".int8.onnx" in line for line in lines) == 1


def test_the_example_in_python(shared: Path, folder: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text_of(folder), re.DOTALL)
    said = run([sys.executable, "-c", code], folder)
    assert said.splitlines()[-1] == next(iter(references(shared).values()))


@pytest.fixture
def server(folder: Path) -> Iterator[Callable[[str], int]]:
    """Return a function that starts the server by its command line, on a free port, which it returns when it answers."""
    made: list[subprocess.Popen] = []

    def start(line: str) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        assert line.count("--port=6006") == 1
        words = shlex.split(line.replace("--port=6006", f"--port={port}"))
        out = subprocess.DEVNULL
        made.append(subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=out))
        give_up = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return port
            assert made[0].poll() is None and time.monotonic() < give_up
            time.sleep(0.1)

    yield start
    for process in made:
        process.kill()
        process.wait()


@installed
def test_the_server_and_its_client(shared: Path, folder: Path, server: Callable[[str], int]) -> None:
    before = sorted(folder.rglob("*"))
    (line,) = (line for line in command_lines(folder) if "websocket-server" in line)
    (client,) = (line for line in command_lines(folder) if "websocket-client" in line)
    port = server(line)
    said = run(shlex.split(client.replace("--server-port=6006", f"--server-port={port}")), folder)
    assert next(iter(references(shared).values())) in said
    assert sorted(folder.rglob("*")) == before  # the folder can be uploaded afterwards, too


@installed
def test_the_microphone_s_program_knows_its_options(folder: Path) -> None:
    """There is none here: every option must be one of the program's --help."""
    (line,) = (line for line in command_lines(folder) if "microphone" in line)
    program, *options = shlex.split(line)
    done = subprocess.run([program, "--help"], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    for option in options:
        assert re.search(rf"^ *{option.partition('=')[0]} ", done.stdout + done.stderr, re.MULTILINE), option


# ---- the text ----


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    make_experiment(root)
    return root


def test_the_head(folder: Path) -> None:
    head = head_of(folder)
    assert head["language"] == ["en"] and head["license"] == "cc-by-sa-4.0" and head["datasets"] == ["digits"]
    assert head["pipeline_tag"] == "automatic-speech-recognition" and head["library_name"] == "sherpa-onnx"
    assert "model-index" not in head and "No test set was decoded" in text_of(folder)
    assert "-m local.export --checkpoint" in text_of(folder)


def test_unknown_facts_are_not_invented(toy: Path, tmp_path: Path) -> None:
    run_export(toy, tmp_path / "data-of-mine", "--no-gate", "--wavs", "0")
    head = head_of(tmp_path / "data-of-mine")
    assert head["license"] == "other" and "language" not in head
    assert head["datasets"] == ["data"]  # one's own corpus has the name of its folder
    assert all(line.endswith(" audio.wav") for line in command_lines(tmp_path / "data-of-mine")[:2])
    assert "`audio.wav` stands for" in text_of(tmp_path / "data-of-mine")


def test_another_rate_and_long_chunks_are_in_the_command_lines(tmp_path: Path) -> None:
    """Features are not metadata of the graphs: the caller names them."""
    cfg, tokenizer = load_config(None, [*SMALL, "features.sampling_rate=8000", "features.num_mel_bins=40"]), toy_tokenizer()
    content = {"model": build_model(cfg, tokenizer.vocab_size).state_dict(), **provenance(cfg, tokenizer)}
    save_file(content, tmp_path / "averaged.pt")
    words = ["--checkpoint", str(tmp_path / "averaged.pt"), "--out", str(tmp_path / "out"), "--no-gate", "--chunk", "0.64"]
    export.main(words)
    lines = command_lines(tmp_path / "out")
    served = [line for line in lines if "client" not in line]
    assert len(served) == 4 and all("--sample-rate=8000 --feat-dim=40" in line for line in served)
    assert "--end-tail-padding=1" in lines[-2] and "--input-sample-rate=8000" in lines[-2]
    assert "--right-padding=1" in lines[0] and "--sample-rate=8000" in lines[-1]
    assert "sample_rate=8000" in text_of(tmp_path / "out") and "feature_dim=40" in text_of(tmp_path / "out")
    options = recogniser_options(tmp_path / "out", cfg.features, "greedy_search", False)
    assert (options["sample_rate"], options["feature_dim"]) == (8000, 40)
    if PROGRAM is not None:
        soundfile.write(tmp_path / "out" / "audio.wav", [0.0] * 8000, 8000)
        assert "text" in result(run(shlex.split(lines[0]), tmp_path / "out"))


def decoded(exp: Path, weights: str) -> None:
    """Write results of two methods as local/decode.py and local/wer.py do."""
    content: dict[str, Any] = {"test": {}}
    for method in ("greedy_search", "fast_beam_search"):
        made_by = {"label": "l", "average": "a", "weights": weights, "commit": "c", "date": "2026-01-01", "options": {}}
        write_set(exp / "decode" / method / "test.jsonl", [], {"made_by": made_by})
        content["test"][method] = {"wer": 4.25, "ci95": [3.5, 5.0], "words": 800}
    (exp / "wer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("content", ['{"test": ', "[]", '{"test": {"greedy_search": {}}}', '{"test": {"greedy_search": 1}}'])
def test_damaged_results_are_named(tmp_path: Path, content: str) -> None:
    decoded(tmp_path, WEIGHTS)
    (tmp_path / "wer.json").write_text(content)
    with pytest.raises(UserError, match=r"wer\.json"):
        results_of(tmp_path, WEIGHTS, False)


def test_results_are_those_of_the_same_weights(toy: Path, tmp_path: Path) -> None:
    weights = weights_hash(load_file(toy / "averaged.pt")["model"])
    for name, known in (("exp", weights), ("other", WEIGHTS)):
        (tmp_path / name).mkdir()
        shutil.copy(toy / "averaged.pt", tmp_path / name)
        decoded(tmp_path / name, known)
    assert results_of(tmp_path / "other", weights, False) == []
    (row,) = results_of(tmp_path / "exp", weights, False)  # the client has no fast beam search
    assert row[:2] == ("test", "greedy_search") and row[2]["wer"] == 4.25
    assert results_of(tmp_path / "nothing", weights, False) == []
    export.main(["--checkpoint", str(tmp_path / "exp" / "averaged.pt"), "--out", str(tmp_path / "out"), "--no-gate"])
    (entry,) = head_of(tmp_path / "out")["model-index"][0]["results"]
    assert entry["metrics"][0]["value"] == 4.25 and entry["metrics"][0]["args"]["ci95"] == [3.5, 5.0]
    assert entry["dataset"]["split"] == "test" and head_of(tmp_path / "out")["metrics"] == ["wer"]
    assert re.search(r"test \| greedy_search \| 4.25 \| 3.50 to 5.00 \| 800", text_of(tmp_path / "out"))
