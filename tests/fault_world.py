"""A small prepared corpus and experiment, the programs over it, and checks of the files that they write."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from local.artifacts.checkpoint import load_averaged, load_file
from local.artifacts.decoding_graph import load_graph
from local.common import locks
from local.config import load_config, to_dict
from local.corpus.corpus_yaml import load_corpus
from local.data.feature_store import _memory_map
from local.data.token_counts import counts_file, read_token_counts
from local.data.tokenizer import Tokenizer
from model.search.scorers import read_arpa
from tests.fault_server import Run, Server
from tests.speech_tree import make_part, set_text, write_noise
from tests.toy_experiment import SMALL

import numpy as np
import torch
import yaml
from lhotse import CutSet, RecordingSet, SupervisionSet

CORPUS = "name: toy\nsource: librispeech\ntrain: [tr]\ndev: [dv]\ntest: [te]\n"
OWN = "name: own\nsource: custom\ntrain: [tab, kal]\ndev: [man]\ntest: [cut]\noptions: {split: 0.1}\n"
METHODS = "greedy_search,modified_beam_search_LODR,modified_beam_search_ngram,fast_beam_search_LG"
SETTINGS = [
    *SMALL,
    *("train.num_epochs=2", "train.max_duration=6", "train.log_every=2", "train.warm_share=0.3", "train.save_every=3"),
    *("train.average_period=1", "average.num=1", "augment.speed_perturb=false", "data.num_buckets=2", "lm.max_epochs=1"),
    *("lang.vocab_size=30", "train.num_threads=1", "decode.num_threads=1", "tune.blank_penalty=[0.0,1.0]"),
]


class World:
    """Files in root/now for programs to read and write, and a copy in root/pristine, which `renew` restores."""

    def __init__(self, root: Path, server: Server) -> None:
        self.now, self.pristine, self.server = root / "now", root / "pristine", server
        self._undamaged: dict[tuple[str, ...], tuple[Run, dict[str, object]]] = {}
        tree = self.now / "LibriSpeech"
        for part, speakers, utterances in (("tr", 2, 4), ("dv", 1, 3), ("te", 1, 3)):
            make_part(tree, part, speakers, utterances)
        set_text(tree, "tr", "100-1-0003", "")  # for a line in dropped.tsv
        (tree / "tr" / "100" / "1" / "100-1.ctm").write_text("100-1-0000 1 0.1 0.2 ONE\n")
        (self.now / "corpus.yaml").write_text(CORPUS)
        (self.now / "own.yaml").write_text(OWN)
        (self.now / "conf.yaml").write_text(yaml.safe_dump(to_dict(load_config(None, SETTINGS))))
        (self.now / "tuned.yaml").write_text("decode:\n  blank_penalty: 0.5\n  by_method: {}\naverage: {}\n")
        (self.now / "hotwords.txt").write_text("ONE TWO\nTHREE\t3\n")
        (self.now / "text.txt").write_text("ONE TWO THREE\nTWO ONE\n" * 5)
        write_noise(self.now / "noise" / "a.wav", 6.0)
        write_noise(self.now / "noise" / "b.wav", 5.5)
        for program in ("manifests", "cuts", "lang", "features", "train", "average", "lm", "graph", "decode", "wer"):
            run = self.run(program)
            assert run.code == 0, run.err
        self._write_own_corpus()
        shutil.copytree(self.now, self.pristine)

    def _write_own_corpus(self) -> None:
        """Write lists of the same audio in all forms of a custom corpus."""
        own, audio = self.now / "own", self.now / "LibriSpeech" / "tr" / "100" / "1"
        files = sorted(audio.glob("*.flac"))
        (own / "kal").mkdir(parents=True)
        (own / "tab.tsv").write_text("".join(f"{p}\tONE TWO\t{i}\n" for i, p in enumerate(files)))
        (own / "kal" / "wav.scp").write_text("".join(f"{p.stem} {p}\n" for p in files))
        (own / "kal" / "segments").write_text("".join(f"{p.stem}-a {p.stem} 0.1 0.8\n" for p in files))
        (own / "kal" / "text").write_text("".join(f"{p.stem}-a one two\n" for p in files))
        (own / "kal" / "utt2spk").write_text("".join(f"{p.stem}-a s{i}\n" for i, p in enumerate(files)))
        data = self.now / "data"
        for name in ("recordings", "supervisions"):
            shutil.copyfile(data / "manifests" / f"{name}_dv.jsonl.gz", own / f"{name}_man.jsonl.gz")
        (own / "cuts_cut.jsonl").write_bytes(gzip.decompress((data / "cuts" / "te.jsonl.gz").read_bytes()))

    def renew(self) -> None:
        """Restore all files."""
        shutil.rmtree(self.now)
        shutil.copytree(self.pristine, self.now)

    def run(self, program: str, *more: str) -> Run:
        """Run a program over this world, with `more` arguments. `own` is the program `manifests` on the custom corpus."""
        now, data, exp = self.now, self.now / "data", self.now / "exp"
        conf, both = ["--conf", now / "conf.yaml"], ["--data-dir", data, "--exp-dir", exp]
        decoding = ["--checkpoint", exp / "averaged.pt", *both]
        methods = [f"decode.methods=[{METHODS}]", f"decode.hotwords={now / 'hotwords.txt'}"]
        argv: dict[str, list[object]] = {
            "manifests": ["--corpus-yaml", now / "corpus.yaml", "--corpus-dir", now, "--data-dir", data, *conf],
            "own": ["--corpus-yaml", now / "own.yaml", "--corpus-dir", now / "own", "--data-dir", data, *conf],
            "lang": ["--data-dir", data, *conf],
            "cuts": ["--data-dir", data, *conf],
            "noise": ["--data-dir", data, *conf, f"augment.musan={now / 'noise'}"],
            "features": ["--data-dir", data, *conf],
            "train": [*both, *conf],
            "stored": [*both, *conf, "features.type=precomputed"],
            "average": ["--exp-dir", exp, *conf],
            "decode": [*decoding, "--conf", now / "conf.yaml", *methods],
            "tuned": [*decoding, "--tuned", now / "tuned.yaml", "decode.methods=[greedy_search]"],
            "wer": ["--exp-dir", exp, "--data-dir", data],
            "lm": [*both, *conf, f"lm.text={now / 'text.txt'}"],
            "tune": [*decoding, *conf, "decode.methods=[greedy_search]"],
            "stream": [now / "LibriSpeech" / "te" / "100" / "1" / "100-1-0000.flac", "--checkpoint", exp / "averaged.pt"],
            "ngram": ["--text", data / "lang_bpe_30" / "transcript.txt", "--out", now / "n.arpa"],
            "graph": ["--data-dir", data, *conf],
            "sample": ["--lm", exp / "lm" / "lm.pt", "--num", "2"],
        }
        aliases = {"own": "manifests", "stored": "train", "tuned": "decode"}
        return self.server.run(aliases.get(program, program), [*argv[program], *more])

    def results(self, run: Run, damaged: Path | None = None) -> dict[str, object]:
        """Return a run's output and the content of all files by name, without times and without the damaged file."""
        files = [p for p in self.files() if p.parent.name != "tensorboard" and p != damaged]
        return {**{self.name(path): content(path) for path in files}, "output": without_times(run.out)}

    def files(self) -> list[Path]:
        """Return all files but locks, which tell who had them last."""
        return sorted(p for p in self.now.rglob("*") if p.is_file() and p.name not in (locks.WRITER, locks.READERS))

    def name(self, path: Path) -> str:
        """Return a file's path within the world, without times."""
        return ARCHIVE.sub("archive", str(path.relative_to(self.now)))

    def undamaged(self, program: str, *more: str) -> tuple[Run, dict[str, object]]:
        """Return a run over the undamaged files and its results; `renew` precedes it."""
        key = (program, *more)
        if key not in self._undamaged:
            self.renew()
            run = self.run(program, *more)
            self._undamaged[key] = run, self.results(run)
        return self._undamaged[key]

    def changed(self) -> list[Path]:
        """Return the new and the changed files."""
        found = []
        for path in self.files():
            before = self.pristine / path.relative_to(self.now)
            if not before.is_file() or before.read_bytes() != path.read_bytes():
                found.append(path)
        return found


# Content of files without what differs between two runs over the same files

ARCHIVE = re.compile(r"\d{19}-[\w.]+-\d+-\d+(?=\.f16)")  # the time is in the name of an archive of features
TIMED = {"seconds", "encoder_seconds", "search_seconds", "peak_memory_mib", "data_wait_share", "frames_per_second"}


def without_times(text: str) -> list[str]:
    """Return the lines of a program's output, without those that tell its speed."""
    return [line for line in text.splitlines() if not re.search(r"RTF|\d s\b", line)]


def content(path: Path) -> object:
    """Return the content of a file without times and names of archives."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return ARCHIVE.sub("archive", gzip.decompress(data).decode("utf-8"))
    if path.name.endswith(".stats.json"):
        return {key: value for key, value in json.loads(data).items() if key not in TIMED}
    if path.name in ("train.csv", "log.csv"):
        rows = csv.DictReader(data.decode("utf-8").splitlines())
        return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]
    return data


# Readers, which raise an exception if the file is not whole


def read_jsonl(path: Path) -> list[dict]:
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").split("\n")
    assert lines.pop() == "", "the last line is not complete"
    return [json.loads(line) for line in lines]


def read_csv(path: Path) -> None:
    with path.open(newline="") as f:
        rows = list(csv.reader(f))
    assert all(len(row) == len(rows[0]) for row in rows)


def read_numbers(path: Path) -> None:
    """Read a checkpoint and check that its weights are finite."""
    content = load_file(path)
    for name, value in content["model"].items():
        assert not value.is_floating_point() or bool(torch.isfinite(value).all()), name


READERS: dict[str, Callable[[Path], object]] = {
    ".gz": read_jsonl,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".pt": read_numbers,
    ".npz": np.load,
    ".json": lambda path: json.loads(path.read_text()),
    ".yaml": lambda path: yaml.safe_load(path.read_text()),
    ".arpa": lambda path: read_arpa(path.read_text().splitlines()),
    ".model": Tokenizer.from_file,
}


def check_whole(path: Path) -> None:
    """Raise an exception if the file is not whole."""
    READERS.get(path.suffix, Path.read_bytes)(path)


# Checks that a program with exit status 0 did its work


def check_manifests(world: World, run: Run, parts: str = "tr dv te") -> None:
    folder = world.now / "data" / "manifests"
    listed = (folder / "dropped.tsv").read_text().splitlines()
    assert all(len(line.split("\t")) == 3 for line in listed)
    for part in parts.split():
        recordings = RecordingSet.from_file(folder / f"recordings_{part}.jsonl.gz")
        known = {r.id: r for r in recordings}
        for s in SupervisionSet.from_file(folder / f"supervisions_{part}.jsonl.gz"):
            assert 0 <= s.start and 0 < s.duration < 1e6 and s.text.strip() and "\n" not in s.text
            assert s.end <= known[s.recording_id].duration + 0.1
    counted = sum(int(line.split(": ")[1].split()[0]) for line in run.out.splitlines() if " dropped (" in line)
    assert counted == len(listed), "dropped utterances are not counted"


def check_cuts(world: World, run: Run) -> None:
    for part in ("tr", "dv", "te"):
        cuts = list(CutSet.from_file(world.now / "data" / "cuts" / f"{part}.jsonl.gz"))
        assert cuts and all(c.duration > 0 and math.isfinite(c.end) and len(c.supervisions) == 1 for c in cuts)


def check_features(world: World, run: Run) -> None:
    _memory_map.cache_clear()  # earlier files had the same names
    for part in load_corpus(world.now / "data" / "corpus.yaml").parts():
        cuts = read_jsonl(world.now / "data" / "cuts" / f"{part}.jsonl.gz")
        stored = list(CutSet.from_file(world.now / "data" / "features" / f"{part}.jsonl.gz"))
        assert all(cut.load_features().shape == (cut.features.num_frames, 80) for cut in stored)
        warned = run.err.count(f"warning: {part}: no features for")
        assert len(stored) + warned >= len(cuts)


def check_train(world: World, run: Run) -> None:
    epochs = list((world.now / "exp" / "checkpoints").glob("*.pt"))
    assert epochs


def check_average(world: World, run: Run) -> None:
    model, _, _ = load_averaged(world.now / "exp" / "averaged.pt")
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def check_decode(world: World, run: Run) -> None:
    files = list((world.now / "exp" / "decode").glob("*/*.jsonl"))
    assert files
    for path in files:
        stats = json.loads(path.with_name(f"{path.stem}.stats.json").read_text())
        assert len(read_jsonl(path)) == stats["utterances"] and math.isfinite(stats["seconds"])
        assert not stats["skipped"] or "utterances left out" in run.err


def check_wer(world: World, run: Run) -> None:
    table = json.loads((world.now / "exp" / "wer.json").read_text())
    assert all(math.isfinite(row["wer"]) for methods in table.values() for row in methods.values())
    assert "| set" in run.out


def check_lm(world: World, run: Run) -> None:
    found = json.loads((world.now / "exp" / "lm" / "perplexity.json").read_text())
    assert math.isfinite(found["dev"]["perplexity"]["per_token"])


def check_graph(world: World, run: Run) -> None:
    lang = world.now / "data" / "lang_bpe_30"
    load_graph(lang / "graph" / "LG.npz", Tokenizer.from_file(lang / "bpe.model"))


def check_lang(world: World, run: Run) -> None:
    lang = world.now / "data" / "lang_bpe_30"
    Tokenizer.from_file(lang / "bpe.model")
    for part in load_corpus(world.now / "data" / "corpus.yaml").parts():
        cuts = read_jsonl(world.now / "data" / "cuts" / f"{part}.jsonl.gz")
        assert list(read_token_counts(counts_file(lang, part))) == [cut["id"] for cut in cuts]


CHECKS: dict[str, Callable[[World, Run], None]] = {
    "manifests": check_manifests,
    "own": lambda world, run: check_manifests(world, run, "tab kal man cut"),
    "cuts": check_cuts,
    "lang": check_lang,
    "features": check_features,
    "train": check_train,
    "stored": check_train,
    "average": check_average,
    "decode": check_decode,
    "tuned": check_decode,
    "wer": check_wer,
    "lm": check_lm,
    "graph": check_graph,
}
