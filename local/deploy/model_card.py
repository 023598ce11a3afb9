"""README.md of an exported folder: a model card as Hugging Face reads it, with command lines for sherpa-onnx.

The command lines work with the folder as the current one. Tests run them as they stand.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.artifacts.decoded_sets import find_sets
from local.common.errors import UserError
from local.common.text_files import read_lines
from local.common.visible import markdown, visible
from local.deploy.client import BEAM, FUSION, METHODS_OF_CLIENT
from local.deploy.dev_audio import Utterance
from local.deploy.gate import TAIL
from local.scoring.align import RATES
from local.scoring.table import marked_rate, unit_in

import soundfile
import yaml

WAVS = "test_wavs"
APPENDED = 0.8  # seconds of zeros that the client's programs put after the audio
Rows = list[tuple[str, str, dict[str, Any]]]  # set, method, entry of wer.json


@dataclass(frozen=True)
class Card:
    """What a model card tells: `record` is that of export.json, `wavs` are the examples, beam and lm_scale the settings."""

    record: dict[str, Any]
    results: Rows
    name: str
    corpus: str
    language: str | None
    license: str
    command: str
    wavs: list[Utterance]
    beam: int
    lm_scale: float


def write_wavs(utterances: list[Utterance], sampling_rate: int, folder: Path) -> None:
    """Write examples as test_wavs/0.wav, 1.wav, ... with 16 bits, and name them on the screen: they get published."""
    for number, utterance in enumerate(utterances):
        path = folder / WAVS / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, utterance.samples, sampling_rate, subtype="PCM_16")
        print(f"{WAVS}/{path.name}: utterance {utterance.id} of the dev parts, as an example; --wavs 0 leaves it out")


def results_of(exp_dir: Path, weights: str, lm: bool) -> Rows:
    """Return the rows of EXP/wer.json of methods that a client has, if they were decoded with the weights of this hash.

    Raises `UserError` if the file is damaged.
    """
    path = exp_dir / "wer.json"
    sets = {(found.name, found.method): found for found in find_sets(exp_dir)[0]}
    if not path.is_file() or not sets:
        return []
    methods = (*METHODS_OF_CLIENT, *([FUSION] if lm else []))
    try:
        content = json.loads("\n".join(read_lines(path)))
        rows = [
            (name, method, content[name][method])
            for (name, method), found in sorted(sets.items())
            if method in methods and found.made_by.get("weights") == weights and method in content.get(name, {})
        ]
        rows = [found for found in rows if found[-1]["wer"] is not None]
        for *_, row in rows:
            for value in (row["wer"], row["words"], *(row["ci95"] or ())):
                float(value)
        return rows
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: damaged; local/wer.py (stage score of run.sh) makes it again") from None


def model_card(card: Card, folder: Path) -> str:
    """Return the text of README.md for the files in `folder`."""
    title = f"# {markdown(card.name)}\n\nA streaming LSTM transducer for speech recognition, in the format of "
    title += "[sherpa-onnx](https://github.com/k2-fsa/sherpa-onnx).\n"
    sections = [_head(card), title, _files(card, folder), _commands(card, folder), _python(card)]
    return "\n".join([*sections, _results(card), _checks(card), f"## Made by\n\n```\n{visible(card.command)}\n```\n"])


def _head(card: Card) -> str:
    """Return the YAML head. What is unknown is left out; a license that is unknown is `other`."""
    head: dict[str, Any] = {} if card.language is None else {"language": [card.language]}
    head["license"] = card.license
    head |= {"library_name": "sherpa-onnx", "pipeline_tag": "automatic-speech-recognition"}
    head["tags"] = ["automatic-speech-recognition", "sherpa-onnx", "streaming", "transducer", "lstm"]
    if card.corpus:
        head["datasets"] = [card.corpus]
    if card.results:
        head["metrics"] = sorted({RATES[unit_in(row)].lower() for *_, row in card.results})
        head["model-index"] = [{"name": card.name, "results": [_indexed(card, *row) for row in card.results]}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _indexed(card: Card, name: str, method: str, row: dict[str, Any]) -> dict[str, Any]:
    task = {"type": "automatic-speech-recognition", "name": "Automatic Speech Recognition"}
    corpus = card.corpus or name
    rate = RATES[unit_in(row)]
    metric = {
        "type": rate.lower(),
        "name": f"{rate}, {method}",
        "value": row["wer"],
        "args": {"method": method, "ci95": row["ci95"]},
    }
    return {"task": task, "dataset": {"type": corpus, "name": corpus, "split": name}, "metrics": [metric]}


def _files(card: Card, folder: Path) -> str:
    """Return the section of the files and the features."""
    features, chunk = card.record["features"], card.record["chunk"]
    about = {
        "encoder": f"{chunk['frames_in']} frames of features to {chunk['frames_out']} of output, {chunk['seconds']:g} s a call",
        "decoder": "the last tokens",
        "joiner": "encoder and decoder output to logits",
    }
    lines = [f"| `{name}.onnx` | {text} |" for name, text in about.items()]
    if (folder / "encoder.int8.onnx").exists():
        lines.append("| `*.int8.onnx` | the same with 8-bit weights: smaller, and faster on most processors |")
    lines.append("| `tokens.txt`, `bpe.vocab` | the tokens; `bpe.vocab` splits hotwords into them |")
    for name, text in (("lm.onnx", "a language model for shallow fusion"), ("hotwords.txt", "phrases to prefer")):
        lines += [f"| `{name}` | {text} |"] if (folder / name).exists() else []
    lines += [f"| `{WAVS}/{number}.wav` | {markdown(u.id)}: {markdown(u.ref)} |" for number, u in enumerate(card.wavs)]
    lines.append("| `export.json` | what this was made from, and how it was checked |")
    table = "\n".join(["| file | |", "|---|---|", *lines])
    sound = f"Audio: {features['sampling_rate']} Hz, one channel. Features: {features['num_mel_bins']} channels, "
    sound += f"{features['kind']}.\n"
    return f"## Files\n\n{table}\n\n{sound}"


def tail_seconds(card: Card) -> float:
    """Return the seconds of zeros after an audio with which whole chunks cover it and its last tokens."""
    return math.ceil((card.record["chunk"]["frames_in"] + 1 + TAIL) / 10) / 10


def client_options(card: Card, int8: bool = False) -> str:
    """Return the options that all programs of sherpa-onnx need for this model."""
    ending, features = ".int8.onnx" if int8 else ".onnx", card.record["features"]
    options = ["--model-type=lstm", "--tokens=tokens.txt"]
    options += [f"--{name}={name}{ending}" for name in ("encoder", "decoder", "joiner")]
    if features["sampling_rate"] != 16000:
        options.append(f"--sample-rate={features['sampling_rate']}")
    if features["num_mel_bins"] != 80:
        options.append(f"--feat-dim={features['num_mel_bins']}")
    return " ".join(options)


def example(card: Card) -> str:
    """Return the WAV file of the command lines."""
    return f"{WAVS}/0.wav" if card.wavs else "audio.wav"


def _commands(card: Card, folder: Path) -> str:
    """Return the section of the command lines."""
    int8, rate = (folder / "encoder.int8.onnx").exists(), card.record["features"]["sampling_rate"]
    options, small, tail = client_options(card), client_options(card, int8), tail_seconds(card)
    longer = tail > APPENDED
    file = f"sherpa-onnx {options} --left-padding=0{f' --right-padding={tail:g}' if longer else ''}"
    beam = f"--decoding-method={BEAM} --max-active-paths={card.beam}"
    blocks = [("A file", [f"{file} {example(card)}"])]
    if int8:
        blocks.append(("A file, with 8-bit weights", [f"{file.replace(options, small)} {example(card)}"]))
    more, title = [], "A file, by beam search"
    if (folder / "lm.onnx").exists():
        more, title = [f"--lm=lm.onnx --lm-scale={card.lm_scale:g}"], f"{title} with the language model"
    blocks.append((title, [" ".join([file, beam, *more, example(card)])]))
    if (folder / "hotwords.txt").exists():
        words = "--modeling-unit=bpe --bpe-vocab=bpe.vocab --hotwords-file=hotwords.txt"
        blocks.append(("A file, by beam search with hotwords", [f"{file} {beam} {words} {example(card)}"]))
    blocks.append(("The microphone", [f"sherpa-onnx-microphone {small}"]))
    server = f"sherpa-onnx-online-websocket-server --port=6006 {options} --log-file=/dev/null"
    server += f" --end-tail-padding={tail:g}" if longer else ""
    rates = f" --sample-rate={rate}" if rate != 16000 else ""
    blocks.append(("A websocket server", [server + rates.replace("--", "--input-")]))
    client = f"sherpa-onnx-online-websocket-client --server-port=6006{rates} {example(card)}"
    blocks.append(("Its client", [client]))
    text = "\n".join(f"{title}:\n\n```bash\n" + "\n".join(lines) + "\n```\n" for title, lines in blocks)
    intro = "With this folder as the current one. `pip install sherpa-onnx sherpa-onnx-bin` installs the programs.\n"
    if not card.wavs:
        intro += f"`{example(card)}` stands for a WAV file of yours: one channel, 16 bits, {rate} Hz.\n"
    return f"## Use\n\n{intro}\n{text}"


def _python(card: Card) -> str:
    """Return the example in Python."""
    features, tail = card.record["features"], max(tail_seconds(card), APPENDED)
    return f'''In Python:

```python
import wave

import numpy as np
import sherpa_onnx

recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
    tokens="tokens.txt",
    encoder="encoder.onnx",
    decoder="decoder.onnx",
    joiner="joiner.onnx",
    model_type="lstm",
    sample_rate={features["sampling_rate"]},
    feature_dim={features["num_mel_bins"]},
    decoding_method="greedy_search",  # or {BEAM}
)
with wave.open("{example(card)}") as file:
    rate = file.getframerate()
    samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
stream = recognizer.create_stream()
stream.accept_waveform(rate, samples)
stream.accept_waveform(rate, np.zeros(int({tail:g} * rate), np.float32))  # the last words come in the silence after them
stream.input_finished()
while recognizer.is_ready(stream):
    recognizer.decode_stream(stream)
print(recognizer.get_result(stream).strip())
```
'''


def _results(card: Card) -> str:
    """Return the section of the WER table; it says so if there is none."""
    if not card.results:
        return "## Results\n\nNo test set was decoded with these weights where this was exported.\n"
    lines = ["| set | method | WER (%) | 95 % interval | words |", "|---|---|---|---|---|"]
    for name, method, row in card.results:
        interval = " to ".join(f"{bound:.2f}" for bound in row["ci95"] or [])
        lines.append(
            f"| {markdown(name)} | {markdown(method)} | {marked_rate(row['wer'], unit_in(row))} | {interval} | {row['words']} |"
        )
    corpus = f" Corpus: {markdown(card.corpus)}." if card.corpus else ""
    return f"## Results\n\nAs the recipe decodes the test sets.{corpus}\n\n" + "\n".join(lines) + "\n"


def _checks(card: Card) -> str:
    """Return the section of what was checked, and of what the client cannot do."""
    gate, folded = card.record["gate"], card.record["folded"]
    text = "This export was not compared with the recipe (--no-gate).\n"
    if gate["run"]:
        lines = [f"sherpa-onnx {gate['sherpa-onnx']} decoded {gate['utterances']} dev utterances, as the recipe did:", ""]
        lines += ["| weights | method | utterances that differ | WER (%) |", "|---|---|---|---|"]
        for weights in ("float32", "int8"):
            for method, found in gate.get(weights, {}).items():
                wer = "" if found["wer"] is None else f"{found['wer']:.2f}"
                lines.append(f"| {weights} | {markdown(method)} | {found['different']} | {wer} |")
        text = "\n".join(lines) + "\n"
        if "int8" in gate:
            text += "\nThe 8-bit graphs are compared with float32 here, one stream at a time: in a server, which decodes "
            text += "several streams at once, the result of an 8-bit graph depends on the other streams.\n"
    floor = folded["feature_floor"]
    floored = "a floor under the features" if floor["folded"] else f"no floor under the features ({floor['why']})"
    text += f"\nFolded into the graphs: temperature {folded['temperature']:g}, blank penalty {folded['blank_penalty']:g}, "
    text += f"{floored}.\n"
    if card.record["left_out"]:
        text += "\nOf the recipe's configuration, the client cannot use:\n\n"
        text += "".join(f"- {markdown(line)}\n" for line in card.record["left_out"])
    return f"## Checks\n\n{text}"
