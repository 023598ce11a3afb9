"""local/decode.py: its files, earlier results, words and their times, short utterances, little memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lhotse")

from local import decode
from local.artifacts.checkpoint import load_averaged, load_file, save_file
from local.common.errors import UserError
from local.common.locks import READERS, WRITER
from local.common.meter import Meter
from local.common.out_of_memory import in_halves_on_oom
from local.decoding.batch_decoder import BatchDecoder, with_tail
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from local.scoring.hypotheses import read_hypotheses
from model.search import STREAMS
from tests.toy_experiment import DURATIONS, HEAD, levenshtein, make_experiment, toy_tokenizer

TOKENIZER = toy_tokenizer()
KEYS = {"id", "ref", "hyp", "tokens", "times", "score", "confidences", "words"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decode")
    make_experiment(root, HEAD)
    return root


def run(folder: Path, exp_dir: Path, *arguments: str) -> None:
    paths = ["--checkpoint", folder / "averaged.pt", "--data-dir", folder / "data", "--exp-dir", exp_dir]
    decode.main([*map(str, paths), *arguments])


def read_lines(exp_dir: Path, method: str, name: str = "test") -> list[dict[str, Any]]:
    lines = (exp_dir / "decode" / method / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_stats(folder: Path, name: str = "test") -> dict[str, Any]:
    return json.loads((folder / f"{name}.stats.json").read_text(encoding="utf-8"))


def test_files(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, f"decode.methods=[{','.join(STREAMS)}]")
    for method in STREAMS:
        records = read_lines(tmp_path, method)
        assert [r["id"] for r in records] == sorted(DURATIONS)
        assert all(set(r) == KEYS and r["ref"] == "ONE TWO" for r in records)
        for r in records:
            assert len(r["tokens"]) == len(r["times"]) == len(r["confidences"])
            assert all(0 < c <= 1 for c in r["confidences"])
            assert [w["word"] for w in r["words"]] == r["hyp"].split()
            assert {w["emitted"] for w in r["words"]} <= {round(0.04 * t, 3) for t in r["times"]}
            assert all(0 <= w["start"] < w["end"] <= DURATIONS[r["id"]] + 0.01 for w in r["words"])
        assert records[1]["tokens"] == [] and records[1]["hyp"] == ""
        assert records[0]["tokens"], "a model without blanks says something"
        stats = read_stats(tmp_path / "decode" / method)
        assert stats["seconds"] == pytest.approx(stats["encoder_seconds"] + stats["search_seconds"])
        assert stats["audio_seconds"] == pytest.approx(sum(DURATIONS.values()), abs=0.1)
        assert (stats["utterances"], stats["threads"]) == (4, torch.get_num_threads())
        assert 10 < stats["peak_memory_mib"] < 1e5
        assert stats["made_by"]["options"]["feature_floor"] is True
        for field, ending in (("ref", "ref.trn"), ("hyp", "hyp.trn")):
            lines = (tmp_path / "decode" / method / f"test.{ending}").read_text().splitlines()
            assert lines == [f"{r[field]} ({r['id']})".strip() for r in records]
        times = [line.split() for line in (tmp_path / "decode" / method / "test.ctm").read_text().splitlines()]
        assert [(i, float(start), word) for i, _, start, _, word, _ in times] == [
            (r["id"], w["start"], w["word"]) for r in records for w in r["words"]
        ]
    assert not list(tmp_path.rglob(".tmp*"))


def test_the_record_tells_whether_the_feature_floor_was_used(folder: Path, tmp_path: Path) -> None:
    for use in ("true", "false"):
        run(folder, tmp_path, "decode.methods=[greedy_search]", f"decode.feature_floor={use}")
    assert read_stats(tmp_path / "decode" / "greedy_search")["options"]["feature_floor"] is False
    [earlier] = (tmp_path / "decode_earlier").rglob("test.stats.json")
    assert json.loads(earlier.read_text())["options"]["feature_floor"] is True


def test_an_oracle_method_writes_its_list(folder: Path, tmp_path: Path) -> None:
    method = "fast_beam_search_nbest_oracle"
    run(folder, tmp_path, f"decode.methods=[{method}]", "decode.blank_penalty=-6")  # few words in long lists
    lines = read_lines(tmp_path, method)
    for line in lines:
        assert set(line) == {*KEYS, "nbest"} and all(set(entry) == KEYS - {"id", "ref"} for entry in line["nbest"])
        scores = [entry["score"] for entry in line["nbest"]]
        assert line["score"] == max(scores) and line["hyp"] == line["nbest"][0]["hyp"]
    chosen = {u.id: u for u in read_hypotheses(tmp_path / "decode" / method / "test.jsonl")}
    better = 0
    for line in lines:
        errors = [levenshtein(line["ref"].split(), entry["hyp"].split()) for entry in line["nbest"]]
        best = line["nbest"][errors.index(min(errors))]
        assert chosen[line["id"]].hyp == best["hyp"]
        assert chosen[line["id"]].ends == tuple(word["emitted"] for word in best["words"])
        better += min(errors) < errors[0]
        assert (
            f"{best['hyp']} ({line['id']})".strip() in (tmp_path / "decode" / method / "test.hyp.trn").read_text().splitlines()
        )
    assert better, "the list must have something better than its first entry"


def test_overrides_and_sets(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, "--sets", "test", "decode.methods=[modified_beam_search]", "decode.beam=2")
    assert [p.name for p in (tmp_path / "decode").iterdir()] == ["modified_beam_search"]
    assert read_stats(tmp_path / "decode" / "modified_beam_search")["options"]["beam"] == 2


def test_takes_its_own_of_all_overrides(folder: Path, tmp_path: Path) -> None:
    """The parts to decode are today's; the model is the checkpoint's."""
    cuts = folder / "data" / "cuts"
    for name in ("x", "y"):
        shutil.copy(cuts / "test.jsonl.gz", cuts / f"{name}.jsonl.gz")
    others = [
        "model.encoder.num_layers=99",
        "features.num_mel_bins=40",
        "lang.vocab_size=300",
        "train.num_epochs=1",
        "lm.dim=4",
    ]
    greedy = "decode.methods=[greedy_search]"
    run(folder, tmp_path, greedy, "data.test_parts=[x]", *others)
    assert [p.name for p in tmp_path.rglob("*.jsonl")] == ["x.jsonl"]
    conf = tmp_path / "conf.yaml"
    conf.write_text("data:\n  test_parts: [y]\n  num_workers: 0\ndecode:\n  methods: [greedy_search]\n")
    run(folder, tmp_path, "--conf", str(conf), *others)
    run(folder, tmp_path, greedy, "data.test_parts=[y]", "--sets", "test", "y")
    assert sorted(p.name for p in tmp_path.rglob("*.jsonl")) == ["test.jsonl", "x.jsonl", "y.jsonl"]
    texts = {(tmp_path / "decode" / "greedy_search" / f"{name}.jsonl").read_bytes() for name in ("test", "x", "y")}
    assert len(texts) == 1


def test_dev_stands_for_all_dev_parts(folder: Path, tmp_path: Path) -> None:
    cuts, greedy = folder / "data" / "cuts", "decode.methods=[greedy_search]"
    for name in ("x", "y"):
        shutil.copy(cuts / "test.jsonl.gz", cuts / f"{name}.jsonl.gz")
    run(folder, tmp_path, greedy, "--sets", "dev", "y", "data.dev_parts=[x,y]")
    assert sorted(p.name for p in tmp_path.rglob("*.jsonl")) == ["x.jsonl", "y.jsonl"]
    shutil.copy(cuts / "test.jsonl.gz", cuts / "dev.jsonl.gz")
    run(folder, tmp_path / "other", greedy, "data.dev_parts=[x,dev]", "--sets", "dev")
    (cuts / "dev.jsonl.gz").unlink()
    assert [p.name for p in (tmp_path / "other").rglob("*.jsonl")] == ["dev.jsonl"], "a part of this name comes first"


@pytest.mark.parametrize("override", ["decode.methods=[ctc_greedy_search]", "decode.blank_skip=0.9"])
def test_a_model_without_ctc_head(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str) -> None:
    """One line, before anything is decoded."""
    (tmp_path / "plain").mkdir()
    make_experiment(tmp_path / "plain")
    with pytest.raises(SystemExit):
        run(tmp_path / "plain", tmp_path / "exp", "decode.methods=[greedy_search]", override)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "loss.ctc_scale" in said and not list(tmp_path.rglob("*.jsonl"))


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Return the files of a folder, but not its locks, which tell who had them last."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in (WRITER, READERS)}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["decode.methods=[greedy_search,modified_beam_search_lm_rescore]", "decode.lm=/nope.pt"], "/nope.pt"),
        (["decode.hotwords=/nope.txt"], "/nope.txt"),
        (["--sets", "test", "nix"], "nix"),
        (["decode.bem=3"], "bem"),
        (["model.encoder.layers=3"], "layers"),
        (["decode.methods=[viterbi]"], "viterbi"),
        (["decode.methods=[modified_beam_search_LODR]"], "lm.pt"),
        (["decode.methods=[fast_beam_search_LG]"], "LG.npz"),
        (["--tuned", "none.yaml"], "none.yaml"),
    ],
)
def test_an_error_in_one_line_leaves_earlier_results(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, arguments: list[str], named: str
) -> None:
    run(folder, tmp_path, "decode.methods=[greedy_search]")
    before = snapshot(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(folder, tmp_path, *arguments, "decode.blank_penalty=1")
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and named in error and "\n" not in error
    assert snapshot(tmp_path) == before


def test_results_of_other_settings_are_kept(folder: Path, tmp_path: Path) -> None:
    only = "decode.methods=[modified_beam_search]"
    run(folder, tmp_path)
    decoded, earlier = (tmp_path / name for name in ("decode", "decode_earlier"))
    before = snapshot(decoded)
    run(folder, tmp_path, only, "decode.beam=2")
    assert snapshot(decoded / "greedy_search").items() <= before.items(), "a method that is not decoded stays"
    old = earlier / "averaged" / "modified_beam_search"
    for suffix in ("jsonl", "stats.json", "hyp.trn", "ref.trn", "ctm"):
        assert (old / f"test.{suffix}").read_bytes() == before[decoded / "modified_beam_search" / f"test.{suffix}"]
    assert read_stats(decoded / "modified_beam_search")["made_by"]["options"]["beam"] == 2
    run(folder, tmp_path, only, "decode.beam=2")
    assert [p.name for p in earlier.iterdir()] == ["averaged"], "the same settings replace themselves"
    run(folder, tmp_path, only)
    assert sorted(p.name for p in earlier.iterdir()) == ["averaged", "averaged-2"]
    assert read_stats(earlier / "averaged-2" / "modified_beam_search")["options"]["beam"] == 2
    run(folder, tmp_path, only, "decode.beam=2")
    assert sorted(p.name for p in earlier.iterdir()) == ["averaged", "averaged-2"]

    path = decoded / "modified_beam_search" / "test.stats.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "made_by"}))
    run(folder, tmp_path, only)
    assert (earlier / "unknown" / "modified_beam_search" / "test.jsonl").is_file(), "a set by an older version is kept too"


def test_stats_say_what_made_them(folder: Path, tmp_path: Path) -> None:
    content = {**load_file(folder / "averaged.pt"), "averaged": "running: epochs 5 to 7", "label": "epoch-7-avg-3"}
    save_file(content, tmp_path / "averaged.pt")
    greedy, files = "decode.methods=[greedy_search]", ["--checkpoint", str(tmp_path / "averaged.pt")]
    run(folder, tmp_path, *files, greedy)
    made_by = read_stats(tmp_path / "decode" / "greedy_search")["made_by"]
    assert set(made_by) == {"checkpoint", "average", "label", "weights", "options", "commit", "date"}
    assert (made_by["average"], made_by["label"]) == ("running: epochs 5 to 7", "epoch-7-avg-3")
    assert made_by["checkpoint"] == str(tmp_path / "averaged.pt")
    assert made_by["options"] == read_stats(tmp_path / "decode" / "greedy_search")["options"]
    (tmp_path / "tuned.yaml").write_text("decode: {blank_penalty: 0.5}")
    run(folder, tmp_path, *files, greedy, "--tuned", str(tmp_path / "tuned.yaml"), "decode.max_utterances=2")
    assert read_stats(tmp_path / "decode" / "greedy_search")["made_by"]["label"] == "epoch-7-avg-3-tuned-first-2"
    next(iter(content["model"].values()))[:] += 1  # another training with the same label
    save_file(content, tmp_path / "averaged.pt")
    run(folder, tmp_path, *files, greedy)
    run(folder, tmp_path, *files, greedy)
    labels = sorted(str(p.parent.parent.name) for p in (tmp_path / "decode_earlier").rglob("*.jsonl"))
    assert labels == ["epoch-7-avg-3", "epoch-7-avg-3-tuned-first-2"]
    assert read_stats(tmp_path / "decode" / "greedy_search")["made_by"]["weights"] != made_by["weights"]


def make_decoder(monkeypatch: pytest.MonkeyPatch, folder: Path, at_most: int, message: str) -> BatchDecoder:
    """Make a decoder whose encoder raises if it gets more than `at_most` utterances."""
    model, cfg, tokenizer = load_averaged(folder / "averaged.pt")
    resources = Resources(model, tokenizer, torch.device("cpu"), folder, clean=str)
    recognisers = {method: Recogniser(method, resources, cfg.decode) for method in cfg.decode.methods}
    decoder = BatchDecoder(model, recognisers, cfg.decode.tail_frames, torch.device("cpu"))
    encode = model.encoder.forward

    def forward(x: torch.Tensor, x_lens: torch.Tensor) -> object:
        if len(x) > at_most:
            raise RuntimeError(message)
        return encode(x, x_lens)

    monkeypatch.setattr(model.encoder, "forward", forward)
    return decoder


def test_little_memory_halves_the_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    lens = torch.tensor([90, 12, 60, 40, 33])
    x, ids = torch.randn(5, 90, 80), list("vwxyz")
    enough = make_decoder(monkeypatch, folder, 5, "").run(x, lens, ids)
    little = make_decoder(monkeypatch, folder, 2, "CUDA out of memory. Tried to allocate 2 GiB")
    for method, hypotheses in little.run(x, lens, ids).items():
        assert [h.tokens for h in hypotheses] == [h.tokens for h in enough[method]]
    assert "halved" in capsys.readouterr().err
    none = make_decoder(monkeypatch, folder, 0, "DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(UserError, match="utterance v"):
        none.run(x, lens, ids)
    with pytest.raises(RuntimeError, match="another fault"):
        make_decoder(monkeypatch, folder, 0, "another fault").run(x, lens, ids)


@given(st.integers(1, 9), st.integers(1, 9))
def test_parts_that_fit_cover_all_rows_in_order(size: int, at_most: int) -> None:
    def work(rows: slice) -> list[int]:
        if rows.stop - rows.start > at_most:
            raise MemoryError
        return list(range(size))[rows]

    parts = in_halves_on_oom(work, [str(i) for i in range(size)], torch.device("cpu"))
    assert [i for part in parts for i in part] == list(range(size)) and max(map(len, parts)) <= at_most


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
def test_memory_is_counted_for_each_name() -> None:
    usage = Meter(torch.device("cpu"))
    with usage.of("much"):
        with_audio_loaded = np.ones(2**25)  # 256 MiB
        with_audio_loaded.sum()
    del with_audio_loaded
    with usage.of("little"):
        pass
    assert usage.peak_mib["much"] - usage.peak_mib["little"] > 200
    assert usage.seconds["much"] > usage.seconds["little"] >= 0


def test_tail_is_the_quiet_of_each_utterance() -> None:
    x, lens = torch.randn(3, 20, 4), torch.tensor([20, 7, 1])
    longer, new_lens = with_tail(x, lens, 5)
    assert longer.shape == (3, 25, 4) and new_lens.tolist() == [25, 12, 6]
    for before, after, length in zip(x, longer, lens.tolist(), strict=True):
        assert torch.equal(after[:length], before[:length])
        assert torch.equal(after[length:], before[:length].amin(0).expand(25 - length, -1))
    assert with_tail(x, lens, 0)[0] is x
