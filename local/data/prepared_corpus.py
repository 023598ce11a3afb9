"""A folder of prepared data: its parts, manifests and cuts; and the folders that are trained on together (data.mix)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from local.common.errors import UserError
from local.common.text_files import iterate_lines
from local.config.mix import MARK, corpus_name
from local.config.schema import Config, DataConfig, FeaturesConfig
from local.corpus.corpus_yaml import load_corpus, needs_train, parts_of
from local.corpus.manifest_lines import parse_item
from local.corpus.shard_store import shard_store
from local.data.durations import SPEED
from local.data.training_cuts import read_cut_lines

from lhotse.cut import Cut


class PreparedCorpus:
    """What prepare.sh made in `data_dir`.

    `mark` is the end of the names of its sets and columns: "@NAME", or "" for the first corpus. `corpus` is its corpus.yaml,
    `store` its audio in shards.
    """

    def __init__(self, data_dir: Path, cfg: Config, data: DataConfig | None, mark: str = "") -> None:
        """Read corpus.yaml; the parts that `data` sets replace its own. Raises `UserError` if data_dir is not prepared."""
        self.data_dir, self.data, self.mark = data_dir, data, mark
        self.corpus = load_corpus(data_dir / "corpus.yaml", data)
        self.store = shard_store(data_dir, cfg.data, self.corpus)
        self.precomputed = cfg.features.type == "precomputed"
        self._read: dict[str, list[Cut]] = {}  # by part

    def manifest(self, part: str) -> Path:
        """Return the file with the cuts of a part."""
        return self.data_dir / ("features" if self.precomputed else "cuts") / f"{part}.jsonl.gz"

    def cuts(self, part: str) -> list[Cut]:
        """Return the cuts of a part without speed-perturbed copies; its manifest is read once."""
        if part not in self._read:
            self._read[part] = [cut for cut in _cuts_in(self.manifest(part)) if SPEED not in (cut.custom or {})]
        return self._read[part]

    def first(self, part: str, most: int) -> tuple[list[Cut], int, str]:
        """Return the cuts of the first `most` utterances of a part by their ids (0: of all).

        Also how many of these utterances have no stored features, and the reason in words.
        """
        cuts = {cut.id: cut for cut in self.cuts(part)}
        whole = self.data_dir / "cuts" / f"{part}.jsonl.gz"
        ids = [cut.id for cut in _cuts_in(whole)] if self.precomputed and whole.is_file() else list(cuts)
        chosen = sorted({*ids, *cuts})[: most or None]
        found = [cuts[name] for name in chosen if name in cuts]
        why = f"{self.manifest(part)} does not have all utterances of {whole}; prepare.sh says why"
        return found, len(chosen) - len(found), why

    def named(self, sets: list[str]) -> list[str]:
        """Return the parts that names of sets stand for, as `parts_of` does, with the mark."""
        return [part + self.mark for part in parts_of(sets, self.data_dir, self.data)]

    def check_features(self, features: FeaturesConfig) -> None:
        """Raise `UserError` if its cuts have another sampling rate, or its features other channels, than `features`."""
        for part in self.corpus.parts():
            if not (manifest := self.manifest(part)).is_file():
                continue  # who needs it says that it is missing
            for line in islice(iterate_lines(manifest), 1):
                try:
                    cut = json.loads(line)
                    stored = cut["features"] if self.precomputed else {}
                    found = {
                        "sampling_rate": stored.get("sampling_rate", cut["recording"]["sampling_rate"]),
                        "num_mel_bins": stored.get("num_features", features.num_mel_bins),
                    }
                except (ValueError, TypeError, LookupError, AttributeError):
                    continue  # who reads the cut names the damage
                for key, value in found.items():
                    if value != getattr(features, key):
                        raise UserError(
                            f"key 'data.mix': {self.data_dir} was prepared with features.{key}={value}, not "
                            f"{getattr(features, key)} ({manifest}); prepare all its folders with the same configuration"
                        )


def _cuts_in(manifest: Path) -> list[Cut]:
    lines = enumerate(read_cut_lines(manifest), 1)
    return [parse_item(line, Cut, f"{manifest}:{number}") for number, line in lines]  # type: ignore[type-abstract]


@contextmanager
def of_key(name: str) -> Iterator[None]:
    """Put the name of a key before the message of a `UserError`."""
    try:
        yield
    except UserError as e:
        raise UserError(f"key '{name}': {e}") from None


def is_first(data: DataConfig, data_dir: Path) -> bool:
    """Return whether `data_dir` is the first folder of data.mix."""
    return data.mix is not None and os.path.realpath(next(iter(data.mix))) == os.path.realpath(data_dir)


def other_folders(data: DataConfig, data_dir: Path) -> list[Path]:
    """Return the folders of data.mix after the first one; none if `data_dir` is not the first, as of a test set of its own."""
    return [Path(folder) for folder in list(data.mix or ())[1:]] if is_first(data, data_dir) else []


def check_first(data: DataConfig, data_dir: Path) -> None:
    """Raise `UserError` if there is a mix whose first folder is not `data_dir`, that of --data-dir."""
    if data.mix is not None and not is_first(data, data_dir):
        why = f"its first folder is {next(iter(data.mix))}, but --data-dir is {data_dir}"
        raise UserError(f"key 'data.mix': {why}; the first gives the tokens and the length of an epoch: both must be the same")


def read_corpora(cfg: Config, data_dir: Path) -> list[PreparedCorpus]:
    """Return the corpus in `data_dir`, and after it the others of data.mix if it is the first there.

    Raises `UserError` naming key and folder if one of them is not prepared, or with other features.
    """
    found = [PreparedCorpus(data_dir, cfg, cfg.data)]
    for folder in other_folders(cfg.data, data_dir):
        with of_key("data.mix"):
            found.append(PreparedCorpus(folder, cfg, None, MARK + corpus_name(str(folder))))
            needs_train(found[-1].corpus, folder / "corpus.yaml")
    for corpus in found if len(found) > 1 else ():
        corpus.check_features(cfg.features)
    return found
