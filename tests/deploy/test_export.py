"""local/export.py: its files, what it folds and leaves out, and what it refuses, in one line and leaving nothing."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from local import export
from local.artifacts.checkpoint import load_file, provenance, save_file
from local.common.errors import UserError
from local.config import load_config
from local.config.schema import DecodeConfig
from local.data.tokenizer import train_tokenizer
from local.deploy.client import left_out, settings
from local.deploy.hotwords import converted
from local.deploy.record import check_folder
from local.deploy.tokens_files import client_token, token_problem, write_tokens
from model.build import build_model
from tests.deploy.exported import run_export
from tests.toy_experiment import HEAD, SMALL, make_experiment, toy_tokenizer

import pytest

TOKENIZER = toy_tokenizer()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    make_experiment(root, HEAD)
    return root


def decode_section(*overrides: str) -> DecodeConfig:
    return load_config(None, [f"decode.{override}" for override in overrides]).decode


# ---- tokens ----


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        ("", "empty"),
        ("a b", "white space"),
        ("a\tb", "white space"),
        ("a\u3000", "white space"),
        ("a\u2581b", "2581"),
        ("\u2581\u2581", "2581"),
        ("<0x41>", "byte"),
        ("\u0192", "\u0192"),  # UTF-8 C6 92
        ("\u2581\u0192", "\u0192"),
    ],
)
def test_tokens_that_the_client_would_misread(token: str, problem: str) -> None:
    found = token_problem(["<blk>", "<sos/eos>", "<unk>", "\u2581a", token])
    assert found is not None and problem in found


@pytest.mark.parametrize("token", ["\u2581", "\u2581a", "\u00e9", "\u0192\u4e2d", "\u01bf\u01c0", "<0x4>", "\u05d0"])
def test_tokens_that_it_reads(token: str) -> None:
    assert token_problem(["<blk>", "<sos/eos>", "<unk>", "\u2581a", token]) is None


def test_tokens_of_bytes_stand_where_the_client_expects_them() -> None:
    """It takes `<0x41>` for a byte if its id is 3 + 0x41 (sherpa-onnx's symbol table)."""
    tokens = train_tokenizer(["\u6211\u7231", "\u9c9c"], 4, characters=True, byte_fallback=True).tokens
    assert tokens.index("<0x41>") == 3 + 0x41 and token_problem(tokens) is None
    assert "byte" in (token_problem([*tokens[:3], "x", *tokens[3:]]) or "")


def test_files_of_tokens(tmp_path: Path) -> None:
    write_tokens(TOKENIZER, tmp_path)
    symbols = [line.split(" ") for line in (tmp_path / "tokens.txt").read_text(encoding="utf-8").splitlines()]
    assert symbols == [[token, str(number)] for number, token in enumerate(TOKENIZER.tokens)]
    pieces = [line.split("\t") for line in (tmp_path / "bpe.vocab").read_text(encoding="utf-8").splitlines()]
    assert [piece for piece, _ in pieces] == TOKENIZER.tokens
    scores = [float(score) for _, score in pieces[3:]]
    assert scores == sorted(scores, reverse=True) and scores[0] < 0  # log-probabilities, as sentencepiece orders its pieces
    assert client_token("\u2581ONE") == " ONE" and client_token("ONE") == "ONE"
    assert client_token("<0x41>") == "A" and client_token("<0xE6>") == "<0xE6>"


# ---- hotwords ----


def test_a_hotword_s_boost_is_shared_by_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("one two\t6\n\nTHREE\n")
    lines = converted(path, 2.0, TOKENIZER, str.upper).splitlines()
    for line, phrase, boost in zip(lines, ("ONE TWO", "THREE"), (6.0, 2.0), strict=True):
        text, _, score = line.partition(" :")
        assert text == phrase and float(score) == pytest.approx(boost / len(TOKENIZER.encode([phrase])[0]), rel=1e-5)


@pytest.mark.parametrize(("content", "word"), [("", "phrase"), ("QQQ\n", "words.txt:1"), ("ONE\tx\n", "words.txt:1")])
def test_hotwords_that_are_refused(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=word):
        converted(path, 2.0, TOKENIZER, str.upper)


# ---- what a client can do ----


def test_one_joiner_serves_both_searches() -> None:
    same = decode_section("blank_penalty=1.5", "temperature=2")
    assert (settings(same).blank_penalty, settings(same).temperature) == (1.5, 2.0)
    for method in ("greedy_search", "modified_beam_search"):
        with pytest.raises(UserError, match=r"decode.blank_penalty.*by_method.greedy_search.blank_penalty"):
            settings(decode_section(f"by_method.{method}.blank_penalty=-1"))
    assert settings(decode_section("by_method.fast_beam_search.blank_penalty=-1")).blank_penalty == 0
    assert settings(decode_section("by_method.modified_beam_search.beam=9")).beam == 9


def test_what_the_client_cannot_do_is_said() -> None:
    names = "fast_beam_search,modified_beam_search_LODR,fast_beam_search_LG,modified_beam_search_ilm,modified_beam_search_ngram"
    names += ",modified_beam_search_lm_rescore,modified_beam_search_lm_shallow_fusion,greedy_search,modified_beam_search"
    said = list(left_out(decode_section(f"methods=[{names}]", "max_sym_per_frame=3", "hotwords=w.txt"), False, False))
    assert [re.match(r"method (\w+)", line)[1] for line in said[:7]] == names.split(",")[:7]  # type: ignore[index]
    assert "max_sym_per_frame=3" in said[7] and "tail_frames=30" in said[8] and "hotwords" in said[9] and len(said) == 10
    assert list(left_out(decode_section("methods=[greedy_search]", "tail_frames=0"), False, False)) == []
    own = decode_section("methods=[greedy_search]", "tail_frames=0", "by_method.modified_beam_search.hotwords=w.txt")
    (only,) = left_out(own, False, False)
    assert "decode.hotwords" in only and list(left_out(own, False, True)) == []
    (only,) = left_out(decode_section("methods=[modified_beam_search_lm_shallow_fusion]", "tail_frames=0"), True, False)
    assert "sentence" in only
    head = decode_section("methods=[ctc_greedy_search]", "tail_frames=0", "by_method.greedy_search.blank_skip=0.9")
    method, skip = left_out(head, False, False)
    assert "ctc_greedy_search" in method and "decode.blank_skip=0.9" in skip
    assert settings(decode_section("blank_skip=0.9")).blank_skip == 0


# ---- the folder ----


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_folder(out)
    out.mkdir()
    check_folder(out)
    (out / "mine.txt").touch()
    for content in (None, "{", '{"made_by": "another"}', "[1]"):
        if content is not None:
            (out / "export.json").write_text(content)
        with pytest.raises(UserError, match=str(out)):
            check_folder(out)
    (out / "export.json").write_text('{"made_by": "local/export.py"}')
    check_folder(out)
    (tmp_path / "link").symlink_to(out)
    for other in (tmp_path / "link", out / "mine.txt"):
        with pytest.raises(UserError, match=other.name):
            check_folder(other)


def test_export_without_the_gate(toy: Path, tmp_path: Path, packages: None) -> None:
    out = tmp_path / "out"
    words = ["--no-gate", "--int8", "--lm", str(toy / "lm" / "lm.pt"), "decode.blank_penalty=-0.5", "--chunk", "0.16"]
    record = run_export(toy, out, *words)
    assert record["gate"] == {"run": False, "why": "--no-gate"}
    assert record["folded"]["blank_penalty"] == -0.5 and record["folded"]["feature_floor"]["folded"]
    assert record["chunk"] == {"seconds": 0.16, "frames_in": 21, "frames_on": 16, "frames_out": 4}
    graphs = {f"{name}{ending}.onnx" for name in ("encoder", "decoder", "joiner", "lm") for ending in ("", ".int8")}
    assert record["files"].keys() == graphs | {"tokens.txt", "bpe.vocab", "README.md", "test_wavs/0.wav"}
    assert {path.name for path in out.rglob("*.*")} - {"export.json"} == {Path(name).name for name in record["files"]}
    assert "(--no-gate)" in (out / "README.md").read_text(encoding="utf-8")
    again = run_export(toy, out, *words)  # replaces it
    assert again["files"] == record["files"]  # equal in bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_model_without_floor_says_why(toy: Path, tmp_path: Path, packages: None) -> None:
    record = run_export(toy, tmp_path / "out", "--no-gate", "decode.feature_floor=false")
    assert record["folded"]["feature_floor"] == {"folded": False, "why": "decode.feature_floor=false"}


@pytest.mark.slow
def test_the_gate_of_a_toy(toy: Path, tmp_path: Path, packages: None, capsys: pytest.CaptureFixture[str]) -> None:
    """It also takes the language model and the hotwords through the client."""
    pytest.importorskip("sherpa_onnx", reason="needs requirements-export.txt")
    (tmp_path / "words.txt").write_text("ONE TWO\n")
    words = ["--lm", str(toy / "lm" / "lm.pt"), "--hotwords", str(tmp_path / "words.txt"), "data.dev_parts=[test]"]
    words.append("decode.blank_skip=0.05")  # of the CTC head, which the export leaves out
    record = run_export(toy, tmp_path / "out", *words)
    assert record["gate"]["utterances"] == 4 and record["gate"]["float32"]["greedy_search"]["different"] == 0
    assert record["gate"]["lm"]["utterances"] == record["gate"]["hotwords"]["utterances"] == 4
    assert "not in the client: method fast_beam_search" in capsys.readouterr().out


def refused(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line with which the program refuses; nothing may be left."""
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        export.main(["--out", str(tmp_path / "new" / "out"), *words])
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and said.startswith("error: ") and said.count("\n") == 1, said
    left = set(tmp_path.rglob("*")) - set(before)
    assert left <= {tmp_path / "new"}, left
    return said


def with_config(toy: Path, path: Path, *overrides: str) -> Path:
    """Write a checkpoint of an untrained model with these keys."""
    cfg = load_config(None, [*SMALL, *overrides])
    save_file({"model": build_model(cfg, TOKENIZER.vocab_size).state_dict(), **provenance(cfg, TOKENIZER)}, path)
    return path


@pytest.mark.parametrize(
    ("overrides", "key"),
    [(["model.encoder.rnn=gru"], "rnn"), (["model.encoder.norm=instance"], "norm"), (["model.encoder.rnn=rnn"], "rnn")],
)
def test_models_that_no_client_runs(
    toy: Path, tmp_path: Path, packages: None, capsys: pytest.CaptureFixture[str], overrides: list[str], key: str
) -> None:
    path = with_config(toy, tmp_path / "other.pt", *overrides)
    said = refused(toy, tmp_path, capsys, "--checkpoint", str(path), "--no-gate")
    assert str(path) in said and f"model.encoder.{key}" in said


def test_what_is_refused(toy: Path, tmp_path: Path, packages: None, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        return refused(toy, tmp_path, capsys, "--checkpoint", str(toy / "averaged.pt"), *words)

    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes((toy / "averaged.pt").read_bytes()[:3000])
    assert str(damaged) in refused(toy, tmp_path, capsys, "--checkpoint", str(damaged), "--no-gate")
    assert "--data-dir" in said() and "--no-gate" in said()
    assert "--chunk 9" in said("--no-gate", "--chunk", "9")
    assert "0.04" in said("--no-gate", "--chunk", "0.01")
    assert "--wavs -1" in said("--no-gate", "--wavs", "-1")
    for unnamed in (".", "..", "/"):
        assert f"--out {unnamed}:" in said("--no-gate", "--out", unnamed)
    assert "lm.pt" in said("--no-gate", "--lm", str(tmp_path / "lm.pt"))
    assert "words.txt" in said("--no-gate", "--hotwords", str(tmp_path / "words.txt"))
    assert "tuned.yaml" in said("--no-gate", "--tuned", str(tmp_path / "tuned.yaml"))
    assert "decode.temperature" in said("--no-gate", "decode.by_method.greedy_search.temperature=3")


def test_tokens_of_a_checkpoint_are_checked(
    toy: Path, tmp_path: Path, packages: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local.deploy.tokens_files.token_problem", lambda tokens: f"token 5 of {len(tokens)}")
    said = refused(toy, tmp_path, capsys, "--checkpoint", str(toy / "averaged.pt"), "--no-gate")
    assert str(toy / "averaged.pt") in said and f"token 5 of {TOKENIZER.vocab_size}" in said


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "sherpa_onnx"])
def test_a_missing_package_is_named(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == module else find(name) or object())
    words = ["--checkpoint", str(tmp_path / "none.pt"), "--data-dir", str(toy / "data"), "--int8"]  # first of all
    said = refused(toy, tmp_path, capsys, *words)
    assert module.replace("_", "-") in said and "requirements-export.txt" in said


def test_the_checkpoint_is_identified(toy: Path, tmp_path: Path, packages: None) -> None:
    record = run_export(toy, tmp_path / "out", "--no-gate", "--wavs", "0")
    content = load_file(toy / "averaged.pt")
    assert record["checkpoint"]["file"] == "averaged.pt" and len(record["checkpoint"]["sha256"]) == 64
    assert record["checkpoint"]["commit"] == content["git_commit"]
    assert not (tmp_path / "out" / "test_wavs").exists()
    assert json.dumps(record).count(str(tmp_path)) == 0  # it is published
