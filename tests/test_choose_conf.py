"""local/choose_conf.py: what is measured, and that an edited file stays. local/check_data.py: which data are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from local import check_data, choose_conf
from local.config import load_config
from local.config.presets import Speech
from local.corpus.corpus_yaml import Corpus, save_corpus
from local.data.channels import mixed
from tests.conftest import ROOT
from tests.speech_tree import write_noise

import pytest
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.utils import fastcopy


def prepared(data: Path, texts: list[str], seconds: float = 36.0) -> Path:
    """Write data/corpus.yaml and the cuts of train; each text is spoken for `seconds`."""
    cuts = []
    audio = write_noise(data / "a.wav", seconds, rate=1000)
    for number, text in enumerate(texts):
        cut = Recording.from_file(audio, recording_id=f"r{number}").to_cut()
        cut.id = f"c{number}"
        cut.supervisions = [SupervisionSegment(cut.id, cut.recording.id, 0.0, cut.duration, text=text)]
        cuts.append(cut)
    (data / "cuts").mkdir(parents=True, exist_ok=True)
    CutSet.from_cuts(cuts).to_file(data / "cuts" / "train.jsonl.gz")
    save_corpus(Corpus("mine", "custom", ["train"], ["dev"], ["test"], corpus_dir=str(data)), data / "corpus.yaml")
    return data


def run(data: Path, *overrides: str) -> None:
    choose_conf.main(["--data-dir", str(data), *overrides])


def test_hours_and_characters_of_the_training_cuts_decide(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = prepared(tmp_path, ["AB BA", "C A", "A"])
    assert choose_conf.measure(data, ["train"]) == Speech(pytest.approx(0.03), characters=3, words=4)
    run(data)
    shown = capsys.readouterr().out
    assert "0.03 h" in shown and "3 different characters, 4 different words" in shown and "minutes" in shown
    for key in ("lang.vocab_size", "train.num_epochs"):
        assert key in shown
    cfg = load_config(data / "conf.yaml")
    assert cfg.model.encoder.d_model == 96 and cfg.train.warm_share > 0
    run(data, "train.num_epochs=3")
    assert "3 epochs" in capsys.readouterr().out, "the time is that of the training with the overrides"
    assert load_config(data / "conf.yaml") == cfg


def test_cuts_of_a_mean_of_channels_are_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    """An import makes `Downmix` known to lhotse, which other tests have done in this process."""
    data = prepared(tmp_path, ["AB BA"])
    path = data / "cuts" / "train.jsonl.gz"
    cuts = [fastcopy(cut, recording=mixed(cut.recording, [0])) for cut in CutSet.from_file(path)]
    CutSet.from_cuts(cuts).to_file(path)
    command = [sys.executable, "-m", "local.choose_conf", "--data-dir", str(data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and (data / "conf.yaml").is_file(), done.stderr


def test_a_file_that_was_edited_stays(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = prepared(tmp_path, ["AB BA"])
    path = data / "conf.yaml"
    run(data)
    first = path.read_text()
    prepared(data, ["AB BA " + "".join(map(chr, range(0x4E00, 0x4E00 + 600)))])
    run(data)
    second = path.read_text()
    assert second != first and "602 different characters" in second, "as it was not edited, it follows the data"
    assert load_config(path).lang.type == "char", "Chinese"
    for edited in (
        second.replace("type: char", "type: bpe"),
        second.rstrip("\n") + "\ndata: {num_workers: 0}\n",
        "",
    ):
        path.write_text(edited)
        prepared(data, ["AB BA"])
        run(data)
        assert path.read_text() == edited
        assert f"{path} was edited" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "2 seconds"), (99, "99 seconds"), (1500, "25 minutes"), (7 * 3600, "7 hours"), (345600, "4 days")],
)
def test_a_time_in_words(seconds: float, words: str) -> None:
    assert choose_conf.duration(seconds) == words


def test_data_of_another_corpus_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, here, there = tmp_path / "data", tmp_path / "here" / "audio", tmp_path / "there" / "audio"
    for folder in (data, here, there):
        folder.mkdir(parents=True)
    yaml = tmp_path / "corpus.yaml"
    save_corpus(Corpus("mine", "custom", ["train"], [], [], corpus_dir=str(here)), data / "corpus.yaml")

    def check(name: str, *options: str) -> str:
        save_corpus(Corpus(name, "custom", ["train"], [], []), yaml)
        try:
            check_data.main(["--data-dir", str(data), "--corpus-yaml", str(yaml), *options])
        except SystemExit:
            return capsys.readouterr().err
        return ""

    (tmp_path / "link").symlink_to(here)
    assert check("mine") == check("mine", "--corpus-dir", str(tmp_path / "link")) == ""
    refused = check("mine", "--corpus-dir", str(there))
    assert all(word in refused for word in (str(data), str(here), str(there), "--data-dir"))
    other = check("tiny")
    assert all(word in other for word in (str(data), "'mine'", "'tiny'", "--data-dir"))
    assert "--exp-dir" in check("tiny", "--other=--exp-dir")
    (data / "corpus.yaml").write_text("damaged")
    assert check("mine") == "", "the stages name it, and stage manifests can write it again"
