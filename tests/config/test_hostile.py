"""Hostile configurations: names that leave a folder, secrets in references, endless YAML and includes, absurd sizes."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.artifacts.tuned_settings import with_tuned
from local.common.errors import UserError
from local.common.text_files import read_yaml
from local.config.keys import key_types
from local.config.limits import find_problems
from local.config.load import config_from_dict, load_config, to_dict
from local.config.schema import Config
from local.corpus.corpus_yaml import load_corpus
from tests.conftest import ROOT

import pytest
import torch

NOT_PARTS = ["../../evil/x", "/etc/x", "..", ".", "a\nb", "a\0b", "", " ", "a/b", "x" * 201, "ä" * 101, "\udcff"]


@functools.cache
def base() -> Config:
    return load_config()


def stored(key: str, value: Any) -> dict[str, Any]:
    """Return the configuration of a checkpoint with one other value."""
    values = to_dict(base())
    part: Any = values
    *sections, name = key.split(".")
    for section in sections:
        part = part.setdefault(section, {})
    part[name] = value
    return values


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as e:
        config_from_dict(values, where="a.pt")
    assert str(e.value).startswith("a.pt: ")
    return str(e.value)


@pytest.mark.parametrize("name", NOT_PARTS, ids=ascii)
def test_what_no_part_can_be_called(tmp_path: Path, name: str) -> None:
    cfg = copy.deepcopy(base())
    cfg.data.train_parts = ["fine", name]
    assert [key for key, _ in find_problems(cfg.data)] == ["train_parts"]
    lists = f'train: ["fine", {json.dumps(name)}]\ndev: []\ntest: []\n'
    (tmp_path / "corpus.yaml").write_text(f"name: a\nsource: custom\n{lists}")
    with pytest.raises(UserError, match=r"corpus\.yaml(:3|.*train)"):
        load_corpus(tmp_path / "corpus.yaml")


@pytest.mark.parametrize("part", ["train", "dev", "test"])
def test_names_of_parts_stay_in_their_folder(tmp_path: Path, part: str) -> None:
    """They come from a checkpoint, a configuration or an argument."""
    key, name = f"data.{part}_parts", "../../evil/x"
    assert f"'{key}'" in refused(stored(key, ["fine", name]))
    (tmp_path / "mine.yaml").write_text(f"data:\n  {part}_parts: [fine, {name}]\n")
    with pytest.raises(UserError, match=rf"mine\.yaml:2.*{part}_parts"):
        load_config(tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="argument.*" + key):
        load_config(None, [f"{key}=[{name}]"])


def test_names_of_parts_that_are_only_unusual_stay() -> None:
    names = ["a b", "ä.ö", "-x", "..a", "$x", "x" * 100, "語" * 60]
    cfg = load_config(None, [f"data.test_parts={names}".replace("'", '"')])
    assert cfg.data.test_parts == names and config_from_dict(to_dict(cfg)) == cfg


REFERENCES = [
    "${oc.env:SECRET}",
    "${oc.env:SECRET,x}",
    "a${oc.decode:x}",
    r"\${oc.env:SECRET}",
    "${${oc.env:SECRET}}",
    "${",
    "${a:b}",
]


@pytest.mark.parametrize("text", REFERENCES)
def test_a_reference_never_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    (tmp_path / "mine.yaml").write_text(f"optim:\n  lr: 0.1\ndecode:\n  lm: '{text}'\n")
    with pytest.raises(UserError, match=r"mine\.yaml.*decode\.lm") as e:
        load_config(tmp_path / "mine.yaml")
    assert "s3cret" not in str(e.value)
    with pytest.raises(UserError, match=r"argument .*decode\.lm") as e:
        load_config(None, [f"decode.lm='{text}'"])
    assert "s3cret" not in str(e.value)


REFERRING = ["data.test_parts", "optim.lr", "decode.by_method.greedy_search.lm", "train.max_duration"]


@pytest.mark.parametrize("text", [*REFERENCES, "${optim.lr}", "x${optim.name}"])
def test_a_stored_configuration_is_never_interpolated(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    for key in ("decode.lm", *REFERRING):
        message = refused(stored(key, [text] if key.endswith("parts") else text))
        assert f"'{key}'" in message and "s3cret" not in message


def test_stored_settings_are_never_interpolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    (tmp_path / "tuned.yaml").write_text("decode:\n  lm: ${oc.env:SECRET}\naverage: {}\n")
    with pytest.raises(UserError, match=r"tuned\.yaml.*decode\.lm") as e:
        with_tuned(load_config().decode, tmp_path / "tuned.yaml")
    assert "s3cret" not in str(e.value)


def test_a_reference_to_another_key_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("decode:\n  bigram: a.arpa\n  ngram: ${decode.bigram}\n  lm: x/${optim.name}.pt\n")
    cfg = load_config(tmp_path / "mine.yaml", ["lm.hidden=${lm.dim}", "data.dev_parts=${data.test_parts}"])
    assert (cfg.decode.ngram, cfg.decode.lm, cfg.lm.hidden) == ("a.arpa", "x/eve.pt", 512)


def test_rules_in_a_checkpoint_name_no_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a\tb\n")
    assert "'lang.rules'" in refused(stored("lang.rules", str(tmp_path / "secret")))
    assert config_from_dict(stored("lang.rules", "a\tb")).lang.rules == "a\tb"


FILES = ["decode.lm", "decode.bigram", "decode.ngram", "decode.hotwords", "augment.musan", "lm.text", "average.checkpoints"]


@pytest.mark.parametrize(
    "name", ["x" * 256, "a/" + "ä" * 128, "a\0b", "\udcff", "a/" * 2048, "a\nb"], ids=lambda n: ascii(n)[:9]
)
def test_names_that_no_file_can_have(name: str) -> None:
    cfg = copy.deepcopy(base())
    for key in FILES:
        section, attribute = key.split(".")
        setattr(getattr(cfg, section), attribute, [name] if key == "average.checkpoints" else name)
    assert {key for key, _ in find_problems(cfg)} == set(FILES)


@pytest.mark.parametrize("key", [*FILES, "lang.rules"])
def test_a_name_that_no_file_can_have_is_named(key: str) -> None:
    value = ["x" * 256] if key == "average.checkpoints" else "x" * 256
    assert f"'{key}'" in refused(stored(key, value))
    with pytest.raises(UserError, match=key):
        load_config(None, [f"{key}={value}"])


def test_an_argument_that_is_not_utf8(tmp_path: Path) -> None:
    """A shell in another encoding gives bytes that are not UTF-8."""
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"local.config", b"decode.lm=\xff.pt"], capture_output=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"decode.lm" in done.stderr


NESTED = 300
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
ENDLESS_YAML = {
    "nested lists": f"optim:\n  lr: {'[' * NESTED}1{']' * NESTED}\n",
    "nested sections": f"optim: {'{a: ' * NESTED}1{'}' * NESTED}\n",
    "nested in a line": "- " * 900 + "1\n",
    "billion laughs": LAUGHS,
    "a circle": "optim: &a\n  lr: *a\n",
    "too long": "optim: {lr: 0.1}\n" + "# x\n" * 500_000,
    "too many": f"data: {{test_parts: [{'a, ' * 110_000}]}}\n",
}


@pytest.mark.parametrize("text", ENDLESS_YAML.values(), ids=ENDLESS_YAML)
def test_yaml_without_bound_is_refused(tmp_path: Path, text: str) -> None:
    """With the place, within a second, by every reader of YAML."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    readers: list[Any] = [load_config, read_yaml, load_corpus, lambda path: with_tuned(load_config().decode, path)]
    for read in readers:
        start = time.process_time()  # others may load the machine
        with pytest.raises(UserError) as e:
            read(path)
        assert time.process_time() - start < 3 and len(str(e.value)) < 400
        assert str(e.value).startswith(str(path)) and "recursion" not in str(e.value)


@pytest.mark.parametrize("key", ["null", "1", "true", "1.5", "2020-01-01", "[a, b]", "~", "!!binary YQ=="])
def test_keys_are_text(tmp_path: Path, key: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"train: {{seed: 3}}\noptim:\n  lr: 0.1\n  ? {key}\n  : 2\n")
    with pytest.raises(UserError, match=r"mine\.yaml:4"):
        load_config(tmp_path / "mine.yaml")


def test_includes_end(tmp_path: Path) -> None:
    """A circle, also through a link; a diamond, which doubles with each level; a chain; many includes of one file."""
    names = {
        "circle": ["x/circle.yaml"],
        "wide": ["x/wide.yaml"] * 300,
        "many": ["last.yaml"] * 300,
        **{f"chain{i}": [f"chain{i + 1}.yaml"] for i in range(100)},
        **{f"diamond{i}": [f"diamond{i + 1}.yaml"] * 2 for i in range(40)},
    }
    (tmp_path / "x").symlink_to(tmp_path)
    for name, included in names.items():
        (tmp_path / f"{name}.yaml").write_text(f"include: {included}\n")
    for name in ("chain100", "diamond40", "last"):
        (tmp_path / f"{name}.yaml").write_text("optim: {lr: 0.1}\n")
    for name in ("circle", "wide", "many", "chain0", "diamond0"):
        start = time.process_time()
        with pytest.raises(UserError, match=r"yaml:1: key 'include'"):
            load_config(tmp_path / f"{name}.yaml")
        assert time.process_time() - start < 2
    assert load_config(tmp_path / "diamond38.yaml").optim.lr == load_config(tmp_path / "chain92.yaml").optim.lr == 0.1


def test_the_last_of_two_equal_includes_wins(tmp_path: Path) -> None:
    for name, text in {"a": "optim: {lr: 0.1}", "b": "optim: {lr: 0.2}", "c": "include: [a.yaml, b.yaml, a.yaml]"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml").optim.lr == 0.1


NUMBERS = {name: str(kind) for name, kind in key_types().items() if re.search(r"\b(int|float)\b", str(kind))}
NUMBERS["train.max_duration"] = "float"
MAY_BE_INFINITE = {"train.max_duration", "data.max_utterance_seconds", "decode.max_duration"}


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_limit(key: str) -> None:
    """Also whole numbers that no float can hold."""
    huge = [10**18, -(10**18), 10**400, -(10**400)] if "int" in NUMBERS[key] else [1e308, -1e308, math.nan, -math.inf, math.inf]
    *sections, name = key.split(".")
    section = functools.reduce(getattr, sections, copy.deepcopy(base()))
    is_list, is_mix = isinstance(getattr(section, name), list), key == "data.mix"
    for value in huge:
        setattr(section, name, [value, 1] if is_list else {"data/a": value, "data/b": 1} if is_mix else value)
        allowed = value == math.inf and key in MAY_BE_INFINITE
        assert (name in [found for found, _ in find_problems(section)]) is not allowed, value


@pytest.mark.parametrize("key", ["optim.lr", "model.encoder.dim_feedforward", "decode.hotwords_boost", "ablation.seeds"])
def test_the_key_of_a_huge_number_is_named(key: str) -> None:
    number = 10**18 if "int" in NUMBERS[key] else 1e308
    value: Any = [number] if key.startswith("ablation") else number
    assert f"'{key}'" in refused(stored(key, value))
    with pytest.raises(UserError, match=f"argument .*{key}"):
        load_config(None, [f"{key}={value}"])


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_too_long_for_a_float_or_to_be_written(digits: int) -> None:
    for key in ("train.seed", "optim.lr", "decode.lm", "train.max_duration", "decode.by_method.greedy_search.beam", "lm"):
        assert f"'{key}'" in refused(stored(key, -(10**digits)))
    with pytest.raises(UserError, match="argument .*optim.lr"):
        load_config(None, [f"optim.lr=1{'0' * digits}"])


@pytest.mark.parametrize("text", ["nan", "1e400", "0x" + "f" * 5000, "9" * 5000])
def test_numbers_of_yaml_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"train:\n  seed: {text}\n")
    with pytest.raises(UserError, match="mine.yaml"):
        load_config(tmp_path / "mine.yaml")


def nest(make: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(NESTED * 10):
        value = make(value)
    return value


def laughing() -> Any:
    value: Any = ["x"]
    for _ in range(40):
        value = [value, value]
    return value


STORED_VALUES = {
    "nested lists": nest(lambda value: [value]),
    "nested sections": nest(lambda value: {"a": value}),
    "a list of itself many times": laughing(),
    "a tensor": torch.ones(2),
    "bytes": b"x",
    "a set": {1},
    "a tuple": (1, 2),
    "a key of tuples": {(1, 2): 3},
    "a key that is null": {None: 3},
    "a key that is a number": {1: 3},
}


@pytest.mark.parametrize("name", STORED_VALUES)
@pytest.mark.parametrize("key", ["optim.lr", "model", "data.test_parts", "decode.by_method", "unknown", "average.checkpoints"])
def test_a_stored_configuration_is_plain(key: str, name: str) -> None:
    start = time.process_time()
    assert key in refused(stored(key, STORED_VALUES[name])) and time.process_time() - start < 3
