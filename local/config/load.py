"""The configuration: typed dataclasses, filled by conf/base.yaml, an experiment's YAML and `key.sub=value` arguments.

The defaults stand in conf/base.yaml alone; the dataclasses of schema.py give the types. Unknown keys, wrong types and
impossible combinations are `UserError`s that name the key and where it was written.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.config.methods import METHODS
from local.config.schema import AUTO, Config

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"

CHOICES: dict[str, tuple[str, ...]] = {
    "model.encoder.rnn": ("lstm", "gru", "rnn"),
    "model.encoder.norm": ("basic", "layer", "batch", "group", "instance", "none"),
    "model.encoder.activation": ("double_swish", "relu", "sigmoid", "tanh"),
    "gradient.control": ("filter", "clip", "none"),
    "loss.backend": ("native", "k2", "torchaudio", "auto"),
    "optim.name": ("eve", "adam", "adamw", "sgd", "momentum", "adagrad", "rmsprop", "scaled_adam"),
    "train.precision": ("float32", "bf16", "fp16"),
    "features.type": ("on_the_fly", "precomputed"),
    "average.mode": ("running", "plain"),
    "average.unit": ("epoch", "step"),
    "decode.fast_beam_backend": ("native", "k2"),
}
# What each list of section `tune` has values for.
TUNED = {"average_num": "average.num"} | {
    key: f"decode.{key}" for key in ("blank_penalty", "lm_scale", "lodr_scale", "ngram_scale", "ilm_scale")
}
# Keys of section `decode` that the methods of a run share, so that `by_method` cannot have them.
SHARED = ("methods", "max_duration", "tail_frames", "max_utterances", "num_threads", "by_method")

# Smallest allowed value by key.
AT_LEAST: dict[str, float] = {
    "model.encoder.num_layers": 1, "model.encoder.d_model": 1, "model.encoder.rnn_hidden_size": 1,
    "model.encoder.dim_feedforward": 1, "model.encoder.dropout": 0, "model.encoder.layer_dropout": 0,
    "model.encoder.balance_prob": 0, "model.decoder.dim": 1, "model.decoder.context_size": 1, "model.joiner.dim": 1,
    "loss.prune_range": 2, "loss.am_scale": 0, "loss.lm_scale": 0, "loss.simple_scale": 0, "optim.lr": 0,
    "optim.weight_decay": 0, "train.num_epochs": 1, "train.max_steps": 0, "train.batch_seconds": 0, "train.warm_step": 1,
    "train.average_period": 1, "train.keep_last": 0, "train.save_every": 0, "train.valid_every": 0,
    "train.log_every": 1, "train.max_bad_steps": 0, "train.num_threads": 0, "features.num_mel_bins": 9,
    "data.num_workers": -1, "data.num_buckets": 1, "data.shuffle_shards": 1, "data.min_duration": 0,
    "lang.vocab_size": 4, "lm.dim": 1, "lm.hidden": 1, "lm.num_layers": 1, "lm.batch_tokens": 1, "lm.max_epochs": 1,
    "lm.patience": 1, "average.last": 0, "average.num": 1, "decode.tail_frames": 0, "decode.max_utterances": 0,
    "decode.max_sym_per_frame": 1, "decode.beam": 1, "decode.max_contexts": 1, "decode.max_states": 1,
    "decode.lm_scale": 0, "decode.lodr_scale": 0, "decode.ngram_scale": 0, "decode.ilm_scale": 0, "decode.num_threads": 0,
    "train.seed": 0, "augment.time_warp_factor": 0, "augment.num_feature_masks": 0, "augment.features_mask_size": 0,
    "augment.num_frame_masks": 0, "augment.frames_mask_size": 0, "features.sampling_rate": 1000,
    "ablation.num_epochs": 1, "ablation.jobs": 0,
}  # fmt: skip
MORE_THAN_0 = (
    "gradient.threshold", "gradient.clip_norm", "optim.lr_batches", "optim.lr_epochs", "data.max_duration",
    "data.shard_cache", "lm.lr", "decode.max_duration", "decode.fast_beam", "decode.temperature",
)  # fmt: skip
# Largest value that is no slip of the pen: with more, building the model or a search would not end.
AT_MOST: dict[str, float] = {
    "model.encoder.num_layers": 1000, "model.decoder.context_size": 1000, "loss.prune_range": 10_000, "lm.num_layers": 1000,
    "train.num_threads": 4096, "decode.num_threads": 4096, "data.num_workers": 1024, "data.num_buckets": 10_000,
    "features.sampling_rate": 1_000_000, "features.num_mel_bins": 2000, "lang.vocab_size": 1_000_000, "decode.beam": 10_000,
    "decode.tail_frames": 100_000, "decode.max_sym_per_frame": 1000, "decode.max_contexts": 100_000,
    "decode.max_states": 1_000_000, "augment.num_feature_masks": 1000, "augment.num_frame_masks": 1000,
}  # fmt: skip
REMOVED_KEYS = {"data.shuffle_buffer"}  # keys that meant nothing for a model once trained
AT_MOST_1 = (
    "model.encoder.dropout", "model.encoder.layer_dropout", "model.encoder.balance_prob", "loss.am_scale",
    "loss.lm_scale", "augment.musan_prob", "augment.max_frames_mask_fraction", "lang.character_coverage",
    "lm.dropout", "optim.momentum",
)  # fmt: skip


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Resolve conf/base.yaml, then `path` (with what it includes), then `overrides` ("key.sub=value").

    Raises `UserError` naming the key and its file for an unknown key, a wrong type or an impossible value.
    """
    cfg = OmegaConf.structured(Config)
    written_in: dict[str, str] = {}
    files = [CONF_DIR / "base.yaml"] + ([] if path is None else _with_includes(Path(path), ()))
    for file in files:
        layer = _read_yaml(file)
        layer.pop("include", None)
        cfg = _merge(cfg, layer, str(file), written_in)
    cfg = _resolve(_override(cfg, overrides, written_in), written_in)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{CONF_DIR / 'base.yaml'}: no value for {', '.join(missing)}")
    _check(cfg, written_in)
    return OmegaConf.to_object(cfg)  # type: ignore[return-value]


def config_from_dict(values: dict[str, Any], overrides: Sequence[str] = (), where: str = "checkpoint") -> Config:
    """The typed config kept in a checkpoint. Of older files, keys that are `GONE` are passed over, and those they do not have
    yet take conf/base.yaml's values."""
    written_in: dict[str, str] = {}
    cfg = _merge(OmegaConf.structured(Config), _read_yaml(CONF_DIR / "base.yaml"), "conf/base.yaml", written_in)
    known = {name: {k: v for k, v in part.items() if f"{name}.{k}" not in REMOVED_KEYS} if isinstance(part, dict) else part
             for name, part in values.items()}  # fmt: skip
    cfg = _merge(cfg, OmegaConf.create(known), where, written_in)
    cfg = _resolve(_override(cfg, overrides, written_in), written_in)
    _check(cfg, written_in)
    return OmegaConf.to_object(cfg)  # type: ignore[return-value]


def to_dict(cfg: Config) -> dict[str, Any]:
    """The config as plain dicts and lists, fit for YAML and checkpoints."""
    return OmegaConf.to_container(OmegaConf.structured(cfg))  # type: ignore[return-value]


def to_yaml(cfg: Config) -> str:
    """The config as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def config_hash(*parts: Any) -> str:
    """A short hash of config sections (dataclasses, dicts or strings)."""
    texts = [p if isinstance(p, str) else OmegaConf.to_yaml(OmegaConf.create(p)) for p in parts]  # type: ignore[arg-type]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _with_includes(path: Path, seen: tuple[Path, ...]) -> list[Path]:
    """`path` preceded by the files it includes (named relative to conf/ or to the file itself), depth first."""
    if path in seen:
        raise UserError(f"{path}: includes itself")
    files: list[Path] = []
    layer: Any = OmegaConf.to_container(_read_yaml(path))
    included = layer.get("include") or []
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise UserError(f"{path}: key 'include': a list of files is meant")
    for name in included:
        candidates = [CONF_DIR / name, path.parent / name]
        found = next((c for c in candidates if c.is_file()), None)
        if found is None:
            raise UserError(f"{path}: include '{name}' is neither in {CONF_DIR} nor beside the file")
        files += _with_includes(found, (*seen, path))
    return [*files, path]


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(f"config file {path} does not exist")
    try:
        layer = OmegaConf.load(path)
    except Exception as e:
        raise UserError(f"{path}: not valid YAML: {_first_line(e)}") from None
    if not isinstance(layer, DictConfig):
        raise UserError(f"{path}: a config is a mapping of keys to values")
    return layer


def _merge(cfg: DictConfig, layer: DictConfig, where: str, written_in: dict[str, str]) -> DictConfig:
    try:
        merged = OmegaConf.merge(cfg, layer)
    except OmegaConfBaseException as e:
        key = getattr(e, "full_key", None) or "?"
        raise UserError(f"{where}: key '{key}': {_first_line(e)}") from None
    except (ValueError, TypeError) as e:
        raise UserError(f"{where}: {_first_line(e)}") from None
    for key in _leaves(layer):
        written_in[key] = where
    return merged  # type: ignore[return-value]


def _override(cfg: DictConfig, overrides: Sequence[str], written_in: dict[str, str]) -> DictConfig:
    """`key.sub=value` arguments, in their order."""
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"'{override}' is no key.sub=value override")
        try:
            layer = OmegaConf.from_dotlist([override])
        except Exception as e:
            raise UserError(f"cannot read the override '{override}': {_first_line(e)}") from None
        cfg = _merge(cfg, layer, f"the argument '{override}'", written_in)
    return cfg


def _resolve(cfg: DictConfig, written_in: dict[str, str]) -> DictConfig:
    """With the values that `${key}` stands for."""
    try:
        OmegaConf.resolve(cfg)
    except (OmegaConfBaseException, RecursionError) as e:
        key = getattr(e, "full_key", None) or "?"
        raise UserError(f"{written_in.get(key, 'the configuration')}: key '{key}': {_first_line(e)}") from None
    return cfg


def _leaves(layer: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in layer:
        full = f"{prefix}{name!s}"
        value = layer._get_node(name)  # not resolved: a value may be null
        keys += _leaves(value, full + ".") if isinstance(value, DictConfig) and not value._is_none() else [full]
    return keys


def _check(cfg: DictConfig, written_in: dict[str, str]) -> None:
    """Impossible values and combinations; the message names key, value and where it was written."""

    def fail(key: str, why: str) -> None:
        raise UserError(f"{written_in.get(key, 'conf/base.yaml')}: key '{key}' is {OmegaConf.select(cfg, key)}: {why}")

    _check_max_duration(cfg, fail)
    _check_values(cfg, fail)
    for method in cfg.decode.methods:
        if method not in METHODS:
            fail("decode.methods", f"'{method}' is none of {', '.join(METHODS)}")
    if cfg.ablation.method not in METHODS:
        fail("ablation.method", f"one of {', '.join(METHODS)} is meant")
    if not set(cfg.ablation.controls) <= set(CHOICES["gradient.control"]):
        fail("ablation.controls", f"some of {', '.join(CHOICES['gradient.control'])} are meant")
    for key in ("controls", "seeds"):
        if not cfg.ablation[key] or len(set(cfg.ablation[key])) < len(cfg.ablation[key]):
            fail(f"ablation.{key}", "a list without repetitions is meant")
    for name, target in TUNED.items():
        if any(value < AT_LEAST.get(target, value) for value in cfg.tune[name]):
            fail(f"tune.{name}", f"at least {AT_LEAST[target]} is needed")
    _check_methods(cfg, written_in)
    encoder = cfg.model.encoder
    if encoder.rnn_hidden_size < encoder.d_model:
        fail("model.encoder.rnn_hidden_size", "the projection cannot be wider than the cells (d_model)")
    if encoder.rnn != "lstm" and encoder.rnn_hidden_size != encoder.d_model:
        fail("model.encoder.rnn_hidden_size", f"'{encoder.rnn}' has no projection: it must equal d_model")
    if cfg.loss.am_scale + cfg.loss.lm_scale > 1:
        fail("loss.lm_scale", "am_scale + lm_scale must not exceed 1")
    if cfg.loss.backend == "torchaudio" and cfg.loss.delay_penalty != 0:
        fail("loss.delay_penalty", "the torchaudio backend has no delay penalty")
    if len(cfg.augment.musan_snr) != 2:
        fail("augment.musan_snr", "two numbers are meant: lowest and highest dB")


def _check_max_duration(cfg: DictConfig, fail: Callable[[str, str], None]) -> None:
    """train.max_duration is a float from here on, or "auto": no type of OmegaConf's lets both in and all else out."""
    key = "train.max_duration"
    value = OmegaConf.select(cfg, key)
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if seconds > 0:
        cfg.train.max_duration = seconds
    elif value != AUTO:
        fail(key, f"a number above 0, or {AUTO}, is meant")


def _check_values(cfg: DictConfig, fail: Callable[[str, str], None]) -> None:
    """Each value on its own, by the tables above."""
    for key in _leaves(cfg):
        value = OmegaConf.select(cfg, key)
        for item in value if isinstance(value, ListConfig) else [value]:
            if isinstance(item, Container) and not (key == "decode.by_method" and not item):
                fail(key, "plain values are meant")
            if isinstance(item, float) and not math.isfinite(item) and not (key.endswith("max_duration") and item > 0):
                fail(key, "a finite number is meant")
    for key, allowed in CHOICES.items():
        if OmegaConf.select(cfg, key) not in allowed:
            fail(key, f"one of {', '.join(allowed)} is meant")
    for key, least in AT_LEAST.items():
        if not OmegaConf.select(cfg, key) >= least:
            fail(key, f"at least {least} is needed")
    for key in MORE_THAN_0:
        if not OmegaConf.select(cfg, key) > 0:
            fail(key, "more than 0 is needed")
    for key in AT_MOST_1:
        if not 0 <= OmegaConf.select(cfg, key) <= 1:
            fail(key, "0 to 1 is meant")
    for key, most in AT_MOST.items():
        if not OmegaConf.select(cfg, key) <= most:
            fail(key, f"at most {most} is meant")


def _check_methods(cfg: DictConfig, written_in: dict[str, str]) -> None:
    """What decode.by_method says of each method: as if it stood in section `decode` itself."""
    for method, own in cfg.decode.by_method.items():
        wrong = [key for key in own if key in SHARED]
        if method not in METHODS or wrong:
            known = f"the methods are {', '.join(METHODS)}" if method not in METHODS else "it is one for all methods"
            key = ".".join(["decode.by_method", method, *wrong[:1]])
            raise UserError(f"{written_in.get(key, 'decode.by_method')}: key '{key}': {known}")
        where = next((file for key, file in written_in.items() if key.startswith(f"decode.by_method.{method}.")), "")
        single = copy.deepcopy(cfg)
        single.decode.by_method = {}
        single = _merge(single, OmegaConf.create({"decode": {**own}}), where, {})
        _check(single, {f"decode.{key}": f"{where}, by_method.{method}" for key in own})


def _first_line(e: Exception) -> str:
    return str(e).strip().split("\n")[0]
