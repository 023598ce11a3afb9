"""Load the configuration: conf/base.yaml (all defaults), an experiment's YAML and `key.sub=value` arguments, in this order."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local.common.errors import UserError, reason
from local.common.text_files import is_file
from local.config import keys
from local.config.limits import FileName, check_of, find_problems, shown
from local.config.plain import chained, problem_of
from local.config.schema import Config
from local.config.text_rules import check_rules, inline_rules

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
REMOVED_KEYS = (("data", "shuffle_buffer"),)  # of old checkpoints; a trained model does not depend on them
MOST_FILES, DEEPEST_INCLUDE = 100, 10  # of `include`; files count as often as they are included
OLDER_VALUES = (("lang", "normalise", "none"),)  # of keys that old checkpoints lack, where today's default would be wrong


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Resolve conf/base.yaml, then `path` with its includes, then `overrides`. Raises `UserError` naming key, file and line."""
    layers = _Layers()
    for values, source in [] if path is None else _Includes(Path(path)).layers:
        layers.add(values, source)
    return layers.resolve(overrides)


def config_from_dict(values: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "checkpoint") -> Config:
    """Return the config of a checkpoint's plain values, changed by `overrides`. Messages name `where` instead of a file.

    Older checkpoints are read too: removed keys are ignored, and missing keys take `OLDER_VALUES` or those of conf/base.yaml.
    The values may come from anybody: they are plain, `${...}` in them is refused, and rules in them are not names of files.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: its configuration is damaged: not sections with keys")
    if (problem := problem_of(dict(values), stored=True)) is not None:
        raise UserError(f"{where}: key '{problem[0]}': {problem[1]}")
    known = copy.deepcopy(dict(values))
    for section, name in REMOVED_KEYS:
        if isinstance(known.get(section), dict):
            known[section].pop(name, None)
    for section, name, value in OLDER_VALUES:
        if isinstance(known.get(section), dict):
            known[section].setdefault(name, value)
    layers = _Layers()
    layers.add(known, keys.Source(where), announce=False)
    check_rules(layers.cfg.lang.rules, where)
    return layers.resolve(overrides)


def to_dict(cfg: Config) -> dict[str, Any]:
    """Return the config as plain dicts and lists, fit for YAML and checkpoints."""
    return OmegaConf.to_container(OmegaConf.structured(cfg))  # type: ignore[return-value]


def flat_lines(cfg: Config) -> list[str]:
    """Return one line `section.key VALUE` per key, with VALUE as JSON. run.sh compares the settings of stages by them."""
    return [f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in keys.leaves(to_dict(cfg))]


def named_files(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the keys of a configuration that name files, with their values; `values` are those of `to_dict`."""
    types = keys.key_types()
    kinds = ((key, value, types.get(re.sub(r"by_method\.[^.]+\.", "", key))) for key, value in keys.leaves(values))
    return [(key, str(value)) for key, value, kind in kinds if value and isinstance(check_of(kind), FileName)]


def config_hash(*parts: Any) -> str:
    """Return a short hash of config sections (dataclasses, dicts or strings)."""
    texts = [p if isinstance(p, str) else OmegaConf.to_yaml(OmegaConf.create(p)) for p in parts]  # type: ignore[arg-type]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


@functools.cache
def _base() -> tuple[dict[str, Any], keys.Source]:
    return keys.read_config_file(CONF_DIR / "base.yaml", "conf/base.yaml")


class _Includes:
    """The values of a file after those of the files that it includes (relative to conf/ or to the file), depth first."""

    def __init__(self, path: Path) -> None:
        self.layers: list[tuple[dict[str, Any], keys.Source]] = []
        self._read = functools.cache(keys.read_config_file)
        self._count = 0
        self._add(path, ())

    def _add(self, path: Path, seen: tuple[Path, ...]) -> None:
        values, source = self._read(path)
        values = copy.deepcopy(values)  # the file may be included once more
        if isinstance(made := values.get("run"), dict) and "git_commit" in made:  # an experiment's config.yaml
            del values["run"]
        where, included = source.of("include"), values.pop("include", None) or []
        if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
            raise UserError(f"{where}: key 'include' must be a list of files")
        self._count += len(included)
        if self._count > MOST_FILES or len(seen) > DEEPEST_INCLUDE:
            raise UserError(f"{where}: key 'include': more than {MOST_FILES} files, or more than {DEEPEST_INCLUDE} deep")
        for name in included:
            found = next((c for c in (CONF_DIR / name, path.parent / name) if is_file(c)), None)
            if found is None:
                raise UserError(f"{where}: key 'include': '{name}' is neither in {CONF_DIR} nor beside the file")
            if found.resolve() in (*seen, path.resolve()):
                raise UserError(f"{where}: key 'include': '{name}' includes this file: a circle")
            self._add(found, (*seen, path.resolve()))
        self.layers.append((values, source))


class _Layers:
    """The configuration while it is put together, and where each value was written last."""

    def __init__(self) -> None:
        self.cfg = OmegaConf.structured(Config)
        self.written_in: dict[str, str] = {}
        self.add(*_base())

    def add(self, values: dict[str, Any], source: keys.Source, announce: bool = True) -> None:
        """Put `values` over those of earlier layers. announce: print a line for each key with an old name."""
        if (problem := problem_of(values, stored=False)) is not None:
            raise UserError(f"{source.of(problem[0])}: key '{problem[0]}': {problem[1]}")
        keys.rename_old_keys(values, source, announce)
        types, written = keys.key_types(), [key for key, _ in keys.leaves(values)]
        for key in written:
            own = re.fullmatch(r"decode\.by_method\.[^.]+\.(.+)", key)
            if own and f"decode.{own[1]}" not in types:
                raise keys.unknown_key(source, key)
        self._forget_mix(values, source)
        try:
            layer = OmegaConf.create(values)
            self.cfg = OmegaConf.merge(self.cfg, layer)
        except (OmegaConfBaseException, ValueError, TypeError) as e:
            sections = (key for key in written if any(name.startswith(f"{key}.") for name in types))
            # OmegaConf does not name a section that has a value.
            if not (key := _key_of(e) or next(sections, "")):
                raise UserError(f"{source.name}: {reason(e)}") from None
            if isinstance(e, ConfigKeyError):
                first = next(name for name in written if f"{name}.".startswith(f"{key}."))
                raise keys.unknown_key(source, first) from None
            raise keys.wrong_type(source, key, OmegaConf.select(layer, key)) from None
        self.written_in |= {key: source.of(key) for key in written}

    def _forget_mix(self, values: dict[str, Any], source: keys.Source) -> None:
        """Remove the mix of earlier layers if `values` have one: shares belong together, so mixes are not merged."""
        data = values.get("data")
        if not self.written_in or not isinstance(data, dict) or "mix" not in data:
            return
        mix = data["mix"]
        if isinstance(mix, list) or isinstance(mix, dict) and any(isinstance(v, dict | list | None) for v in mix.values()):
            raise keys.wrong_type(source, "data.mix", mix)  # OmegaConf's own error has no key, or there is none
        OmegaConf.update(self.cfg, "data.mix", None)
        self.written_in = {k: place for k, place in self.written_in.items() if not f"{k}.".startswith("data.mix.")}

    def resolve(self, overrides: Sequence[str]) -> Config:
        """Return the typed config, with the overrides in it and every `${key}` replaced by its value."""
        self._override(overrides)
        if (problem := chained(OmegaConf.to_container(self.cfg))) is not None:  # type: ignore[arg-type]
            self._fail(problem[0], f": {problem[1]}")
        try:
            OmegaConf.resolve(self.cfg)
        except OmegaConfBaseException as e:
            self._fail(_key_of(e), f": {reason(e)}")
        for key in sorted(OmegaConf.missing_keys(self.cfg)):
            self._fail(key, " has no value")
        cfg: Config = OmegaConf.to_object(self.cfg)  # type: ignore[assignment]
        for key, why in find_problems(cfg):
            self._fail(key, f" is {shown(OmegaConf.select(self.cfg, key))}: {why}")
        cfg.lang.rules = inline_rules(cfg.lang.rules, self.written_in.get("lang.rules", "conf/base.yaml"))
        return cfg

    def _override(self, overrides: Sequence[str]) -> None:
        for override in overrides:
            key, equals, _ = override.partition("=")
            if not equals or not key:
                raise UserError(f"argument '{override}': must be key.sub=value")
            source = keys.Source(f"argument '{override}'")
            try:
                values: Any = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
            except Exception as e:  # of OmegaConf and of the YAML parser
                raise UserError(f"{source.name}: {getattr(e, 'problem', None) or reason(e)}") from None
            self.add(values, source)
        together: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
        keys.rename_old_keys(together, keys.Source("arguments"), False)  # raises if a key has its old and its new name

    def _fail(self, key: str, why: str) -> None:
        places = (place for name, place in self.written_in.items() if f"{name}.".startswith(f"{key}."))
        raise UserError(f"{next(places, 'conf/base.yaml')}: key '{key}'{why}")


def _key_of(e: BaseException) -> str:
    """Return the key that an error of OmegaConf is about, without the index of a list's item; "" if it has none."""
    return (getattr(e, "full_key", None) or "").partition("[")[0]
