"""Targets: a user's corpus in every form, through stage 1 of prepare.sh."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import local.prepare_manifests
from local.corpus.manifest_lines import read_manifest
from tests.fuzz.harness import Target
from tests.fuzz.programs import call, emptied, without_pool

import numpy as np
import soundfile
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.supervision import AlignmentItem

RATE, SECONDS = 8000, 0.2
NAMES = ("a", "b", "a;touch PWNED;", "$(touch PWNED)")  # the last two without words of their own: tables may name them
TEXTS = ("ONE TWO", "three, four")
LISTS = (".tsv", ".csv", ".txt", ".json", ".jsonl", ".jsonl.gz", ".ctm", ".tar", ".shar", "wav.scp", "text")
LISTS += ("segments", "utt2spk")


def corpus(root: Path, name: str, source: str = "custom") -> Path:
    """Return the folder of a variant, with its corpus.yaml and audio."""
    folder = root / name
    folder.mkdir()
    yaml = f"name: own\nsource: {source}\ntrain: [train]\ndev: []\ntest: []\noptions: {{}}\n"
    (folder / "corpus.yaml").write_text(yaml, encoding="utf-8")
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, int(RATE * SECONDS))
    for audio in NAMES:
        soundfile.write(folder / f"{audio}.wav", samples, RATE, subtype="PCM_16")
    return folder


def make_tables(root: Path) -> None:
    rows = [(f"{name}.wav", text, f"s{name}") for name, text in zip(NAMES[:2], TEXTS, strict=True)]
    (corpus(root, "tsv") / "train.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    header = "client_id\tpath\tsentence\tid\tstart\tend\n"
    named = "".join(f"{speaker}\t{path}\t{text}\t{path[0]}\t0.05\t0.1\n" for path, text, speaker in rows)
    (corpus(root, "named") / "train.tsv").write_text(header + named)
    (corpus(root, "csv") / "train.csv").write_text("".join(f'{path},"{text}",{speaker}\n' for path, text, speaker in rows))
    (corpus(root, "bars") / "train.txt").write_text("".join(f"{path[0]}|{text}|{text}\n" for path, text, _ in rows))
    nemo = [{"audio_filepath": path, "text": text, "duration": SECONDS, "offset": 0.05} for path, text, _ in rows]
    (corpus(root, "nemo") / "train.json").write_text("".join(json.dumps(row) + "\n" for row in nemo))
    beside = corpus(root, "beside")
    for name, text in zip(NAMES[:2], TEXTS, strict=True):
        (beside / f"{name}.txt").write_text(text)
    tree = corpus(root, "librispeech", "librispeech") / "train" / "1" / "2"
    tree.mkdir(parents=True)
    for n, text in enumerate(TEXTS):
        soundfile.write(tree / f"1-2-{n}.flac", np.zeros(1600) + 0.1, RATE)
        with (tree / "1-2.trans.txt").open("a") as file:
            file.write(f"1-2-{n} {text}\n")
        with (tree / "1-2.ctm").open("a") as file:
            file.write(f"1-2-{n} 1 0.01 0.05 ONE\n")


def make_kaldi(root: Path) -> None:
    for name in ("whole", "segments", "pipes"):
        folder = corpus(root, name)
        (folder / "train").mkdir()
        files = {"a": "a.wav", "b": f"cat {folder}/b.wav |" if name == "pipes" else "b.wav"}
        ids = {f"{audio}-1" if name == "segments" else audio: audio for audio in files}
        (folder / "train" / "wav.scp").write_text("".join(f"{audio} {file}\n" for audio, file in files.items()))
        (folder / "train" / "text").write_text("".join(f"{i} {text}\n" for i, text in zip(ids, TEXTS, strict=True)))
        (folder / "train" / "utt2spk").write_text("".join(f"{i} s{i}\n" for i in ids))
        if name == "segments":
            (folder / "train" / "segments").write_text("".join(f"{i} {audio} 0.05 0.15\n" for i, audio in ids.items()))


def make_manifests(root: Path) -> None:
    folder = corpus(root, "pairs")
    pairs = []
    for name, text in zip(NAMES[:2], TEXTS, strict=True):
        recording = Recording.from_file(folder / f"{name}.wav")
        recording.sources[0].source = f"{name}.wav"
        words = {"word": [AlignmentItem("ONE", 0.01, 0.05)]}
        pairs.append((recording, SupervisionSegment(name, name, 0.0, 0.2, 0, text, "EN", "s1", "f", {"snr": 1.5}, words)))
    RecordingSet.from_recordings(r for r, _ in pairs).to_file(folder / "recordings_train.jsonl")
    SupervisionSet.from_segments(s for _, s in pairs).to_file(folder / "supervisions_train.jsonl.gz")
    cuts = CutSet.from_cuts(MonoCut(s.id, 0.0, 0.2, 0, [s], recording=r) for r, s in pairs)
    cuts.to_file(corpus(root, "cuts") / "cuts_train.jsonl")
    changed = CutSet.from_cuts(cut.perturb_volume(0.5).perturb_speed(1.1) for cut in cuts)
    changed.to_file(corpus(root, "changed") / "cuts_train.jsonl")
    shards = corpus(root, "shards") / "train"
    shards.mkdir()
    cuts.to_file(shards / "cuts.000000.jsonl")
    with tarfile.open(shards / "recording.000000.tar", "w") as tar:
        for recording, _ in pairs:
            meta = {**recording.to_dict(), "sources": [{"type": "memory", "channels": [0], "source": ""}]}
            content = {".wav": (folder / f"{recording.id}.wav").read_bytes(), ".json": json.dumps(meta).encode()}
            for ending, data in content.items():
                member = tarfile.TarInfo(recording.id + ending)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    listed = corpus(root, "listed")
    (listed / "cuts.000000.jsonl").write_bytes((shards / "cuts.000000.jsonl").read_bytes())
    (listed / "recording.000000.tar").write_bytes((shards / "recording.000000.tar").read_bytes())
    (listed / "train.shar").write_text("cuts.{000000..000000}.jsonl\n")


def read(folder: Path) -> None:
    """Run stage 1 and check what it wrote: numbers are finite, ids unique, sources files or shards, each item can be read."""
    out = emptied(folder.parent / "out")
    arguments = ["--corpus-yaml", folder / "corpus.yaml", "--corpus-dir", folder, "--data-dir", out, "data.dev_parts=[]"]
    call(local.prepare_manifests.main, [*arguments, "data.train_parts=[train]", "data.test_parts=[]"])
    recordings = list(read_manifest(out / "manifests" / "recordings_train.jsonl.gz", Recording, "the test"))
    segments = list(read_manifest(out / "manifests" / "supervisions_train.jsonl.gz", SupervisionSegment, "the test"))
    assert segments and recordings
    for items in (recordings, segments):
        assert len({item.id for item in items}) == len(items), "an id twice"
    assert {s.recording_id for s in segments} == {r.id for r in recordings}
    assert all(source.type in ("file", "memory", "shar") for r in recordings for source in r.sources)
    assert all(s.text.strip() and s.duration > 0 for s in segments)
    (out / "manifests" / "dropped.tsv").read_text(encoding="utf-8")


def target(name: str, make: Callable[[Path], None]) -> Target:
    return Target(name, make, read, LISTS, without_pool)


TABLES, KALDI, MANIFESTS = target("tables", make_tables), target("kaldi", make_kaldi), target("manifests", make_manifests)
