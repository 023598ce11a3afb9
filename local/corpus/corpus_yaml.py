"""corpus.yaml: a corpus's name, the source of its audio, and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from local.common.atomic import write_text
from local.common.errors import UserError
from local.common.text_files import read_yaml
from local.config.limits import PartName, shown
from local.config.schema import DataConfig

import yaml

SOURCES = ("librispeech", "mini_librispeech", "tiny", "custom")


@dataclass
class Corpus:
    """A corpus.yaml: `source` says how to get the audio; `options` are the source's own keys (tiny's seed)."""

    name: str
    source: str
    train: list[str]
    dev: list[str]
    test: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    corpus_dir: str | None = None  # folder of the audio

    @property
    def commands(self) -> bool:
        """Whether commands in wav.scp and manifests are run, and URLs fetched (`options.commands`)."""
        return bool(self.options.get("commands", False))

    def parts(self) -> list[str]:
        """Return every part once, training parts first."""
        return list(dict.fromkeys(self.train + self.dev + self.test))


def load_corpus(path: str | Path, data: DataConfig | None = None) -> Corpus:
    """Read a corpus.yaml; the parts that `data` sets replace its own. Raises `UserError` if a key is missing or wrong."""
    path = Path(path)
    values = read_yaml(path, "stage 1 (manifests) of prepare.sh")
    known = {f.name for f in fields(Corpus)}
    if not isinstance(values, dict) or not set(values) <= known:
        found = ", ".join(str(key) for key in values if key not in known) if isinstance(values, dict) else repr(values)
        raise UserError(f"{path}: must be a mapping of {', '.join(sorted(known))}; found {found[:200]}")
    for key in ("name", "source", "train", "dev", "test"):
        if key not in values:
            raise UserError(f"{path}: key '{key}' is missing")
    if values["source"] not in SOURCES:
        raise UserError(f"{path}: key 'source' must be one of {', '.join(SOURCES)}, not {str(values['source'])[:100]!r}")
    for key, kind in (("name", str), ("corpus_dir", str | None), ("options", dict)):
        if key in values and not isinstance(values[key], kind):
            raise UserError(f"{path}: key '{key}' has the wrong type: {str(values[key])[:100]!r}")
    commands = values.get("options", {}).get("commands", False)
    if not isinstance(commands, bool):
        raise UserError(f"{path}: key 'options.commands' must be true or false, not {str(commands)[:100]!r}")
    for key in ("train", "dev", "test"):
        if not isinstance(values[key], list):
            raise UserError(f"{path}: key '{key}' must be a list of names of parts, which are names of folders or files")
        for name in values[key]:
            if (why := PartName().problem(name)) is not None:
                raise UserError(f"{path}: key '{key}' has the part '{shown(name)}': {why}")
        replaced = getattr(data, f"{key}_parts", None)
        values[key] = values[key] if replaced is None else list(replaced)
    if not values["train"] and not values["test"]:  # a test set alone is decoded with a model that is already trained
        raise UserError(f"{path}: key 'train' or key 'test' must name at least one part")
    return Corpus(**values)


def parts_of(sets: Sequence[str], data_dir: Path, data: DataConfig | None) -> list[str]:
    """Return the prepared parts that --sets names; `dev` and `test`, if no part is called so, are all parts of this kind.

    Raises `UserError` for a name that is neither.
    """
    path = data_dir / "corpus.yaml"
    corpus = load_corpus(path, data)
    files = {path.name.removesuffix(".jsonl.gz") for path in (data_dir / "cuts").glob("*.jsonl.gz")}
    there = sorted(files & {*load_corpus(path).parts(), *corpus.parts()})  # parts of an earlier preparation may lie there
    kinds = {"dev": corpus.dev, "test": corpus.test}
    found = []
    for name in sets:
        if name not in there and not kinds.get(name):
            known = ", ".join(there) or "no cuts; stage prepare makes them"
            old = f"; cuts/{name}.jsonl.gz lies there, but {path} and data.*_parts do not name it" if name in files else ""
            raise UserError(f"--sets: '{name}' is not a part of {data_dir}; it has {known}{old}")
        found += [name] if name in there else kinds[name]
    return list(dict.fromkeys(found))


def other_corpus(data_dir: Path, name: str, corpus_dir: Path | None) -> str:
    """Return how the corpus of a data folder differs from the one asked for; "" if it does not, or nothing is there.

    corpus_dir: the folder of the audio; None: not asked for.
    """
    try:
        held = load_corpus(data_dir / "corpus.yaml")
    except UserError:
        return ""  # not prepared, or damaged: the stages say so
    if held.name != name:
        return f"holds corpus '{held.name}' of {held.corpus_dir}, not '{name}'"
    if corpus_dir is not None and held.corpus_dir is not None and Path(held.corpus_dir).resolve() != corpus_dir.resolve():
        return f"holds the corpus in {held.corpus_dir}, not the one in {corpus_dir}"
    return ""


def needs_train(corpus: Corpus, path: str | Path) -> Corpus:
    """Return the corpus. Raises `UserError` naming its corpus.yaml, `path`, if it has no training part."""
    if not corpus.train:
        hint = "./run.sh evaluate decodes a test set with a trained model"
        raise UserError(f"{path}: key 'train' must name at least one part to train with; {hint}")
    return corpus


def save_corpus(corpus: Corpus, path: str | Path) -> None:
    """Write a corpus.yaml with its lists of parts resolved."""
    write_text(path, yaml.safe_dump(asdict(corpus), sort_keys=False, allow_unicode=True))
