"""local/align.py: prepared data and tables, formats, utterances that cannot be aligned, known times."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("soundfile")

from local.align import main, write
from local.artifacts.checkpoint import load_averaged, provenance, save_file
from local.common.errors import UserError
from local.config import load_config
from local.data.batch import Batch
from local.data.features import PADDING
from local.decoding.aligned import Aligned
from local.decoding.aligner import Aligner
from local.scoring.boundaries import boundary_errors
from tests.digits import DEV, digits_folder, features, read_audio, references, write_digits_checkpoint, zeros
from tests.toy_experiment import DURATIONS, SMALL, make_experiment, toy_tokenizer, toy_weights

import numpy as np
import torch
from lhotse import CutSet
from lhotse.supervision import AlignmentItem

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    make_experiment(root)
    tokenizer, cfg = toy_tokenizer(), load_config(None, [*SMALL, "loss.ctc_scale=0.1"])
    save_file({"model": toy_weights(cfg, tokenizer, 0), **provenance(cfg, tokenizer)}, root / "ctc.pt")
    return root


def run(toy: Path, out: Path, *args: str, checkpoint: str = "averaged.pt") -> None:
    main(["--checkpoint", str(toy / checkpoint), "--out", str(out), *args])


@pytest.mark.parametrize("by", ["transducer", "ctc"])
def test_prepared_data(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str) -> None:
    data = ("--data-dir", str(toy / "data"), "--by", by)
    for kind in ("ctm", "json", "textgrid"):
        run(toy, tmp_path, *data, "--format", kind, checkpoint="ctc.pt")
    shown = capsys.readouterr()
    assert shown.out.count("test: 3 utterances aligned, 1 left out") == 3
    assert shown.err.count("not aligned: utterance b-2: ") == 3  # too short
    lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a-1", "c-3", "d-4"]
    for line in lines:
        assert [w["word"] for w in line["words"]] == ["ONE", "TWO"] and line["duration"] == pytest.approx(DURATIONS[line["id"]])
        assert 0 <= line["words"][0]["start"] < line["words"][1]["end"] <= line["duration"] + 0.001
    ctm = [line.split() for line in (tmp_path / "test.ctm").read_text().splitlines()]
    assert [(row[0], float(row[2]), row[4]) for row in ctm] == [
        (line["id"], word["start"], word["word"]) for line in lines for word in line["words"]
    ]
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == [f"{line['id']}.TextGrid" for line in lines]


def test_a_table_is_not_replaced_by_its_result(toy: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.jsonl"
    table.write_text(json.dumps({"audio_filepath": str(toy / "a-1.flac"), "text": "ONE TWO"}) + "\n")
    before = table.read_bytes()
    with pytest.raises(SystemExit):
        run(toy, tmp_path, "--table", str(table), "--format", "json")
    assert table.read_bytes() == before


def test_a_table(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a-1", "c-3", "d-4"):
        shutil.copy(toy / f"{name}.flac", tmp_path)
    table = tmp_path / "mine.tsv"
    long = "THREE TWO ONE " * 9
    table.write_text(f"path\ttext\na-1.flac\tone two\nc-3.flac\tTWO Ж\nd-4.flac\t{long}\nnone.flac\tONE\n", encoding="utf-8")
    run(toy, tmp_path / "out", "--table", str(table), "--format", "json")
    (line,) = (tmp_path / "out" / "mine.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "a-1" and [w["word"] for w in json.loads(line)["words"]] == ["ONE", "TWO"]
    err = capsys.readouterr().err.splitlines()
    assert any("c-3" in line and "Ж" in line for line in err) and any("d-4" in line and "frames" in line for line in err)
    assert any("none" in line and str(table) in line for line in err)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data-dir", "DATA", "--by", "ctc"], "--by ctc"),
        (["--data-dir", "DATA", "--sets", "nothing"], "nothing"),
        (["--table", "DATA/x.ogg"], "x.ogg"),
        (["--table", "DATA/none.tsv"], "none.tsv"),
        (["--table", "DATA/x.tsv", "--sets", "test"], "--sets"),
    ],
)
def test_what_cannot_be_aligned_at_all(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    with pytest.raises(SystemExit):
        run(toy, tmp_path, *(a.replace("DATA", str(toy / "data")) for a in arguments))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert named in line


@pytest.mark.parametrize("kind", ["ctm", "textgrid", "json"])
@pytest.mark.parametrize(("ids", "named"), [(["a b", "a_b"], "a_b"), (["ü" * 120], "ü")])
def test_ids_that_a_format_cannot_hold(tmp_path: Path, kind: str, ids: list[str], named: str) -> None:
    found = [Aligned(name, 1.0, 0.0, [], []) for name in ids]
    if kind == "json" or (kind == "ctm" and len(ids) == 1):
        write(found, kind, tmp_path, "test")
    else:
        with pytest.raises(UserError, match=f"{named}.*--format json"):
            write(found, kind, tmp_path, "test")
        assert not list(tmp_path.iterdir())


def test_errors_against_known_times(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(toy / "data", tmp_path / "data")
    run(toy, tmp_path, "--data-dir", str(tmp_path / "data"), "--format", "json")
    assert "known times" not in capsys.readouterr().out
    found = {}
    for line in map(json.loads, (tmp_path / "test.jsonl").read_text().splitlines()):
        found[line["id"]] = [(w["word"], w["start"], w["end"]) for w in line["words"]]
    cuts = list(CutSet.from_file(tmp_path / "data" / "cuts" / "test.jsonl.gz"))
    for cut in cuts:
        spans = found.get(cut.id, [])
        items = [AlignmentItem(word, round(start - 0.01, 3), round(end - start + 0.03, 3)) for word, start, end in spans]
        cut.supervisions[0].alignment = {"word": items}
    CutSet.from_cuts(cuts).to_file(tmp_path / "data" / "cuts" / "test.jsonl.gz")
    run(toy, tmp_path, "--data-dir", str(tmp_path / "data"), "--format", "json")
    said = capsys.readouterr().out
    assert "6 words" in said and "starts median 10 ms" in said and "ends median 20 ms" in said


def test_boundary_errors() -> None:
    known = {"a": [("x", 0.1, 0.2), ("y", 0.2, 0.5)], "b": [("x", 0.0, 0.1)]}
    found = {"a": [("x", 0.1, 0.25), ("y", 0.25, 0.4)], "b": [("z", 0.0, 0.1)], "c": [("x", 0.0, 0.1)]}
    errors = boundary_errors(found, known)
    assert errors is not None and errors.words == 2
    assert errors.starts == pytest.approx((25, 45)) and errors.ends == pytest.approx((75, 95))
    assert boundary_errors({"b": found["b"]}, known) is None


@pytest.mark.slow
def test_human_speech_around_a_pause(shared: Path, tmp_path: Path) -> None:
    """Two recorded utterances with silence between: no word reaches into it, and all words of both are found beside it."""
    model, cfg, tokenizer = load_averaged(write_digits_checkpoint(shared, tmp_path))
    texts, audio = references(shared), read_audio(digits_folder(shared, DEV))
    names = sorted(audio)[:40]
    pairs = list(zip(names[::2], names[1::2], strict=True))
    joined = [np.concatenate([audio[a], zeros(1.0), audio[b]]) for a, b in pairs]
    said = [f"{texts[a]} {texts[b]}" for a, b in pairs]
    x = features(cfg.features, joined)
    inputs = torch.nn.utils.rnn.pad_sequence(x, True, PADDING)
    none = torch.zeros(len(x), 0, dtype=torch.int64)
    batch = Batch(inputs, torch.tensor([len(f) for f in x]), none, none.sum(1), [a for a, _ in pairs], said)
    late = 0
    for (a, _), result in zip(
        pairs, Aligner(model, tokenizer, "transducer", cfg.decode.tail_frames, torch.device("cpu"))(batch), strict=True
    ):
        assert isinstance(result, Aligned)
        first, pause = len(texts[a].split()), len(audio[a]) / 16000
        assert [w["word"] for w in result.words] == said[pairs.index((a, _))].split()
        late += result.words[first - 1]["end"] > pause + 0.1 or result.words[first]["start"] < pause + 0.9
    assert late <= 1
