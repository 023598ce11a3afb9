"""The utterances of a prepared corpus, for the doctor's checks of data; a manifest is read once for all checks.

Memory holds a few fields of each utterance, not its cut: LibriSpeech has 281,000.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from local.common.errors import UserError
from local.config.schema import Config
from local.corpus.corpus_yaml import load_corpus
from local.corpus.manifest_lines import parse_item
from local.corpus.screening import LEVELS
from local.corpus.shard_store import ShardStore, is_remote
from local.data.training_cuts import read_cut_lines
from local.scoring.hypotheses import listed
from local.scoring.hypotheses import prepared as prepared_cuts

from lhotse.cut import MonoCut

SAMPLE = 300  # utterances of a part whose audio is read without option --all
FEW = 0.01  # of the utterances of a part: what so few have is not a fault of the corpus


class Utterance(NamedTuple):
    """One line of data/<corpus>/cuts/<part>.jsonl.gz."""

    id: str
    speaker: str  # "": unknown
    text: str
    seconds: float
    rate: int  # Hz, of the file
    silent: bool  # as preparation found it
    remote: bool  # whether its audio is not on this machine
    line: int


@dataclass(frozen=True, eq=False)  # compared by identity, so that results can be cached by it
class Prepared:
    """The parts of a corpus; the utterances of those that can be read, and the error of each other one."""

    data_dir: Path
    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    parts: Mapping[str, Sequence[Utterance]]
    damaged: Mapping[str, UserError]

    def training(self) -> list[Utterance]:
        """Return the utterances of the training parts."""
        return [u for part in self.train for u in self.parts.get(part, ())]

    def held_out(self) -> list[str]:
        """Return the dev and test parts that can be read and are not training parts."""
        return [part for part in self.parts if part not in self.train]

    def pairs_of_parts(self) -> Iterator[tuple[str, str]]:
        """Yield each two parts that must have nothing in common, the one nearer to training first.

        A part that is both dev and test is not a pair: its corpus.yaml says so.
        """
        groups = (self.train, self.dev, self.test)
        found = {(a, b) for n, group in enumerate(groups) for a in group for later in groups[n + 1 :] for b in later}
        for a, b in sorted(found):
            if a != b and a in self.parts and b in self.parts and not ((b, a) in found and (b, a) < (a, b)):
                yield a, b

    def sample(self, part: str, most: int | None) -> list[Utterance]:
        """Return `most` utterances of a part (None: all) whose audio is on this machine, in the order of the part.

        A hash of the ids chooses them, so they are the same in every call.
        """
        here = [u for u in self.parts[part] if not u.remote]
        if most is None or len(here) <= most:
            return here
        chosen = sorted(here, key=lambda u: (zlib.crc32(u.id.encode()), u.id))[:most]
        return sorted(chosen, key=lambda u: u.line)

    def cuts(self, part: str, utterances: Sequence[Utterance]) -> Iterator[tuple[Utterance, MonoCut | UserError]]:
        """Yield each of some utterances of a part with its cut, or with the error that names its damaged line."""
        manifest = self.manifest(part)
        lines = read_cut_lines(manifest) if utterances else []
        for utterance in utterances:
            try:
                cut = parse_item(lines[utterance.line - 1], MonoCut, f"{manifest}:{utterance.line}")
            except UserError as e:
                yield utterance, e
            else:
                yield utterance, cut

    def manifest(self, part: str) -> Path:
        """Return the file with the cuts of a part."""
        return self.data_dir / "cuts" / f"{part}.jsonl.gz"

    def store(self) -> ShardStore:
        """Return the store of the audio in shards; it fetches nothing and runs no command."""
        return ShardStore(self.data_dir / "shards", 0.0)


def several(found: Sequence[str], part: str, total: int) -> str:
    """Return the beginning of a finding: "3 of 500 utterances of part 'train' (a, b, c)"."""
    return f"{len(found)} of {total} utterances of part '{part}' ({listed(found)})"


def read_prepared(data_dir: Path, cfg: Config) -> Prepared:
    """Return the prepared corpus. Raises `UserError` if corpus.yaml is missing or damaged."""
    corpus = load_corpus(data_dir / "corpus.yaml", cfg.data)
    files = [data_dir / "cuts" / f"{part}.jsonl.gz" for part in corpus.parts()]
    changed = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files)
    return _read(data_dir, tuple(corpus.train), tuple(corpus.dev), tuple(corpus.test), changed)


@functools.lru_cache(maxsize=1)
def _read(
    data_dir: Path, train: tuple[str, ...], dev: tuple[str, ...], test: tuple[str, ...], changed: tuple[int, ...]
) -> Prepared:
    """Return the corpus whose manifests were changed at `changed`, which only serves to read them again then."""
    parts, damaged = {}, {}
    for part in dict.fromkeys(train + dev + test):
        try:
            parts[part] = [_utterance(cut, where, n) for n, (cut, where) in enumerate(prepared_cuts(data_dir, part), 1)]
        except UserError as e:
            damaged[part] = e
    return Prepared(data_dir, train, dev, test, parts, damaged)


def _utterance(cut: dict[str, Any], where: str, line: int) -> Utterance:
    try:
        return _fields(cut, line)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise UserError(f"{where}: damaged: not a cut of a recording; let prepare.sh make it again (--force)") from None


def _fields(cut: dict[str, Any], line: int) -> Utterance:
    supervision, recording = cut["supervisions"][0], cut["recording"]
    rates = [t["kwargs"]["source_sampling_rate"] for t in recording.get("transforms") or () if t["name"] == "Resample"]
    found = Utterance(
        cut["id"],
        str(supervision.get("speaker") or ""),
        str(supervision.get("text") or ""),
        float(cut["duration"]),
        int(rates[0] if rates else recording["sampling_rate"]),
        LEVELS in (supervision.get("custom") or {}),
        any(_is_remote(source) for source in recording["sources"]),
        line,
    )
    if not 0 < found.seconds < float("inf"):
        raise ValueError("duration")
    return found


def _is_remote(source: dict[str, Any]) -> bool:
    """Return whether audio would have to be fetched, or made by a command."""
    return source["type"] in ("url", "command") or (source["type"] == "shar" and is_remote(str(source["source"])))
