"""Whole reports without a browser: their size, links beyond it, what is missing or damaged, addresses of files."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from local.report import main
from local.reporting.audio import AudioBudget, address
from local.reporting.experiment import read_experiment
from local.reporting.utterances import Wrong, alignment
from local.scoring.align import Utterance, score
from local.scoring.speech import Speech
from tests.reporting.fabricated import Said, make, write_report

import pytest

SAID = [Said(f"u{n:02d}", f"s{n % 3}", "GREEN LAMP", ("GREEN", "RED LAMP"), 6.0) for n in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("report"), SAID)


def test_size_is_limited_and_further_audio_is_linked(folder: Path) -> None:
    path = write_report(folder, "--max-mb", "1")
    text = path.read_text(encoding="utf-8")
    embedded, linked = text.count('src="data:audio/mpeg'), re.findall(r'<a href="(\./[^"#]*)#t=0.000,6.000">', text)
    assert path.stat().st_size < 1e6 and 0 < embedded < len(SAID) == embedded + len(linked)
    assert (folder / linked[0]).is_file()
    assert text.index("data:audio") < text.index("#t=")  # the worst have their audio
    whole = write_report(folder).read_text(encoding="utf-8")
    assert whole.count('src="data:audio/mpeg') == len(SAID) == whole.count('<svg class="mel"')
    assert not re.search(r"https?://(?!www\.w3\.org/)", whole) and whole.count("<script") == 1


def test_without_data_there_are_texts_alone(folder: Path) -> None:
    main(["--exp-dir", str(folder)])
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("<article") == len(SAID) and "<audio" not in text and "Speaker" not in text


def test_intervals_are_new_although_wer_json_is_old(tmp_path: Path) -> None:
    exp = make(tmp_path, SAID[:3])
    path = exp / "wer.json"
    results = json.loads(path.read_text())
    known = results["test"]["greedy_search"]["ci95"]
    results["test"]["greedy_search"]["ci95"] = [-77.0, 99.0]
    path.write_text(json.dumps(results))
    assert list(read_experiment(exp, None).results["test"]["greedy_search"]["ci95"]) == pytest.approx(known, abs=0.01)


def test_audio_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    exp = make(tmp_path, SAID[:2])
    (tmp_path / "0.flac").write_bytes(b"fLaC and nothing else")
    (tmp_path / "1.flac").unlink()
    text = write_report(exp).read_text(encoding="utf-8")
    assert text.count("No audio:") == 2 and text.count("<article") == 2


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("wer.json", None, "wer.json"),
        ("wer.json", "[]", "wer.json"),
        ("wer.json", '{"test": {}}', "wer.json"),
        ("decode/greedy_search/test.jsonl", '{"id": 3}', "test.jsonl:1"),
        ("../data/cuts/test.jsonl.gz", None, "test.jsonl.gz"),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    tmp_path: Path, file: str, content: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = make(tmp_path, SAID[:1])
    (exp / file).unlink() if content is None else (exp / file).write_text(content)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        write_report(exp)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not (exp / "report.html").exists()


@pytest.mark.parametrize("key, value", [("wer", "1"), ("ci95", [1]), ("ci95", 3), ("rtf", []), ("cer", 1e999)])
def test_a_result_that_is_no_number_is_named(
    tmp_path: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = make(tmp_path, SAID[:1])
    results = json.loads((exp / "wer.json").read_text())
    results["test"]["greedy_search"][key] = value
    (exp / "wer.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit):
        write_report(exp)
    assert f"{exp}/wer.json" in capsys.readouterr().err


@pytest.mark.parametrize("mels, rate", [(80, 0), (80, -1), (0, 16000)])
def test_features_that_cannot_be_made_leave_the_usual_pictures(tmp_path: Path, mels: int, rate: int) -> None:
    exp = make(tmp_path, SAID[:1])
    (exp / "config.yaml").write_text(f"features: {{num_mel_bins: {mels}, sampling_rate: {rate}}}\n")
    assert 'class="mel"' in write_report(exp).read_text()


@pytest.mark.parametrize("size", ["0", "nan", "-3", "much", "1e9"])
def test_a_limit_must_be_a_size(folder: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--exp-dir", str(folder), f"--max-mb={size}"])
    assert "--max-mb" in capsys.readouterr().err


def test_addresses_of_files_are_relative_and_no_scheme(tmp_path: Path) -> None:
    assert address(tmp_path / "javascript:x", tmp_path) == "./javascript%3Ax"
    assert address(tmp_path / "a" / "b #?\"'\u00e9.wav", tmp_path / "exp") == "./../a/b%20%23%3F%22%27%C3%A9.wav"
    assert address(tmp_path / "\udcff", tmp_path) == "./%FF"


def test_embedded_audio_has_the_utterances_length(folder: Path) -> None:
    import io

    import soundfile

    budget = AudioBudget(10**6, folder)
    html = budget.element(Speech("a", "", 0.5, folder.parent / "3.flac", 1.0, 0))
    data = base64.b64decode(html.split("base64,")[1].split('"')[0])
    assert abs(soundfile.info(io.BytesIO(data)).duration - 0.5) < 0.1
    assert "audio" in budget.element(Speech("b", "", 0.5, None, 0.0, 0)) and budget.left == 10**6 - len(
        html.split('src="')[1].split('"')[0]
    )


def test_hypotheses_stand_below_the_words_of_the_reference() -> None:
    """One column per reference word and per insertion; equal hypotheses share a line."""
    hyps = {"a": "X ONE TWO", "b": "ONE Y Z THREE", "c": "X ONE TWO", "d": ""}
    pairs = {m: score([Utterance("u", "ONE TWO THREE", h)]).alignments[0] for m, h in hyps.items()}
    rows = [re.split("<td>", row)[1:] for row in alignment(Wrong("test", "u", pairs, {})).split("<tr>")[1:]]
    assert len(rows) == 4 and {len(row) for row in rows} == {len(rows[0])}
    texts = [[re.sub("<[^>]*>", "", cell) for cell in row] for row in rows]
    for line in texts[1:]:
        for word, place in ((w, texts[0].index(w)) for w in ("ONE", "TWO", "THREE")):
            assert line[place] == word or rows[texts.index(line)][place].startswith("<mark>")
