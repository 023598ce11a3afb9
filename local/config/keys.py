"""The names of keys: the places that set them, old names, and suggestions for misspelled ones."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.common.text_files import read_yaml
from local.common.yaml_bounds import compose
from local.config.limits import describe, shown, types_of
from local.config.schema import Config

import yaml
from omegaconf import OmegaConf

# Sections, with the old and the new names of a key.
RENAMED_KEYS = (("data", "min_duration", "min_utterance_seconds"), ("data", "max_duration", "max_utterance_seconds"))
MAX_SUGGESTIONS = 3
TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # of the nodes of YAML that can be keys


@dataclass(frozen=True)
class Source:
    """A file, a checkpoint or an argument that gives values to keys; `lines` of the keys if it is a file."""

    name: str
    lines: dict[str, int] = field(default_factory=dict)

    def of(self, key: str) -> str:
        """Return where `key` is written: "FILE:LINE". A key without a line has that of the section above it."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.name}:{self.lines[key]}" if key else self.name


def read_config_file(path: Path, name: str = "") -> tuple[dict[str, Any], Source]:
    """Return the values of a YAML file and where they are written; `name` stands for the path in messages."""

    def load(text: str) -> tuple[Any, yaml.Node | None]:
        node = compose(text)
        _check_names(node)
        # OmegaConf's reader knows 1e-3 as a number and refuses duplicate keys; only the nodes know the lines.
        return OmegaConf.to_container(OmegaConf.create(text)), node

    values, node = read_yaml(path, load=load)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be keys with values ('section:' and below it 'key: value')")
    return values, Source(name or str(path), dict(_lines(node)))


def _check_names(node: yaml.Node | None) -> None:
    """Raise `yaml.MarkedYAMLError` for a key that is not text, such as null or 1."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else ()
    if isinstance(node, yaml.MappingNode):
        parts = [value for _, value in node.value]
        for key, _ in node.value:
            if key.tag not in TEXT_TAGS:
                raise yaml.MarkedYAMLError(problem="a key must be text; quote it", problem_mark=key.start_mark)
    for part in parts:
        _check_names(part)


def _lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{key.value}.")


def rename_old_keys(values: dict[str, Any], source: Source, announce: bool) -> None:
    """Give the keys of `RENAMED_KEYS` their new names, in place. Raises `UserError` if a source has both names."""
    for section, old_name, new_name in RENAMED_KEYS:
        part, old, new = values.get(section), f"{section}.{old_name}", f"{section}.{new_name}"
        if not isinstance(part, dict) or old_name not in part:
            continue
        if new_name in part:
            raise UserError(f"{source.of(old)}: '{old}' is the old name of '{new}'; give only the new one")
        part[new_name] = part.pop(old_name)
        if announce:
            _announce(f"{source.of(old)}: key '{old}' is now called '{new}'")
        if old in source.lines:
            source.lines[new] = source.lines[old]


@functools.cache  # a program may load its configuration more than once
def _announce(line: str) -> None:
    print(line, file=sys.stderr)


def wrong_type(source: Source, key: str, value: Any) -> UserError:
    """Return the error for a value that is not of the type of its key, or for a section that has a value."""
    kind = next((kind for name, kind in key_types().items() if f"{key}.".startswith(f"{name}.")), None)
    return UserError(f"{source.of(key)}: key '{key}' is {shown(value)}: must be {describe(kind)}")


def unknown_key(source: Source, key: str) -> UserError:
    """Return the error for a key that does not exist, with the keys of any section that resemble it."""
    where = f"{source.of(key)}: unknown key '{key}'; "
    plain = re.sub(r"by_method\.[^.]*\.", "", key)
    known = {name: name.rpartition(".")[2] for name in key_types()}
    if plain in known and plain == key:
        return UserError(f"{where}write it as keys within sections, one per line, without dots")
    last = plain.rpartition(".")[2]
    found = [name for name in known if known[name] == last] or get_close_matches(plain, known, 1, cutoff=0.75)
    if not found:
        close = get_close_matches(last, set(known.values()), 1, cutoff=0.75)
        found = [name for name in known if known[name] in close]
    found = sorted(found, key=lambda name: -SequenceMatcher(None, plain, name).ratio())[:MAX_SUGGESTIONS]
    if plain != key:
        found = [name.replace("decode.", key.removesuffix(last), 1) for name in found]
    return UserError(where + (f"did you mean {' or '.join(found)}?" if found else "conf/base.yaml lists all keys"))


@functools.cache
def key_types(section: Any = Config, prefix: str = "") -> dict[str, Any]:
    """Return the type of every key that has a value, by its dotted name."""
    found: dict[str, Any] = {}
    for name, kind in types_of(section).items():
        found |= key_types(kind, f"{prefix}{name}.") if is_dataclass(kind) else {prefix + name: kind}  # type: ignore[arg-type]
    return found


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of nested dicts; an empty dict is a value."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
