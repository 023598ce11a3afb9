"""Every wrong configuration stops with one line that names the key, and the file and line or the argument."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from local.common.errors import UserError
from local.config.keys import key_types
from local.config.load import CONF_DIR, config_from_dict, flat_lines, load_config, to_dict
from local.training.resume_checks import write_config
from tests.conftest import ROOT

import pytest

CONFS = [*CONF_DIR.glob("*/*.yaml"), *CONF_DIR.parent.glob("egs/*/conf/*.yaml")]


@pytest.mark.parametrize("path", CONFS, ids=lambda p: str(p.relative_to(CONF_DIR.parent)))
def test_every_committed_conf_loads(path: Path) -> None:
    assert load_config(path) != load_config(None), "a conf that changes nothing"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.encoder.num_layer=3", "model.encoder.num_layer"),
        ("model.encoder.num_layers=three", "model.encoder.num_layers"),
        ("model.encoder.num_layers=1001", "model.encoder.num_layers"),
        ("model.encoder=null", "model.encoder"),
        ("gradient.control=clipping", "gradient.control"),
        ("optim.lr=-1", "optim.lr"),
        ("optim.lr=.nan", "optim.lr"),
        ("optim.lr=.inf", "optim.lr"),
        ("optim.lr=[1", "optim.lr"),
        ("optim.lr=${train.rate}", "optim.lr"),
        ("optim.momentum=1.1", "optim.momentum"),
        ("loss.lm_scale=1.5", "loss.lm_scale"),
        ("loss.am_scale=0.8", "loss.lm_scale"),
        ("loss.prune_range=1", "loss.prune_range"),
        ("model.encoder.rnn=gru", "model.encoder.rnn_hidden_size"),
        ("augment.musan_snr=[10]", "augment.musan_snr"),
        ("data.max_utterance_seconds=0", "data.max_utterance_seconds"),
        ("decode.methods=[beam]", "decode.methods"),
        ("decode.methods=greedy_search", "decode.methods"),
        ("nothing=1", "nothing"),
        ("train", "train"),
        ("decode.lm_scale=-0.1", "decode.lm_scale"),
        ("decode.by_method.greedy.beam=3", "decode.by_method.greedy"),
        ("decode.by_method.greedy_search=3", "decode.by_method.greedy_search"),
        ("decode.by_method.greedy_search.tail_frames=3", "decode.by_method.greedy_search.tail_frames"),
        ("decode.by_method.greedy_search.bem=3", "decode.by_method.greedy_search.bem"),
        ("decode.by_method.modified_beam_search.beam=0", "decode.by_method.modified_beam_search.beam"),
        ("decode.by_method.modified_beam_search.beam=many", "decode.by_method.modified_beam_search.beam"),
        ("tune.lm_scale=[0.1,-0.1]", "tune.lm_scale"),
        ("tune.average_num=[0]", "tune.average_num"),
        ("tune.beam=[4]", "tune.beam"),
        ("ablation.seeds=[1,1]", "ablation.seeds"),
        ("ablation.controls=[filter,gate]", "ablation.controls"),
    ],
)
def test_wrong_overrides_name_the_key_and_the_argument(override: str, key: str) -> None:
    with pytest.raises(UserError) as e:
        load_config(None, [override])
    message = str(e.value)
    where, _, what = message.partition(": ")
    assert "\n" not in message and key in message
    if override not in ("model.encoder.rnn=gru", "loss.am_scale=0.8"):  # they contradict base.yaml, which is named
        assert where == f"argument '{override}'"
    else:
        assert where == f"conf/base.yaml:{line_of_base(key)}" and f"'{key}'" in what


def line_of_base(key: str) -> int:
    """Return the line of a key in base.yaml, found by its indentation."""
    names: list[str] = []
    for number, line in enumerate((CONF_DIR / "base.yaml").read_text().splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            names[(len(line) - len(line.lstrip())) // 2 :] = [line.split(":")[0].strip()]
            if ".".join(names) == key:
                return number
    raise AssertionError(key)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("train:\n  # first\n  epochs: 3\n", "3", ["train.epochs", "train.num_epochs"]),
        ("optim:\n  lr: 0.1\n  momentum: 3\n", "3", ["optim.momentum", "3.0", "0 to 1"]),
        ("optim:\n  name: eva\n", "2", ["optim.name", "eva", "eve"]),
        ("tune:\n  lm_scale:\n    - 1\n    - -2\n", "2", ["tune.lm_scale", "-2"]),
        ("train:\n  seed: [1]\n", "2", ["train.seed", "[1]"]),
        ("train: 3\n", "1", ["train", "3"]),
        ("train.seed: 3\n", "1", ["train.seed"]),
        ("decode:\n  by_method:\n    greedy_search: {beam: 0}\n", "3", ["decode.by_method.greedy_search.beam"]),
        ("decode:\n  by_method:\n    greedy_search: {bean: 1}\n", "3", ["by_method.greedy_search.beam?"]),
        ("include: [model/none.yaml]\n", "1", ["model/none.yaml"]),
        ("\ninclude: 3\n", "2", ["include"]),
        ("optim:\n  lr: 0.1\n  lr: 0.2\n", "3:3", ["optim.lr"]),
        ("optim:\n  lr: 0.1\ntrain: [1\ndata:\n  num_buckets: 3\n", "3:8", ["train"]),
        ("optim:\n  lr: 0.1\n   momentum: 0.2\n", "3:12", ["momentum"]),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, text: str, place: str, words: list[str]) -> None:
    conf = tmp_path / "mine.yaml"
    conf.write_text(text)
    with pytest.raises(UserError) as e:
        load_config(conf)
    assert str(e.value).startswith(f"{conf}:{place}: ") and "\n" not in str(e.value)
    assert all(word in str(e.value) for word in words), str(e.value)


@pytest.mark.parametrize("text", [None, "- 1\n- 2\n", "include: [mine.yaml]\n"])
def test_unusable_files_are_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_config(tmp_path / "mine.yaml")


def test_an_error_names_the_included_file(tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text("optim:\n  lr: -1\n")
    (tmp_path / "mine.yaml").write_text("include: [inner.yaml]\ntrain: {seed: 1}\n")
    with pytest.raises(UserError, match=r"inner\.yaml:2: .*'optim\.lr'"):
        load_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("key", "suggestions"),
    [
        ("train.lr", ["optim.lr", "lm.lr"]),
        ("train.num_epoch", ["train.num_epochs"]),
        ("trian.num_epochs", ["train.num_epochs", "ablation.num_epochs"]),
        ("encoder.dropout", ["model.encoder.dropout", "lm.dropout"]),
        ("train.weight_decy", ["optim.weight_decay"]),
        ("decode.by_method.greedy_search.bem", ["decode.by_method.greedy_search.beam"]),
        ("nonsense.key", []),
    ],
)
def test_an_unknown_key_suggests_known_ones_of_any_section(key: str, suggestions: list[str]) -> None:
    with pytest.raises(UserError) as e:
        load_config(None, [f"{key}=3"])
    hint = str(e.value).partition(f"'{key}'; ")[2]
    assert [word for word in hint.rstrip("?").split() if "." in word and word != "conf/base.yaml"] == suggestions


def test_order_of_layers(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lr: 0.1, momentum: 0.5}\n")
    (tmp_path / "mine.yaml").write_text("include: [base.yaml]\noptim: {lr: 0.2}\n")
    cfg = load_config(tmp_path / "mine.yaml", ["optim.lr_epochs=3"])
    # conf/ has a base.yaml of its own, which is found first: names relative to conf/ win
    assert (cfg.optim.lr, cfg.optim.lr_epochs) == (0.2, 3.0)
    (tmp_path / "other.yaml").write_text("optim: {lr: 0.1, momentum: 0.5}\n")
    (tmp_path / "mine.yaml").write_text("include: [other.yaml]\noptim: {lr: 0.2}\n")
    cfg = load_config(tmp_path / "mine.yaml", ["optim.lr=0.3"])
    assert (cfg.optim.lr, cfg.optim.momentum) == (0.3, 0.5)


def test_the_config_of_an_experiment_is_a_conf(tmp_path: Path) -> None:
    cfg = load_config(None, ["data.train_parts=[a,b]", "optim.lr=0.01"])
    path = tmp_path / "config.yaml"
    origin = {"config": to_dict(cfg), "git_commit": "abc", "versions": {}, "tokens_hash": "", "vocab_size": 8}
    write_config(origin, path, max_duration=60.0, parameters=1)
    assert load_config(path) == cfg
    path.write_text("run: {seed: 1}\n")
    with pytest.raises(UserError, match="run.seed"):
        load_config(path)


def test_survives_a_checkpoint() -> None:
    cfg = load_config(None, ["data.train_parts=[a,b]", "optim.lr=0.01"])
    assert config_from_dict(to_dict(cfg)) == cfg
    older = to_dict(cfg)
    del older["decode"]["temperature"]
    older["data"]["shuffle_buffer"] = 20000  # a removed key
    assert config_from_dict(older) == cfg
    assert config_from_dict(older, ["decode.beam=7"]).decode.beam == 7
    older["data"]["shuffle_bufer"] = 20000
    with pytest.raises(UserError, match="shuffle_bufer"):
        config_from_dict(older)


def test_renamed_keys_are_read_with_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "mine.yaml"
    conf.write_text("data:\n  num_buckets: 3\n  max_duration: 12\n")
    for _ in range(2):  # a program may load its configuration twice: one line is enough
        data = load_config(conf, ["data.min_duration=0.5"]).data
        assert (data.min_utterance_seconds, data.max_utterance_seconds) == (0.5, 12.0)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{conf}:3: ") and "'data.max_duration'" in first and "'data.max_utterance_seconds'" in first
    assert "'data.min_duration=0.5'" in second and "'data.min_utterance_seconds'" in second
    assert load_config(conf, ["data.max_utterance_seconds=9"]).data.max_utterance_seconds == 9.0
    conf.write_text("data:\n  max_duration: -12\n")
    with pytest.raises(UserError, match=r"mine\.yaml:2: key 'data\.max_utterance_seconds'"):
        load_config(conf)
    conf.write_text("data:\n  max_utterance_seconds: 3\n  max_duration: 12\n")
    with pytest.raises(UserError, match=r"mine\.yaml:3: 'data\.max_duration'"):
        load_config(conf)
    with pytest.raises(UserError, match=r"arguments: 'data\.max_duration'"):
        load_config(None, ["data.max_duration=3", "data.max_utterance_seconds=3"])
    capsys.readouterr()
    older = to_dict(load_config(None, ["data.min_utterance_seconds=0.7"]))
    older["data"]["min_duration"] = older["data"].pop("min_utterance_seconds")
    before = json.dumps(older)
    assert config_from_dict(older).data.min_utterance_seconds == 0.7
    assert json.dumps(older) == before and capsys.readouterr().err == ""  # nothing can be done about a checkpoint


def test_base_has_a_comment_for_every_key() -> None:
    text = (CONF_DIR / "base.yaml").read_text()
    leaves = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#") and not line.endswith(":")
    ]
    by_method = sum(len(own) for own in load_config(None).decode.by_method.values())
    assert len(leaves) == len(key_types()) - 1 + by_method
    assert [line.split(":")[0].strip() for line in leaves if "#" not in line] == []


def test_settings_of_single_methods() -> None:
    cfg = load_config(None, ["decode.by_method.modified_beam_search.beam=8", "decode.lm_scale=0.7"])
    own, plain = cfg.decode.of_method("modified_beam_search"), cfg.decode.of_method("greedy_search")
    assert (own.beam, own.lm_scale, plain.beam, plain.lm_scale) == (8, 0.7, 4, 0.7)
    assert type(cfg.decode.of_method("fast_beam_search_LG").max_states) is int
    assert config_from_dict(to_dict(cfg)) == cfg


def test_flat_lines_are_one_key_each() -> None:
    lines = flat_lines(
        load_config(None, ["lm.train=yes", 'decode.hotwords="my # words.txt"', "decode.methods=[greedy_search]"])
    )
    by_method = sum(len(own) for own in load_config(None).decode.by_method.values())
    assert len(lines) == by_method + len(key_types()) - 1
    values = {key: json.loads(value) for key, _, value in (line.partition(" ") for line in lines)}
    assert values["lm.train"] is True and values["decode.hotwords"] == "my # words.txt"
    assert values["decode.methods"] == ["greedy_search"] and values["decode.by_method.fast_beam_search_LG.max_states"] == 64


def program(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "local.config", *args], capture_output=True, text=True, cwd=ROOT)


def test_program_prints_the_flat_lines_or_one_error() -> None:
    done = program("--conf", "egs/tiny/conf/tiny.yaml", "optim.lr=0.01")
    expected = flat_lines(load_config(ROOT / "egs/tiny/conf/tiny.yaml", ["optim.lr=0.01"]))
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, expected, "")
    wrong = program("train.num_epoch=3")
    assert wrong.returncode == 1 and wrong.stdout == "" and wrong.stderr.count("\n") == 1 and "train.num_epoch'" in wrong.stderr


def test_the_configuration_is_read_without_slow_imports() -> None:
    """run.sh reads it on each call: torch alone would take seconds."""
    code = "import sys, local.config.__main__; print({'torch', 'lhotse', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"
