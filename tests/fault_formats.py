"""Random damages within a format: values in JSON, YAML, checkpoints and arrays; audio of other kinds; other tokens.

DAMAGES has all damages by the kind of file.
"""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

from local.data.tokenizer import train_tokenizer
from tests.faults import BYTES, TEXT, Damage

import numpy as np
import sentencepiece as spm
import soundfile
import torch
import yaml

Place = tuple[Any, Any]  # a container and the key or index in it
ODD: list[Any] = [
    *(None, True, 0, -1, -0.5, 1.5, 7, 10**9, 10**25, 1e30, -1e30, float("nan"), float("inf"), float("-inf")),
    *("", " ", "many", "a\nb\tc", "\u0000", "Ü\u200b字", "x" * 50_000, "../../elsewhere", "${nothing}"),
    *([], {}, [1, "a"], {"a": {"b": 1}}),
]


# Trees of values: JSON, YAML, checkpoints


def change(tree: Any, rng: random.Random) -> str:
    """Change one value within `tree`, with the same probability at each depth; return its description."""
    by_depth: list[list[Place]] = []
    level = [tree]
    while level:
        here = [(t, k) for t in level for k in (t if isinstance(t, dict) else range(len(t)))]
        if here:
            by_depth.append(here)
        level = [t[k] for t, k in here if isinstance(t[k], dict | list)]
    container, key = rng.choice(rng.choice(by_depth))
    value = container[key]
    how = rng.choice(["odd", "odd", "odd", "gone", "more", "tensor" if isinstance(value, torch.Tensor) else "odd"])
    if how == "gone":
        del container[key]
        return f"{key!r} removed"
    if how == "more" and isinstance(container, dict):
        container["surplus"] = value
        return f"'surplus' beside {key!r}"
    container[key] = odd = odd_tensor(value, rng) if how == "tensor" else rng.choice(ODD)
    shown = f"{odd.dtype} {tuple(odd.shape)}" if isinstance(odd, torch.Tensor) else repr(odd)[:30]
    return f"{key!r} is {shown}"


def odd_tensor(value: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Return a tensor of another shape or type, or with other values."""
    if rng.random() < 0.5:
        return rng.choice([value.reshape(-1)[:0], value.unsqueeze(0), value.to(torch.int32), value.to(torch.bool)])
    other = value.clone()
    if other.numel() and other.is_floating_point():
        other.view(-1)[rng.randrange(other.numel())] = rng.choice([float("nan"), float("inf"), 1e30])
    return other


def record_changed(path: Path, rng: random.Random) -> str:
    """Change one line of a JSONL, plain or gzipped."""
    packed = path.suffix == ".gz"
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    lines = data.decode("utf-8").splitlines()
    row = rng.randrange(len(lines))
    record = json.loads(lines[row])
    how = rng.choice(["change"] * 6 + ["twice", "other", "gone", "broken", "shuffled"])
    if how == "change":
        how = change(record, rng)
        lines[row] = json.dumps(record)
    elif how == "twice":
        lines.append(lines[row])
    elif how == "other":
        lines[row] = how = rng.choice(["[]", "5", "null", "{}", '"text"', '{"type": "MonoCut"}', '{"id": "a"}'])
    elif how == "gone":
        del lines[row]
    elif how == "broken":
        lines[row] = lines[row][: rng.randrange(len(lines[row]))]
    else:
        rng.shuffle(lines)
    data = "".join(line + "\n" for line in lines).encode("utf-8")
    path.write_bytes(gzip.compress(data) if packed else data)
    return f"line {row + 1}: {how}"


def json_changed(path: Path, rng: random.Random) -> str:
    tree = json.loads(path.read_text(encoding="utf-8"))
    how = change(tree, rng)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return how


def yaml_changed(path: Path, rng: random.Random) -> str:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    how = change(tree, rng)
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return how


def yaml_broken(path: Path, rng: random.Random) -> str:
    more = rng.choice(["a: [", "\tb: 1", "- c", "d: 'e", "f: *g", "%h", "? [i, {j: }", "!!python/object:os.k l", "l: m: n"])
    path.write_text(path.read_text(encoding="utf-8") + more + "\n", encoding="utf-8")
    return f"ends with {more!r}"


def checkpoint_changed(path: Path, rng: random.Random) -> str:
    tree = torch.load(path, weights_only=True)
    how = change(tree, rng)
    torch.save(tree, path)
    return how


def half_a_character(path: Path, rng: random.Random) -> str:
    """Append half of a character to one value, a text if there is one, of a JSON, JSONL, YAML or checkpoint."""
    if is_lines := ".jsonl" in path.name:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        tree: Any = [json.loads(line) for line in data.decode("utf-8").splitlines()]
    elif path.suffix == ".pt":
        tree = torch.load(path, weights_only=True)
    else:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    places, others, left = [], [], [tree]
    while left:
        here = left.pop()
        for key in here if isinstance(here, dict) else range(len(here)):
            (places if isinstance(here[key], str) else others).append((here, key))
            if isinstance(here[key], dict | list):
                left.append(here[key])
    container, key = rng.choice(places or others)
    container[key] = f"{container[key]}\ud800"
    if path.suffix == ".pt":
        torch.save(tree, path)
    elif is_lines:
        text = "".join(json.dumps(row) + "\n" for row in tree).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    else:
        path.write_text(json.dumps(tree) if path.suffix == ".json" else yaml.safe_dump(tree), encoding="utf-8")
    return f"{container[key]!r:.80} at {key!r}"


# Audio


def recorded_otherwise(path: Path, rng: random.Random) -> str:
    """Change the sampling rate, channels, bits, length or format, but not the file's name."""
    audio, rate = soundfile.read(path)
    how = rng.choice(["rate", "stereo", "bits", "nan", "short", "empty", "loud", "format", "many channels"])
    subtype, kind = "PCM_16", "FLAC" if path.suffix == ".flac" else "WAV"
    if how == "rate":
        rate = rng.choice([1, 100, 8000, 11025, 44100, 96000, 655350])
    elif how in ("stereo", "many channels"):
        audio = np.stack([audio] * (2 if how == "stereo" else 8), axis=1)
    elif how == "bits":
        kinds = [("FLAC", "PCM_S8"), ("FLAC", "PCM_24"), ("WAV", "PCM_U8"), ("WAV", "DOUBLE"), ("WAV", "ULAW")]
        kind, subtype = rng.choice(kinds)
    elif how == "nan":
        kind, subtype = "WAV", "FLOAT"
        audio[rng.randrange(len(audio))] = rng.choice([np.nan, np.inf, 1e30])
    elif how in ("short", "empty"):
        audio = audio[: rng.choice([1, 80, 400]) if how == "short" else 0]
    elif how == "loud":
        audio = np.sign(audio)
    else:
        kind, subtype = rng.choice([("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("RAW", "PCM_16")])
    soundfile.write(path, audio, rate, subtype=subtype, format=kind)
    return f"{how}: {kind} {subtype}, {rate} Hz, {audio.shape}"


# Models


def other_tokens(path: Path, rng: random.Random) -> str:
    """Put in its place a BPE model of another vocabulary, or one with other options than ours."""
    texts = ["SIX SEVEN", "EIGHT NINE ZERO", "Ä Ö Ü ß"]
    if rng.random() < 0.5:
        path.write_bytes(train_tokenizer(texts, rng.choice([20, 25])).model)
        return "another vocabulary"
    strangers: list[dict] = [{}, {"bos_id": -1}, {"model_type": "char"}, {"unk_id": 2, "pad_id": 0, "bos_id": 1, "eos_id": 3}]
    model, options = io.BytesIO(), rng.choice(strangers)
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=25, hard_vocab_limit=False, minloglevel=2, **options
    )
    path.write_bytes(model.getvalue())
    return f"a sentencepiece model with {options}"


def arrays_changed(path: Path, rng: random.Random) -> str:
    """Change one array of an .npz."""
    arrays = dict(np.load(path))
    name = rng.choice(sorted(arrays))
    value = arrays[name]
    how = rng.choice(["gone", "short", "text", "huge", "negative", "nan", "flat"])
    if how == "gone":
        del arrays[name]
    else:
        number = value.dtype.kind != "U"
        arrays[name] = {
            "short": value.reshape(-1)[: value.size // 2],
            "text": np.array(["a"] * 3),
            "flat": value.reshape(-1, 1),
            "huge": np.full_like(value, 2**30) if number else value[..., None],
            "negative": -value - 1 if number else np.array(0),
            "nan": np.full(value.shape, np.nan),
        }[how]
    np.savez_compressed(path, **arrays)
    return f"{name}: {how}"


DAMAGES: dict[str, list[Damage]] = {
    "bytes": BYTES,
    "text": TEXT,
    "jsonl": [*BYTES, *([record_changed] * 16)],
    "json": [*TEXT, *([json_changed] * 10)],
    "yaml": [*TEXT, *([yaml_changed] * 16), *([yaml_broken] * 4)],
    "audio": [*BYTES, *([recorded_otherwise] * 12)],
    "checkpoint": [*BYTES, *([checkpoint_changed] * 16)],
    "bpe": [*BYTES, *([other_tokens] * 8)],
    "npz": [*BYTES, *([arrays_changed] * 10)],
}
