"""What a corpus is: its name, where its audio comes from, its parts; and the list of what was left out of it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write
from local.common.errors import UserError
from local.common.text_files import read_yaml
from local.config.schema import DataConfig

import yaml

SOURCES = ("librispeech", "mini_librispeech", "tiny", "custom")


@dataclass
class Corpus:
    """`source` names the program that brings the audio; `options` are that program's own keys (tiny's seed)."""

    name: str
    source: str
    train: list[str]
    dev: list[str]
    test: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    corpus_dir: str | None = None  # where the audio was found

    def parts(self) -> list[str]:
        """Every part once, training parts first."""
        return list(dict.fromkeys(self.train + self.dev + self.test))


def load_corpus(path: str | Path, data: DataConfig | None = None) -> Corpus:
    """Read a corpus.yaml; `data.{train,dev,test}_parts` of a config, where set, replace its lists of parts.

    Raises `UserError` naming file and key for a missing file, an unknown or a missing key, an unknown source.
    """
    path = Path(path)
    values = read_yaml(path, "stage 1 of prepare.sh")
    known = {f.name for f in fields(Corpus)}
    if not isinstance(values, dict) or not set(values) <= known:
        found = ", ".join(str(key) for key in values if key not in known) if isinstance(values, dict) else repr(values)
        raise UserError(f"{path}: keys are {', '.join(sorted(known))}; not {found[:200]}")
    for key in ("name", "source", "train", "dev", "test"):
        if key not in values:
            raise UserError(f"{path}: key '{key}' is missing")
    if values["source"] not in SOURCES:
        raise UserError(f"{path}: key 'source' is {str(values['source'])[:100]!r}: one of {', '.join(SOURCES)} is meant")
    for key, kind in (("name", str), ("corpus_dir", str | None), ("options", dict)):
        if not isinstance(values.get(key, kind() if isinstance(kind, type) else None), kind):
            raise UserError(f"{path}: key '{key}' is {str(values[key])[:100]!r}, which it cannot be")
    for key in ("train", "dev", "test"):
        if not isinstance(values[key], list) or not all(map(is_part, values[key])):
            raise UserError(f"{path}: key '{key}': a list of part names is meant, which name folders or files")
    corpus = Corpus(**values)
    for key in ("train", "dev", "test"):
        replaced = getattr(data, f"{key}_parts", None)
        if replaced is not None:
            setattr(corpus, key, list(replaced))
    if not corpus.train:
        raise UserError(f"{path}: key 'train': at least one part is needed")
    return corpus


def is_part(name: object) -> bool:
    """Whether a part may be called so: its name becomes that of files."""
    return isinstance(name, str) and re.fullmatch(r"[^/\x00-\x1f]{1,100}", name) is not None and name.strip(" .") != ""


def save_corpus(corpus: Corpus, path: str | Path) -> None:
    """Write a resolved corpus.yaml."""
    with atomic_write(path) as tmp:
        tmp.write_text(yaml.safe_dump(asdict(corpus), sort_keys=False, allow_unicode=True), encoding="utf-8")
