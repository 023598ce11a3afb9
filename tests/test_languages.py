"""A Chinese, a Hebrew and a German corpus, spoken by eSpeak NG, from a table of paths and texts to a table of error rates."""

from __future__ import annotations

import csv
import json
import multiprocessing
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from local.common.errors import UserError
from local.config import load_config
from local.corpus.espeak import Speaker
from local.data.tokenizer import Tokenizer, lang_dir
from tests.conftest import ROOT
from tests.toy_experiment import levenshtein

import pytest
import soundfile

pytestmark = pytest.mark.slow
# The shipped configuration but for what takes time: a model of 16 channels, two epochs, greedy search. Blank is made
# improbable, as a model after so few steps says little else.
SMALL = [f"model.encoder.{key}=16" for key in ("d_model", "rnn_hidden_size", "dim_feedforward")]
SMALL += ["model.encoder.num_layers=1", "model.decoder.dim=16", "model.joiner.dim=16", "data.num_workers=0"]
SMALL += ["train.num_epochs=2", "train.average_period=1", "train.num_threads=1", "decode.num_threads=1"]
SMALL += ["decode.methods=[greedy_search]", "decode.blank_penalty=4"]


@dataclass(frozen=True)
class Language:
    """What is said in a voice, the test part's texts in their normal form, and what the shipped defaults must make of it."""

    voice: str
    said: dict[str, list[str]]
    expected: list[str]
    unit: str
    tokens: str


LANGUAGES = {
    "mandarin": Language(
        "cmn",
        {
            "train": [
                "我爱北京",
                "今天天气很好",
                "我们去学校",
                "北京天气好",
                "我们爱学校",
                "今天去北京",
                "他们很好",
                "我去学校",
            ],
            "dev": ["今天我们去北京", "天气很好"],
            "test": ["我爱学校", "今天他们去北京"],
        },
        ["我爱学校", "今天他们去北京"],
        "char",
        "lang_char",
    ),
    "hebrew": Language(
        "he",
        {
            "train": ["שלום עולם", "בוקר טוב", "לילה טוב", "שָׁלוֹם", "ערב טוב עולם", "מים קרים", "בוקר קר", "לילה שלום"],
            "dev": ["עולם טוב", "ערב שלום"],
            "test": ["שלום בוקר", "לילה קר עולם"],
        },
        ["שלום בוקר", "לילה קר עולם"],
        "word",
        "lang_bpe_",
    ),
    "german": Language(
        "de",
        {
            "train": ["über die straße", "äpfel und birnen", "schöne grüße", "die köche", "über köche", "öl und äpfel"] * 2,
            "dev": ["die straße", "schöne äpfel"],
            "test": ["über die köche", "grüße und o\u0308l"],  # the last letter but one in two characters
        },
        ["ÜBER DIE KÖCHE", "GRÜSSE UND ÖL"],
        "word",
        "lang_bpe_",
    ),
}


def speak(folder: Path, language: Language) -> None:
    """Write <part>.csv with a header, and a FLAC for each text. It ends its process, a new one, with 3 if there is no voice."""
    try:
        speaker = Speaker()
        speaker.set_voice(language.voice, 150, 50, 50)
    except UserError as e:
        print(e)
        sys.exit(3)
    for part, texts in language.said.items():
        (folder / part).mkdir(parents=True)
        with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as f:
            rows = csv.writer(f)
            rows.writerow(["path", "text"])
            for number, text in enumerate(texts):
                path = folder / part / f"{part}{number}.flac"
                soundfile.write(path, speaker.say(text), speaker.sampling_rate)
                rows.writerow([path.relative_to(folder), text])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the recipe in it, as links."""
    root = tmp_path_factory.mktemp("languages")
    for name in ("run.sh", "prepare.sh", "local", "model", "conf", "egs"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.mark.parametrize("name", LANGUAGES)
def test_from_a_table_to_error_rates(place: Path, name: str) -> None:
    language = LANGUAGES[name]
    process = multiprocessing.get_context("spawn").Process(target=speak, args=(place / "my" / name, language))
    process.start()
    process.join()
    if process.exitcode == 3:
        pytest.skip(f"eSpeak NG or its voice {language.voice} is absent here")
    assert process.exitcode == 0
    command = ["bash", "./run.sh", "--corpus", "custom", "--corpus-dir", f"my/{name}", "--python", sys.executable, "--nj", "1"]
    done = subprocess.run([*command, *SMALL], cwd=place, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    data, exp = place / "data" / name, place / "exp" / name

    # The tokens, by the defaults: no character is lost, in whatever order it is written.
    cfg = load_config(data / "conf.yaml", SMALL)
    lang = lang_dir(data, cfg.lang)
    assert lang.name.startswith(language.tokens) and (lang / "dropped.tsv").read_text(encoding="utf-8") == ""
    tokenizer = Tokenizer.from_file(lang / "bpe.model")
    assert tokenizer.lost_characters("".join(language.expected)) == []
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(language.expected)] == language.expected

    # The texts, in the order in which they are said.
    rows = [json.loads(line) for line in (exp / "decode" / "greedy_search" / "test.jsonl").read_text().splitlines()]
    assert [row["ref"] for row in rows] == language.expected
    known = set("".join(tokenizer.tokens[3:])) | {" "}
    for row in rows:
        assert row["hyp"] and set(row["hyp"]) <= known and row["hyp"] == tokenizer.decode(row["tokens"])
        assert "".join(("" if w.get("joined") else " ") + w["word"] for w in row["words"]).strip() == row["hyp"]

    # The table: WER or CER by the script of the references, which its header says.
    ((_, row),) = json.loads((exp / "wer.json").read_text())["test"].items()
    split = (lambda text: list(text.replace(" ", ""))) if language.unit == "char" else str.split
    errors = sum(levenshtein(split(row["ref"]), split(row["hyp"])) for row in rows)
    words = sum(len(split(text)) for text in language.expected)
    assert (row["unit"], row["words"], row["wer"]) == (language.unit, words, round(100 * errors / words, 4))
    head = (exp / "wer.md").read_text().split("\n|---")[0].splitlines()[-1]
    assert ("CER %" in head and "WER" not in head) if language.unit == "char" else "WER %" in head
    report = (exp / "errors" / "test.greedy_search.txt").read_text()
    assert f"{words} {'characters' if language.unit == 'char' else 'words'}" in report
    page = (exp / "report.html").read_text()
    if errors:
        assert ('dir="rtl"' in page) is (name == "hebrew")
