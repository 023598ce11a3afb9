"""Read and check what decoding wrote: hypotheses, references, costs."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from local.artifacts.decoded_sets import DecodedSet
from local.common.errors import UserError, reason
from local.common.text_files import iterate_lines, read_lines
from local.common.visible import encodable, visible
from local.config.methods import METHODS
from local.scoring.align import Unit, Utterance, Wanted, unit_of, word_errors

MAX_NAMED = 3  # ids named in a message before "and N more"
STAGE = "stage 2 (cuts) of prepare.sh"


def read_hypotheses(path: Path, wanted: Wanted = "auto") -> list[Utterance]:
    """Return the utterances of .../<method>/<set>.jsonl, sorted by id; an oracle method has the `best_entry` of each.

    wanted: key score.unit, by which an entry is the best. Raises `UserError` naming the file and line of anything wrong.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = encodable(json.loads(line), line)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{where}: damaged ({reason(e)}); decode the set again") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: must be an object with the keys id, ref and hyp")
        check_texts(row, ("id", "ref", "hyp"), where)
        if row["id"] in found:
            raise UserError(f"{where}: utterance {row['id']} is also in line {found[row['id']][0].rpartition(':')[2]}")
        found[row["id"]] = where, row
    if not found:
        raise UserError(f"{path}: contains no utterance")
    if is_oracle(path.parent.name):
        unit = unit_of((row["ref"] for _, row in found.values()), wanted)
        found = {i: (w, {**row, **best_entry(row, w, unit)} if "nbest" in row else row) for i, (w, row) in found.items()}
    return [Utterance(i, row["ref"], row["hyp"], word_ends(row)) for i, (_, row) in sorted(found.items())]


def is_oracle(method: str) -> bool:
    """Whether a method's hypotheses are chosen with the reference."""
    return method in METHODS and METHODS[method].oracle


def check_texts(row: dict[str, Any], keys: Sequence[str], where: str) -> None:
    """Raise `UserError` naming the first key whose value is not a string."""
    for key in keys:
        if not isinstance(row.get(key), str):
            raise UserError(f"{where}: key '{key}' is missing or not a string")


def best_entry(row: dict[str, Any], where: str, unit: Unit) -> dict[str, Any]:
    """Return the entry of a line's n-best list with the fewest errors; of several, the first."""
    entries = row["nbest"]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: key 'nbest' must be a list of objects with the key hyp")
    for entry in entries:
        check_texts(entry, ("hyp",), f"{where}: key 'nbest'")
    return min(entries, key=lambda entry: word_errors(row["ref"], entry["hyp"], unit))


def word_ends(row: dict[str, Any]) -> tuple[float, ...]:
    """Return the times in seconds at which a line's words had their last tokens; empty if it has none.

    Older lines have no "emitted"; their "end" is this time.
    """
    try:
        ends = tuple(float(word["emitted"] if "emitted" in word else word["end"]) for word in row.get("words", ()))
    except (KeyError, TypeError, ValueError, OverflowError):
        return ()
    return ends if all(map(math.isfinite, ends)) else ()


def cost(decoded: DecodedSet) -> tuple[float | None, float | None]:
    """Return a set's processing seconds per second of audio and peak MiB, or None. Raises `UserError` if stats lack them."""
    if not decoded.stats:
        return None, None
    where = decoded.path.with_suffix(".stats.json")
    try:
        seconds, audio = float(decoded.stats["seconds"]), float(decoded.stats["audio_seconds"])
        memory = decoded.stats.get("peak_memory_mib")
        memory = None if memory is None else float(memory)
        if not all(map(math.isfinite, (seconds, audio, memory or 0))):
            raise ValueError("not finite")
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise UserError(f"{where}: seconds, audio_seconds and peak_memory_mib must be finite numbers ({e})") from None
    return (seconds / audio if audio > 0 else None), memory


def read_sets(
    exp_dir: Path, sets: Sequence[DecodedSet], wanted: Mapping[str, Wanted] = MappingProxyType({})
) -> dict[str, dict[str, list[Utterance]]]:
    """Return the utterances of decoded sets: set -> method -> utterances, in the table's order.

    wanted: key score.unit by set, auto for those that are not named. Raises `UserError` if nothing was decoded, or if the
    methods of a set differ in their utterances or references.
    """
    if not sets:
        raise UserError(f"{exp_dir}/decode: no decoded set; local/decode.py (stage 5 of run.sh) makes them")
    result: dict[str, dict[str, list[Utterance]]] = {}
    for decoded in sorted(sets, key=lambda s: (s.name, order(s.method))):
        result.setdefault(decoded.name, {})[decoded.method] = read_hypotheses(decoded.path, wanted.get(decoded.name, "auto"))
    for name, methods in result.items():
        check_same(exp_dir, name, methods)
    return result


def order(method: str) -> tuple[int, str]:
    """Return the sort key of a method: its place in METHODS, then its name."""
    return (list(METHODS).index(method) if method in METHODS else len(METHODS)), method


def check_same(exp_dir: Path, name: str, methods: dict[str, list[Utterance]]) -> None:
    """Raise `UserError` unless all methods decoded the same utterances of a set with the same references."""
    refs = {method: {u.id: u.ref for u in utterances} for method, utterances in methods.items()}
    for method, other in itertools.permutations(refs, 2):
        if missing := [i for i in refs[other] if i not in refs[method]]:
            lacks = f"{method}/{name}.jsonl lacks {listed(missing)}, which {other} has"
            raise UserError(f"{exp_dir}/decode/{lacks}; decode the set again with both")
    for method, other in itertools.combinations(refs, 2):
        if odd := next((i for i, ref in refs[method].items() if ref != refs[other][i]), None):
            why = f"the reference of {odd} in set {name} differs between {method} and {other}"
            hint = "the data were prepared again in between: decode the set again with both"
            raise UserError(f"{exp_dir}/decode: {why}; {hint}")


def listed(ids: Sequence[str]) -> str:
    """Return `a, b, c and 4 more`."""
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(map(visible, ids[:MAX_NAMED])) + more


def check_complete(data_dir: Path, name: str, utterances: Sequence[Utterance], shown: str = "") -> None:
    """Warn on stderr if utterances of a prepared part were not decoded. Raises `UserError` if the data have no such part.

    shown: the name of the set, if it is not that of the part.
    """
    if not (data_dir / "cuts" / f"{name}.jsonl.gz").exists():
        parts = sorted(p.name.removesuffix(".jsonl.gz") for p in (data_dir / "cuts").glob("*.jsonl.gz"))
        raise UserError(f"set '{name}' is not a part of {data_dir}; it has {', '.join(parts) or 'no cuts'}")
    have = {u.id for u in utterances}
    ids = ([cut["id"], *(s["id"] for s in cut.get("supervisions", ()))] for cut, _ in prepared(data_dir, name))
    if missing := [first for first, *others in ids if have.isdisjoint([first, *others])]:
        print(f"warning: set {shown or name}: {len(missing)} utterances were not decoded: {listed(missing)}", file=sys.stderr)


def prepared(data_dir: Path, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the cuts of a prepared part as plain values, each with its `file:line`. Raises `UserError` for a damaged line."""
    path = data_dir / "cuts" / f"{name}.jsonl.gz"
    for number, line in enumerate(iterate_lines(path, STAGE), 1):
        where = f"{path}:{number}"
        try:
            cut = encodable(json.loads(line), line)
            whole = isinstance(cut["id"], str) and all(isinstance(s["id"], str) for s in cut.get("supervisions", ()))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise UserError(f"{where}: damaged: not a cut; let {STAGE} make it again (--force)")
        yield cut, where
