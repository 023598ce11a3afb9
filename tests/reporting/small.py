"""A small experiment with prepared data, written by hand: for tests of the report's sections."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local.artifacts.decoded_sets import DecodedSet
from local.common.html_page import Page
from local.data.tokenizer import train_tokenizer
from local.reporting.experiment import Experiment
from local.scoring.align import Score, Unit, Utterance, score
from local.scoring.speech import read_speech

HOSTILE = "<script>alert(1)</script> \"' & \u202e"
MADE_BY = {"label": "epoch-2-avg-1", "average": "epoch 2", "commit": "abc", "date": "2026-01-02T03:04:05", "options": {}}


def row(name: str, ref: str, hyp: str, confidences: Sequence[Any], ends: Sequence[float] = ()) -> dict[str, Any]:
    """Return a line of a decoded set, whose words have these confidences, and ends in seconds."""
    words = [{"word": w, "confidence": c} for w, c in zip(hyp.split(), confidences, strict=False)]
    for word, end in zip(words, ends, strict=False):
        word |= {"start": end, "end": end}
    return {"id": name, "ref": ref, "hyp": hyp, "words": words}


def experiment(
    exp_dir: Path,
    methods: Mapping[str, Sequence[dict[str, Any]]],
    data_dir: Path | None = None,
    config: dict[str, Any] | None = None,
    stats: dict[str, Any] | None = None,
    results: dict[str, dict[str, Any]] | None = None,
    unit: Unit = "word",
) -> Experiment:
    """Return an experiment with one decoded set, "test"; results: its entries in wer.json; unit: of its error rates."""

    def scored(rows: Sequence[dict[str, Any]]) -> Score:
        ends = [tuple(w["end"] for w in r["words"] if "end" in w) for r in rows]
        return score([Utterance(r["id"], r["ref"], r["hyp"], e) for r, e in zip(rows, ends, strict=True)], unit)

    scores = {method: scored(rows) for method, rows in methods.items()}
    sets = [DecodedSet(exp_dir / "decode" / method / "test.jsonl", stats or {}) for method in methods]
    rows = {method: {r["id"]: r for r in found} for method, found in methods.items()}
    speech = {"test": read_speech(data_dir, "test")} if data_dir is not None else {}
    return Experiment(exp_dir, data_dir, sets, {"test": results or {}}, {"test": scores}, {"test": rows}, speech, config or {})


def cut(
    name: str, text: str, seconds: float, audio: Path | None = None, words: Sequence[tuple[str, float, float]] = ()
) -> dict:
    """Return a cut as prepare.sh writes it; words: with start and duration in seconds."""
    source = {"type": "memory"} if audio is None else {"type": "file", "channels": [0], "source": str(audio)}
    supervision = {"id": name, "text": text, "speaker": "s1", "alignment": {"word": [[*word, None] for word in words]}}
    recording = {"sources": [{"channels": [0], **source}], "sampling_rate": 16000}
    return {
        "id": name,
        "start": 0.0,
        "duration": seconds,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
    }


def prepare(data_dir: Path, parts: Mapping[str, Sequence[dict]]) -> None:
    """Write prepared data with the parts train, dev and test, and lang_bpe_30."""
    (data_dir / "cuts").mkdir(parents=True)
    for part in ("train", "dev", "test"):
        lines = "".join(json.dumps(c) + "\n" for c in parts.get(part, ()))
        (data_dir / "cuts" / f"{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (data_dir / "corpus.yaml").write_text("{name: a, source: custom, train: [train], dev: [dev], test: [test]}\n")
    numbers = {part: {"utterances": len(cuts), "hours": 0.5, "dropped": {"too long": 2}} for part, cuts in parts.items()}
    (data_dir / "summary.json").write_text(json.dumps({"parts": numbers, "tokens": {"30": {"train": {"per second": 2.5}}}}))
    lang = data_dir / "lang_bpe_30"
    (lang / "num_tokens").mkdir(parents=True)
    texts = [c["supervisions"][0]["text"] for c in parts["train"]]
    tokenizer = train_tokenizer(texts, 30)
    (lang / "bpe.model").write_bytes(tokenizer.model)
    (lang / "transcript.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    counts = [len(ids) for ids in tokenizer.encode(texts)]
    lines = "".join(f"{c['id']}\t{count}\n" for c, count in zip(parts["train"], counts, strict=True))
    (lang / "num_tokens" / "train.tsv").write_text(lines, encoding="utf-8")


def shown(page: Page) -> str:
    """Return the HTML of a page's parts, its cells without attributes."""
    return re.sub(r"<(t[dh]) [^>]*>", r"<\1>", "\n".join(page.parts))
