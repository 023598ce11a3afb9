"""What decoding wrote, read and checked: hypotheses, references, costs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.common.text_files import read_lines
from local.config.methods import METHODS
from local.scoring.align import Utterance

MAX_NAMED = 3  # ids named in a message before "and N more"


STAGE = "stage 2 (cuts) of prepare.sh"


def read_hypotheses(path: Path) -> list[Utterance]:
    """Utterances of one decoded set, sorted by id. Raises UserError naming file and line for anything amiss."""
    found: dict[str, tuple[int, Utterance]] = {}
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise UserError(f"{path}:{number}: broken line ({e.msg}); was decoding cut short? decode again") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a line must be an object with id, ref and hyp")
        for key in ("id", "ref", "hyp"):
            if not isinstance(row.get(key), str):
                raise UserError(f"{path}:{number}: '{key}' is missing or no text")
        if row["id"] in found:
            first = found[row["id"]][0]
            raise UserError(f"{path}:{number}: utterance {row['id']} is there twice (first in line {first})")
        found[row["id"]] = number, Utterance(row["id"], row["ref"], row["hyp"], word_ends(row))
    if not found:
        raise UserError(f"{path}: no utterance in it")
    return [found[i][1] for i in sorted(found)]


def word_ends(row: dict[str, Any]) -> tuple[float, ...]:
    """The times at which the words of a line ended, where it has them."""
    try:
        ends = tuple(float(word["end"]) for word in row.get("words", ()))
    except (KeyError, TypeError, ValueError, OverflowError):
        return ()
    return ends if all(map(math.isfinite, ends)) else ()


def lines_of(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 text file; UserError names the first that is not UTF-8."""
    number = 0
    with path.open("rb") as f:
        for number, raw in enumerate(f, 1):
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8") from None


def cost(path: Path) -> tuple[float | None, float | None]:
    """Processing seconds per second of audio and peak memory in MiB from a `.stats.json`; None for what is not known."""
    if not path.exists():
        return None, None
    try:
        stats = json.loads("".join(lines_of(path)))
        seconds, audio = float(stats["seconds"]), float(stats["audio_seconds"])
        memory = stats.get("peak_memory_mib")
        memory = None if memory is None else float(memory)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise UserError(f"{path}: needs the numbers seconds and audio_seconds ({e})") from None
    if not (math.isfinite(seconds) and math.isfinite(audio) and math.isfinite(memory or 0)):
        raise UserError(f"{path}: seconds, audio_seconds and peak_memory_mib must be finite numbers")
    return (seconds / audio if audio > 0 else None), memory


def decoded(exp_dir: Path) -> dict[str, dict[str, list[Utterance]]]:
    """All decoded sets of an experiment: set -> method -> utterances, in the table's order.

    Raises UserError where nothing was decoded or where the methods of a set differ in their utterances or references.
    """
    files = sorted((exp_dir / "decode").glob("*/*.jsonl"), key=lambda p: (p.stem, order(p.parent.name)))
    if not files:
        raise UserError(f"{exp_dir}/decode: nothing decoded there; local/decode.py (run.sh's decoding stage) does that")
    result: dict[str, dict[str, list[Utterance]]] = {}
    for path in files:
        methods = result.setdefault(path.stem, {})
        methods[path.parent.name] = utterances = read_hypotheses(path)
        first, *others = methods
        if others:
            check_same(exp_dir, path.stem, (first, methods[first]), (path.parent.name, utterances))
    return result


def order(method: str) -> tuple[int, str]:
    """Sort key of a method: as METHODS lists them, then by name."""
    return (list(METHODS).index(method) if method in METHODS else len(METHODS)), method


def check_same(exp_dir: Path, name: str, a: tuple[str, list[Utterance]], b: tuple[str, list[Utterance]]) -> None:
    """UserError unless two methods decoded the same utterances against the same references."""
    refs_a, refs_b = ({u.id: u.ref for u in utterances} for _, utterances in (a, b))
    for method, there, other, elsewhere in ((a[0], refs_a, b[0], refs_b), (b[0], refs_b, a[0], refs_a)):
        missing = [i for i in elsewhere if i not in there]
        if missing:
            raise UserError(
                f"{exp_dir}/decode/{method}/{name}.jsonl lacks {listed(missing)}, which {other} has; "
                "decode the set again with both"
            )
    for i, ref in refs_a.items():
        if ref != refs_b[i]:
            raise UserError(
                f"{exp_dir}/decode: the reference of {i} in set {name} differs between {a[0]} and {b[0]}; "
                "the data were prepared anew in between: decode the set again"
            )


def listed(ids: Sequence[str]) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(ids[:MAX_NAMED]) + more


def check_complete(data_dir: Path, name: str, utterances: Sequence[Utterance]) -> None:
    """Warn on stderr of utterances of a prepared part that were not decoded; UserError where there is no such part."""
    if not (data_dir / "cuts" / f"{name}.jsonl.gz").exists():
        parts = sorted(p.name.removesuffix(".jsonl.gz") for p in (data_dir / "cuts").glob("*.jsonl.gz"))
        raise UserError(f"set '{name}' is not a part of {data_dir}; it has {', '.join(parts) or 'no cuts'}")
    have = {u.id for u in utterances}
    missing = []
    for cut, _ in prepared(data_dir, name):
        if not have.intersection([cut["id"], *(s["id"] for s in cut.get("supervisions", ()))]):
            missing.append(cut["id"])
    if missing:
        print(f"warning: set {name}: {len(missing)} utterances were not decoded: {listed(missing)}", file=sys.stderr)


def spoken_words(data_dir: Path, name: str) -> dict[str, list[tuple[str, float]]]:
    """By utterance the words of a prepared part with their ends in seconds, from its cuts' alignments ("word")."""
    found = {}
    for cut, where in prepared(data_dir, name):
        for supervision in cut.get("supervisions", ())[:1]:
            try:
                items = (supervision.get("alignment") or {}).get("word", ())
                found[cut["id"]] = [(str(word), float(start + duration)) for word, start, duration, *_ in items]
            except (TypeError, ValueError, AttributeError):
                raise UserError(f"{where}: damaged: its alignment; let {STAGE} make it again (--force)") from None
    return found


def prepared(data_dir: Path, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The cuts of a prepared part as plain values, each with its `file:line`. `UserError` names what is damaged."""
    path = data_dir / "cuts" / f"{name}.jsonl.gz"
    for number, line in enumerate(read_lines(path, STAGE), 1):
        where = f"{path}:{number}"
        try:
            cut = json.loads(line)
            whole = isinstance(cut["id"], str) and all(isinstance(s["id"], str) for s in cut.get("supervisions", ()))
        except (ValueError, TypeError, KeyError, AttributeError):
            whole = False
        if not whole:
            raise UserError(f"{where}: damaged: no cut; let {STAGE} make it again (--force)")
        yield cut, where
