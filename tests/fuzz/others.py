"""Targets: audio files, manifests of noise, hypotheses, rules for texts, configurations and corpus.yaml."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path

import local.prepare_noise
from local.artifacts.decoded_sets import find_sets
from local.artifacts.tuned_settings import save_tuned, with_tuned
from local.common.errors import UserError
from local.config import load_config
from local.config.load import flat_lines
from local.config.text_rules import inline_rules, parse_rules
from local.corpus.audio_files import check_audio
from local.corpus.audio_reading import BadAudio, read_audio
from local.corpus.corpus_yaml import load_corpus
from local.corpus.manifest_lines import read_manifest
from local.scoring.align import score
from local.scoring.error_report import error_report
from local.scoring.hypotheses import check_complete, cost, read_sets
from local.scoring.speech import read_speech
from local.scoring.table import table
from local.wer import as_row, perplexity_line
from tests.fuzz.harness import Target
from tests.fuzz.programs import call, emptied, without_pool

import numpy as np
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem

# Audio

FORMATS = {
    "pcm.wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "law.wav": ("WAV", "ULAW"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"),
    "x.flac": ("FLAC", "PCM_16"),
    "x.ogg": ("OGG", "VORBIS"),
    "x.opus": ("OGG", "OPUS"),
    "x.mp3": ("MP3", "MPEG_LAYER_III"),
    "x.aiff": ("AIFF", "PCM_16"),
    "x.au": ("AU", "PCM_16"),
    "x.w64": ("W64", "PCM_16"),
    "x.caf": ("CAF", "PCM_16"),
    "x.sph": ("NIST", "PCM_16"),
}


def make_audio(root: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 1600)
    for name, (kind, subtype) in FORMATS.items():
        (root / name).mkdir()
        soundfile.write(root / name / name, samples, 8000, subtype, format=kind)
    (root / "refused-m4a").mkdir()  # there is no ffmpeg
    (root / "refused-m4a" / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(100))


def read_audio_file(folder: Path) -> None:
    """Check and load a file, from the disk and from memory: what is accepted has finite samples at a usual rate."""
    path = next(path for path in folder.iterdir())
    info = check_audio(str(path))
    assert info.num_samples > 0 and info.num_channels > 0 and all(map(math.isfinite, info.levels))
    samples, rate = read_audio(str(path))
    assert rate == info.sampling_rate and samples.shape == (info.num_channels, info.num_samples)
    assert bool(np.isfinite(samples).all())
    with contextlib.suppress(soundfile.LibsndfileError):  # a damaged place that is not at the beginning
        read_audio(io.BytesIO(path.read_bytes()), 0.05, 0.1)


# Noise


def make_noise(root: Path) -> None:
    folder = root / "noise"
    folder.mkdir()
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 6 * 8000), 8000)
    recordings = [Recording.from_file(folder / f"{name}.wav") for name in ("a", "b")]
    CutSet.from_cuts(MonoCut(r.id, 0.0, r.duration, 0, recording=r) for r in recordings).to_file(folder / "cuts.jsonl")


def read_noise(folder: Path) -> None:
    out = emptied(folder.parent / "out")
    call(local.prepare_noise.main, ["--data-dir", out, f"augment.musan={folder / 'cuts.jsonl'}"])
    cuts = list(read_manifest(out / "cuts" / "musan.jsonl.gz", Cut, "the test"))  # type: ignore[type-abstract]
    assert cuts and all(0 < cut.duration <= 10.01 for cut in cuts)


# Hypotheses


def make_hypotheses(root: Path) -> None:
    exp = root / "exp"
    row = {"id": "a", "ref": "ONE TWO", "hyp": "ONE TOO", "words": [{"word": "ONE", "start": 0.1, "end": 0.2}]}
    nbest = {**row, "nbest": [{"hyp": "ONE TWO", "words": []}, {"hyp": "ONE"}]}
    made = {"label": "epoch-1-avg-1", "date": "2026-01-01", "commit": "x", "average": "y", "options": {}, "weights": "w"}
    stats = {"seconds": 1.0, "audio_seconds": 2.0, "peak_memory_mib": 100.0, "made_by": made}
    for method in ("greedy_search", "modified_beam_search_oracle"):
        folder = exp / "decode" / method
        folder.mkdir(parents=True)
        lines = [nbest if "oracle" in method else row, {"id": "b", "ref": "THREE", "hyp": ""}]
        (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "test.stats.json").write_text(json.dumps(stats) + "\n")
    words = {"word": [AlignmentItem("ONE", 0.0, 0.1)]}
    segments = [SupervisionSegment(i, i, 0.0, 1.0, text="ONE", alignment=words) for i in ("a", "b")]
    recordings = [Recording(i, [], 8000, 8000, 1.0, [0]) for i in ("a", "b")]
    (exp / "cuts").mkdir()
    cuts = [MonoCut(s.id, 0.0, 1.0, 0, [s], recording=r) for s, r in zip(segments, recordings, strict=True)]
    CutSet.from_cuts(cuts).to_file(exp / "cuts" / "test.jsonl.gz")
    (exp / "lm").mkdir()
    perplexity = {"dev": {"perplexity": {"per_token": 2.5, "per_word": 9.0}}}
    (exp / "lm" / "perplexity.json").write_text(json.dumps(perplexity) + "\n")


def read_hypotheses_files(folder: Path) -> None:
    """Score what was decoded, as local/wer.py does, without the figure."""
    sets, _ = find_sets(folder)
    current = {(s.name, s.method): s for s in sets}
    results: dict[str, dict[str, dict[str, object]]] = {}
    for name, methods in read_sets(folder, sets).items():
        check_complete(folder, name, next(iter(methods.values())))
        read_speech(folder, name)
        for method, utterances in methods.items():
            scored = score(utterances)
            row = as_row(scored, *cost(current[name, method]), None, False)
            assert row["wer"] is None or math.isfinite(row["wer"])
            results.setdefault(name, {})[method] = row
            error_report(f"set {name}", scored).encode("utf-8")
    json.dumps(results)
    (table(results) + perplexity_line(folder / "lm" / "perplexity.json")).encode("utf-8")


# Rules, configurations


def make_rules(root: Path) -> None:
    (root / "rules").mkdir()
    (root / "rules" / "rules.tsv").write_text("# comment\n&\tand\n/([0-9]+)%/\t\\1 percent\n/[.!?]/\t\n", encoding="utf-8")


def read_rules(folder: Path) -> None:
    text = "a & b 10% é."
    for rule in parse_rules(inline_rules(str(folder / "rules.tsv"), "the test")):
        text = rule(text)[:1000]


def make_configurations(root: Path) -> None:
    for name in ("conf", "corpus", "tuned"):
        (root / name).mkdir()
    conf = (
        "include: []\nmodel:\n  encoder:\n    num_layers: 2\n    d_model: 16\noptim:\n  lr: 1e-3\ndata:\n  test_parts: [test]\n"
    )
    (root / "conf" / "conf.yaml").write_text(conf + "decode:\n  methods: [greedy_search]\n  by_method: {}\n")
    corpus = "name: own\nsource: custom\ntrain: [train]\ndev: [dev]\ntest: [test]\noptions: {split: 0.1}\n"
    (root / "corpus" / "corpus.yaml").write_text(corpus)
    save_tuned(root / "tuned" / "tuned.yaml", {"blank_penalty": 0.5, "by_method": {"greedy_search": {"beam": 4}}}, {})


def is_name(part: str) -> bool:
    """Return whether a part's name is that of one file in the folder where it is used."""
    return part not in ("", ".", "..") and not set(part) & {"/", "\0", "\n"} and len(part.encode()) <= 200


def read_configuration(folder: Path) -> None:
    if (folder / "conf.yaml").exists():
        cfg = load_config(folder / "conf.yaml")
        "\n".join(flat_lines(cfg)).encode("utf-8")
        parts = [part for key in ("train", "dev", "test") for part in getattr(cfg.data, f"{key}_parts") or ()]
        assert all(map(is_name, parts)), parts
    elif (folder / "tuned.yaml").exists():
        with_tuned(load_config().decode, folder / "tuned.yaml")
    else:
        corpus = load_corpus(folder / "corpus.yaml")
        assert all(map(is_name, corpus.parts())), corpus.parts()


REFUSALS = (UserError, BadAudio)
AUDIO = Target("audio", make_audio, read_audio_file, refusals=REFUSALS)
NOISE = Target("noise", make_noise, read_noise, (".jsonl",), without_pool, cases=500)
HYPOTHESES = Target("hypotheses", make_hypotheses, read_hypotheses_files, cases=1000)
RULES = Target("rules", make_rules, read_rules, cases=500)
CONFIGURATIONS = Target("configurations", make_configurations, read_configuration, cases=200)
