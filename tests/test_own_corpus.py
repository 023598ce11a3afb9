"""A user's own corpus by the README's commands: run.sh without a configuration, twice, and a test set alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from local.artifacts.checkpoint import load_averaged
from local.config import load_config
from tests.conftest import ROOT
from tests.speech_tree import WORDS, write_noise

import pytest
import soundfile

pytestmark = pytest.mark.slow
SMALL = [f"model.encoder.{key}=16" for key in ("d_model", "rnn_hidden_size", "dim_feedforward")]
SMALL += ["model.encoder.num_layers=1", "model.decoder.dim=16", "model.joiner.dim=16", "data.num_workers=0"]
SMALL += [
    "train.num_epochs=1",
    "train.average_period=1",
    "train.num_threads=1",
    "decode.num_threads=1",
    "decode.methods=[greedy_search]",
]


def write_table(folder: Path, part: str, texts: list[str], rate: int = 16000) -> None:
    """Write <part>.tsv with a second of noise for each text."""
    rows = []
    for number, text in enumerate(texts):
        write_noise(folder / part / f"{part}{number}.wav", 1.0, rate, seed=number)
        rows.append(f"{part}/{part}{number}.wav\t{text}\n")
    (folder / f"{part}.tsv").write_text("".join(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the recipe in it, as links, and a model trained by one command on here/my_audio."""
    root = tmp_path_factory.mktemp("own")
    for name in ("run.sh", "prepare.sh", "local", "model", "conf", "egs"):
        (root / name).symlink_to(ROOT / name)
    write_table(root / "here" / "my_audio", "train", [f"{a} {b}" for a, b in zip(WORDS, WORDS[1:], strict=False)] * 2)
    write_table(root / "here" / "my_audio", "dev", ["ONE TWO"])
    write_table(root / "here" / "my_audio", "test", ["TWO ONE", "THREE"])
    done = run(root, "--corpus", "custom", "--corpus-dir", "here/my_audio", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    (root / "first.txt").write_text(done.stdout)
    return root


def run(root: Path, *words: str) -> subprocess.CompletedProcess:
    command = ["bash", "./run.sh", *words, "--python", sys.executable, "--nj", "1"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)


def test_one_command_chooses_a_configuration_and_names_the_folders(place: Path) -> None:
    shown = (place / "first.txt").read_text()
    assert (place / "exp" / "my_audio" / "wer.md").is_file() and not (place / "data" / "custom").exists()
    cfg = load_config(place / "data" / "my_audio" / "conf.yaml")
    preset = load_config(ROOT / "conf" / "preset" / "minutes.yaml")
    assert cfg.train.warm_share > 0 and cfg.model == preset.model, "not the model of 960 hours"
    for words in ("preset/minutes.yaml", "without a GPU" if "without a GPU" in shown else "with a GPU", "train.num_epochs"):
        assert words in shown
    trained = load_averaged(place / "exp" / "my_audio" / "averaged.pt")[1]
    assert trained.model.encoder.d_model == 16 and trained.train.num_epochs == 1, "the command line wins"
    assert trained.train.warm_share == cfg.train.warm_share and trained.lang.vocab_size == cfg.lang.vocab_size


def test_a_second_call_does_nothing_and_any_stage_finds_the_folders(place: Path) -> None:
    again = run(place, "--corpus", "custom", "--corpus-dir", "here/my_audio", *SMALL)
    assert again.returncode == 0 and "started" not in again.stdout, again.stdout
    decoded = run(
        place,
        "--corpus",
        "custom",
        "--corpus-dir",
        "here/my_audio",
        "--stage",
        "decode",
        "--stop-stage",
        "decode",
        *SMALL,
        "decode.blank_penalty=1",
    )
    assert decoded.returncode == 0, decoded.stderr
    assert "data/my_audio/conf.yaml" in decoded.stdout and "stage 5, decode: done" in decoded.stdout
    stats = json.loads((place / "exp" / "my_audio" / "decode" / "greedy_search" / "test.stats.json").read_text())
    assert stats["options"]["blank_penalty"] == 1


@pytest.mark.parametrize("options", [[], ["--stage", "decode"], ["--data-dir", "data/my_audio", "--exp-dir", "exp/new"]])
def test_another_corpus_of_this_name_is_refused(place: Path, options: list[str]) -> None:
    other = place / "there" / "my_audio"
    write_table(other, "train", ["SHALOM"] * 3)
    before = (place / "data" / "my_audio" / "corpus.yaml").read_bytes()
    refused = run(place, "--corpus", "custom", "--corpus-dir", "there/my_audio", *options, *SMALL)
    assert refused.returncode == 1 and "started" not in refused.stdout
    for words in ("data/my_audio", "here/my_audio", "there/my_audio", "--data-dir"):
        assert words in refused.stderr
    assert (place / "data" / "my_audio" / "corpus.yaml").read_bytes() == before


def test_data_of_a_corpus_are_not_taken_for_another(place: Path) -> None:
    refused = run(place, "--data-dir", "data/my_audio", "--exp-dir", "exp/my_audio", "--stage", "decode", *SMALL)
    assert refused.returncode == 1 and "'custom'" in refused.stderr and "'tiny'" in refused.stderr


def test_an_edited_configuration_is_used_and_kept(place: Path) -> None:
    folder = place / "here" / "edited"
    write_table(folder, "train", ["ONE TWO", "TWO ONE", "THREE"])
    options = ["--corpus", "custom", "--corpus-dir", "here/edited", "--stop-stage", "prepare"]
    assert run(place, *options).returncode == 0
    conf = place / "data" / "edited" / "conf.yaml"
    text = re.sub(r"vocab_size: \d+", "vocab_size: 18", conf.read_text())
    conf.write_text(text)
    write_table(folder, "train", ["ONE TWO", "TWO ONE", "THREE", "FOUR"])  # the choice would be another
    changed = run(place, *options)
    assert changed.returncode == 0 and conf.read_text() == text, changed.stderr
    assert (place / "data" / "edited" / "lang_bpe_18" / "bpe.model").is_file()
    assert "data/edited/conf.yaml was edited" in changed.stdout


def test_a_dry_run_of_a_new_corpus(place: Path) -> None:
    """Without a configuration, which is chosen by a stage that does not run."""
    write_table(place / "here" / "new", "train", ["ONE TWO"])
    before = sorted(place.rglob("*"))
    done = run(place, "--corpus", "custom", "--corpus-dir", "here/new", "--dry-run")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "data/new/conf.yaml would be chosen" in done.stdout and "stage 7, report: would run" in done.stdout
    assert sorted(place.rglob("*")) == before


def test_a_test_set_alone_is_decoded_with_one_command(place: Path) -> None:
    write_table(place / "my_test", "test", ["ONE TWO", "THREE NINE", "FOUR"], rate=8000)
    before = sorted(path for path in (place / "data").rglob("*"))
    options = ["evaluate", "--checkpoint", "exp/my_audio/averaged.pt", "--corpus-dir", "my_test"]
    lm = "modified_beam_search_lm_shallow_fusion"
    done = run(place, *options, f"decode.methods=[greedy_search,{lm}]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{lm} is left out: exp/my_audio/lm/lm.pt" in done.stdout
    exp = place / "exp" / "my_audio" / "evaluate" / "my_test"
    table = json.loads((exp / "wer.json").read_text())
    assert list(table) == ["test"] and list(table["test"]) == ["greedy_search"]
    assert (table["test"]["greedy_search"]["utterances"], table["test"]["greedy_search"]["words"]) == (3, 5)
    assert (exp / "wer.md").read_text() in done.stdout and (exp / "report.html").is_file()
    assert "my_audio/evaluate/my_test" in (place / "exp" / "INDEX.md").read_text()
    assert not list(exp.rglob("bpe.model")), "no new tokens"
    assert sorted(path for path in (place / "data").rglob("*")) == before
    again = run(place, *options, f"decode.methods=[greedy_search,{lm}]")
    assert again.returncode == 0 and "started" not in again.stdout
    audio = next((place / "my_test").rglob("*.wav"))
    samples, rate = soundfile.read(audio)
    soundfile.write(audio, -samples, rate)  # of the same length
    again = run(place, *options, f"decode.methods=[greedy_search,{lm}]")
    assert again.returncode == 0 and "decode: started" in again.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--corpus-dir", "my_test"], ["--checkpoint"]),
        (["--checkpoint", "exp/none.pt", "--corpus-dir", "here"], ["--checkpoint", "exp/none.pt"]),
        (["--checkpoint", "exp/my_audio/averaged.pt"], ["--corpus-dir"]),
        (["--checkpoint", "exp/my_audio/averaged.pt", "--corpus-dir", "here", "--nnodes", "2"], ["--nnodes"]),
        (["--checkpoint", "exp/my_audio/averaged.pt", "--corpus-dir", "nowhere"], ["nowhere"]),
        (["--checkpoint", "exp/my_audio/averaged.pt", "--corpus-dir", "here", "--data-dir", "data/my_audio"], ["--data-dir"]),
        (["--checkpoint", "exp/my_audio/averaged.pt", "--corpus-dir", "here", "--conf", "conf/base.yaml"], ["--conf"]),
    ],
)
def test_what_evaluate_needs_is_named(place: Path, options: list[str], words: list[str]) -> None:
    (place / "my_test").mkdir(exist_ok=True)
    wrong = run(place, "evaluate", *options)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and all(word in wrong.stderr for word in words)


def test_a_model_of_another_language_is_refused(place: Path) -> None:
    write_table(place / "greek", "test", ["ΕΝΑ ΔΥΟ", "ΤΡΙΑ"])
    refused = run(place, "evaluate", "--checkpoint", "exp/my_audio/averaged.pt", "--corpus-dir", "greek")
    assert refused.returncode == 1
    for words in ("exp/my_audio/averaged.pt", "exp/my_audio/evaluate/greek/data", "3 of 3", "Δ"):
        assert words in refused.stderr
    assert not (place / "exp" / "my_audio" / "evaluate" / "greek" / "wer.md").exists()


def test_yesno_is_trained_with_the_smallest_preset(place: Path, shared: Path) -> None:
    folder = shared / "speech" / "yesno"
    if not folder.is_dir():
        pytest.skip("needs ../shared/speech/yesno, absent here")
    done = run(place, "--corpus", "yesno", "--corpus-dir", str(folder.resolve()), "--stop-stage", "prepare")
    assert done.returncode == 0, done.stderr
    conf = place / "data" / "yesno" / "conf.yaml"
    assert "preset/minutes.yaml" in conf.read_text() and "5 different characters" in conf.read_text()
    cfg = load_config(conf)
    assert cfg.train.warm_share > 0 and cfg.train.num_epochs >= 30
