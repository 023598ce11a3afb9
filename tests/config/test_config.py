"""Every wrong configuration stops with one line that names the key and where it was written."""

from __future__ import annotations

from pathlib import Path

from local.common.errors import UserError
from local.config.load import CONF_DIR, config_from_dict, load_config, to_dict

import pytest
from omegaconf import OmegaConf

CONFS = [*CONF_DIR.glob("*/*.yaml"), *CONF_DIR.parent.glob("egs/*/conf/*.yaml")]


@pytest.mark.parametrize("path", CONFS, ids=lambda p: str(p.relative_to(CONF_DIR.parent)))
def test_every_committed_conf_loads(path: Path) -> None:
    assert load_config(path) != load_config(None), "a conf that changes nothing"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.encoder.num_layer=3", "model.encoder.num_layer"),
        ("model.encoder.num_layers=three", "model.encoder.num_layers"),
        ("gradient.control=clipping", "gradient.control"),
        ("optim.lr=-1", "optim.lr"),
        ("loss.lm_scale=1.5", "loss.lm_scale"),
        ("loss.prune_range=1", "loss.prune_range"),
        ("model.encoder.rnn=gru", "model.encoder.rnn_hidden_size"),
        ("decode.methods=[beam]", "decode.methods"),
        ("nothing=1", "nothing"),
        ("decode.lm_scale=-0.1", "decode.lm_scale"),
        ("decode.by_method.greedy.beam=3", "decode.by_method.greedy"),
        ("decode.by_method.greedy_search.tail_frames=3", "decode.by_method.greedy_search.tail_frames"),
        ("decode.by_method.greedy_search.bem=3", "decode.bem"),
        ("decode.by_method.modified_beam_search.beam=0", "by_method.modified_beam_search"),
        ("decode.by_method.modified_beam_search.beam=many", "decode.by_method.modified_beam_search.beam"),
        ("tune.lm_scale=[0.1,-0.1]", "tune.lm_scale"),
        ("tune.average_num=[0]", "tune.average_num"),
        ("tune.beam=[4]", "tune.beam"),
    ],
)
def test_wrong_overrides_name_the_key(override: str, key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as e:
        load_config(None, [override])
    assert "\n" not in str(e.value)


def test_errors_name_the_file(tmp_path: Path) -> None:
    conf = tmp_path / "mine.yaml"
    conf.write_text("train:\n  epochs: 3\n")
    with pytest.raises(UserError, match=r"mine\.yaml.*train\.epochs"):
        load_config(conf)
    conf.write_text("train: [1\n")
    with pytest.raises(UserError, match=r"mine\.yaml: not valid YAML"):
        load_config(conf)
    conf.write_text("include: [model/none.yaml]\n")
    with pytest.raises(UserError, match=r"mine\.yaml: include 'model/none\.yaml'"):
        load_config(conf)
    conf.write_text("include: [mine.yaml]\n")
    with pytest.raises(UserError, match="includes itself"):
        load_config(conf)
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "other.yaml")


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


def test_survives_a_checkpoint() -> None:
    cfg = load_config(None, ["data.train_parts=[a,b]", "optim.lr=0.01"])
    assert config_from_dict(to_dict(cfg)) == cfg
    older = to_dict(cfg)
    del older["decode"]["temperature"]
    older["data"]["shuffle_buffer"] = 20000  # meant something once
    assert config_from_dict(older) == cfg
    assert config_from_dict(older, ["decode.beam=7"]).decode.beam == 7
    older["data"]["shuffle_bufer"] = 20000
    with pytest.raises(UserError, match="shuffle_bufer"):
        config_from_dict(older)


def test_base_has_a_comment_for_every_key() -> None:
    text = (CONF_DIR / "base.yaml").read_text()
    leaves = [line for line in text.splitlines() if line.strip() and not line.startswith("#") and not line.endswith(":")]
    assert len(leaves) == len(_leaves(OmegaConf.load(CONF_DIR / "base.yaml")))
    bare = [line.split(":")[0].strip() for line in leaves if "#" not in line]
    assert bare == ["dev_parts", "test_parts", "methods"]  # said on the line above, or by their own value


def test_settings_of_single_methods() -> None:
    cfg = load_config(None, ["decode.by_method.modified_beam_search.beam=8", "decode.lm_scale=0.7"])
    own, plain = cfg.decode.of_method("modified_beam_search"), cfg.decode.of_method("greedy_search")
    assert (own.beam, own.lm_scale, plain.beam, plain.lm_scale) == (8, 0.7, 4, 0.7)
    assert type(cfg.decode.of_method("fast_beam_search_LG").max_states) is int
    assert config_from_dict(to_dict(cfg)) == cfg


def _leaves(node: object) -> list[object]:
    if OmegaConf.is_dict(node):
        return [leaf for key in node for leaf in _leaves(node._get_node(key))]  # type: ignore[attr-defined]
    return [node]
