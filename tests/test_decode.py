"""Decoding from one file and prepared data: what is written, words and their times, short utterances, little memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lhotse")

from local import decode
from local.common.errors import UserError
from local.common.meter import Meter
from local.common.out_of_memory import in_halves_on_oom
from local.decoding.batch_decoder import Decoder, with_tail
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from local.decoding.word_times import timed_words
from model.search import SEARCHES, Hypothesis
from tests.toy_experiment import DURATIONS, make_experiment, toy_tokenizer

TOKENIZER = toy_tokenizer()
KEYS = {"id", "ref", "hyp", "tokens", "times", "score", "confidences", "words"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decode")
    make_experiment(root)
    return root


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, exp_dir: Path, *arguments: str) -> None:
    paths = ["--checkpoint", folder / "averaged.pt", "--data-dir", folder / "data", "--exp-dir", exp_dir]
    monkeypatch.setattr(sys, "argv", ["decode.py", *map(str, paths), *arguments])
    decode.main()


def test_files(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    run(monkeypatch, folder, tmp_path)
    for method in SEARCHES:
        lines = (tmp_path / "decode" / method / "test.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert [r["id"] for r in records] == sorted(DURATIONS)
        assert all(set(r) == KEYS and r["ref"] == "ONE TWO" for r in records)
        for r in records:
            assert len(r["tokens"]) == len(r["times"]) == len(r["confidences"])
            assert all(0 < c <= 1 for c in r["confidences"])
            assert [w["word"] for w in r["words"]] == r["hyp"].split()
            assert {w["start"] for w in r["words"]} <= {round(0.04 * t, 3) for t in r["times"]}
        assert records[1]["tokens"] == [] and records[1]["hyp"] == ""
        assert records[0]["tokens"], "a model without blanks says something"
        stats = json.loads((tmp_path / "decode" / method / "test.stats.json").read_text(encoding="utf-8"))
        assert stats["seconds"] == pytest.approx(stats["encoder_seconds"] + stats["search_seconds"])
        assert stats["audio_seconds"] == pytest.approx(sum(DURATIONS.values()), abs=0.1)
        assert (stats["utterances"], stats["threads"]) == (4, torch.get_num_threads())
        assert 10 < stats["peak_memory_mib"] < 1e5
    assert not list(tmp_path.rglob(".tmp*"))


def test_overrides_and_sets(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    run(monkeypatch, folder, tmp_path, "--sets", "test", "decode.methods=[modified_beam_search]", "decode.beam=2")
    assert [p.name for p in (tmp_path / "decode").iterdir()] == ["modified_beam_search"]
    stats = json.loads((tmp_path / "decode" / "modified_beam_search" / "test.stats.json").read_text(encoding="utf-8"))
    assert stats["options"]["beam"] == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sets", "dev"], "dev.jsonl.gz"),
        (["decode.bem=3"], "bem"),
        (["decode.methods=[viterbi]"], "viterbi"),
        (["decode.methods=[modified_beam_search_LODR]"], "lm.pt is missing; stage 3 (lm)"),
        (["decode.methods=[fast_beam_search_LG]"], "LG.npz is missing; local/prepare_graph.py makes it"),
        (["--tuned", "none.yaml"], "none.yaml is missing; stage 4 (tune)"),
    ],
)
def test_errors_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    arguments: list[str],
    named: str,
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, folder, tmp_path, *arguments)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and named in error and "\n" not in error


def make_decoder(monkeypatch: pytest.MonkeyPatch, folder: Path, at_most: int, message: str) -> Decoder:
    """A decoder whose encoder raises when it gets more than `at_most` utterances."""
    model, cfg, tokenizer = decode.load_averaged(folder / "averaged.pt")
    resources = Resources(model, tokenizer, torch.device("cpu"), folder)
    recognisers = {method: Recogniser(method, resources, cfg.decode) for method in cfg.decode.methods}
    decoder = Decoder(model, recognisers, cfg.decode.tail_frames, torch.device("cpu"))
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
    x, ids, texts = torch.randn(5, 90, 80), list("vwxyz"), [""] * 5
    enough = make_decoder(monkeypatch, folder, 5, "").run_fitting(x, lens, texts, ids)
    little = make_decoder(monkeypatch, folder, 2, "CUDA out of memory. Tried to allocate 2 GiB")
    for method, hypotheses in little.run_fitting(x, lens, texts, ids).items():
        assert [h.tokens for h in hypotheses] == [h.tokens for h in enough[method]]
    assert "halved" in capsys.readouterr().err
    none = make_decoder(monkeypatch, folder, 0, "DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(UserError, match="utterance v: not enough memory"):
        none.run_fitting(x, lens, texts, ids)
    with pytest.raises(RuntimeError, match="another fault"):
        make_decoder(monkeypatch, folder, 0, "another fault").run_fitting(x, lens, texts, ids)


@given(st.integers(1, 9), st.integers(1, 9))
def test_parts_that_fit_cover_all_rows_in_order(size: int, at_most: int) -> None:
    def work(rows: slice) -> list[int]:
        if rows.stop - rows.start > at_most:
            raise MemoryError
        return list(range(size))[rows]

    parts = in_halves_on_oom(work, [str(i) for i in range(size)], torch.device("cpu"))
    assert [i for part in parts for i in part] == list(range(size)) and max(map(len, parts)) <= at_most


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can begin anew on Linux only")
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


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=12))
def test_words_are_those_of_the_tokenizer(tokens: list[int]) -> None:
    hypothesis = Hypothesis(tokens, list(range(len(tokens))), 0.0, None, [0.5] * len(tokens))
    words = timed_words(hypothesis, TOKENIZER)
    assert [w["word"] for w in words] == TOKENIZER.decode(tokens).split()
    starts, ends = ([w[key] for w in words] for key in ("start", "end"))
    assert all(a <= b for a, b in zip(starts, ends, strict=True)) and all(a < b for a, b in zip(ends, starts[1:], strict=False))


def test_times_and_confidence_of_a_word() -> None:
    two = TOKENIZER.encode(["TWO ONE"])[0]
    one = len(two) - len(TOKENIZER.encode(["ONE"])[0])
    times = [10 + 3 * i for i in range(len(two))]
    words = timed_words(Hypothesis(two, times, 0.0, None, [0.9] * len(two)), TOKENIZER)
    assert [w["word"] for w in words] == ["TWO", "ONE"]
    assert words[0]["start"] == pytest.approx(0.4) and words[0]["end"] == pytest.approx(0.04 * times[one - 1])
    assert words[1]["start"] == pytest.approx(0.04 * times[one]) and words[1]["end"] == pytest.approx(0.04 * times[-1])
    assert words[1]["confidence"] == pytest.approx(0.9 ** (len(two) - one), abs=1e-4)
