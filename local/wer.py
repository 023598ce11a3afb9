"""Score every decoded set of an experiment: the WER table.

    python local/wer.py --exp-dir exp/tiny [--data-dir data/tiny] [--compare exp/other]

reads EXP/decode/<method>/<set>.jsonl, one `{"id", "ref", "hyp", ...}` a line, and `<set>.stats.json` beside it where
there is one, and writes EXP/wer.json, EXP/wer.md (printed too) and EXP/errors/<set>.<method>.txt.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from local.atomic import atomic_write
from local.error_report import error_report
from local.errors import UserError, cli
from local.score import Score, Utterance, compare, score

METHODS = ("greedy_search", "modified_beam_search", "fast_beam_search")  # their order in the table; others follow
NAMED = 3  # ids named in a message before "and N more"

Results = dict[str, dict[str, dict[str, Any]]]


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
        found[row["id"]] = number, Utterance(row["id"], row["ref"], row["hyp"])
    if not found:
        raise UserError(f"{path}: no utterance in it")
    return [found[i][1] for i in sorted(found)]


def lines_of(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 text file; UserError names the first that is not UTF-8."""
    number = 0
    with path.open("rb") as f:
        for number, raw in enumerate(f, 1):
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8") from None


def real_time_factor(path: Path) -> float | None:
    """Processing seconds per second of audio from a `.stats.json`; None where the file does not exist."""
    if not path.exists():
        return None
    try:
        stats = json.loads("".join(lines_of(path)))
        seconds, audio = float(stats["seconds"]), float(stats["audio_seconds"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: needs the numbers seconds and audio_seconds ({e})") from None
    if not (math.isfinite(seconds) and math.isfinite(audio)):
        raise UserError(f"{path}: seconds and audio_seconds must be finite numbers")
    return seconds / audio if audio > 0 else None


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
    return (METHODS.index(method) if method in METHODS else len(METHODS)), method


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
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more


def check_complete(data_dir: Path, name: str, utterances: Sequence[Utterance]) -> None:
    """Warn on stderr of utterances of a prepared part that were not decoded; UserError where there is no such part."""
    path = data_dir / "cuts" / f"{name}.jsonl.gz"
    if not path.exists():
        parts = sorted(p.name.removesuffix(".jsonl.gz") for p in (data_dir / "cuts").glob("*.jsonl.gz"))
        raise UserError(f"set '{name}' is not a part of {data_dir}; it has {', '.join(parts) or 'no cuts'}")
    have = {u.id for u in utterances}
    missing = []
    with gzip.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            cut = json.loads(line)
            if not have.intersection([cut["id"], *(s["id"] for s in cut.get("supervisions", ()))]):
                missing.append(cut["id"])
    if missing:
        print(f"warning: set {name}: {len(missing)} utterances were not decoded: {listed(missing)}", file=sys.stderr)


def as_row(result: Score, rtf: float | None) -> dict[str, Any]:
    """The entry of one set and method in wer.json; rates in percent, rounded to 4 decimals."""

    def rounded(x: float | None) -> float | None:
        return None if x is None else round(x, 4)

    return {
        "wer": rounded(result.wer),
        "sub": result.sub,
        "del": result.dels,
        "ins": result.ins,
        "words": result.words,
        "ci95": [rounded(x) for x in result.ci95] if result.ci95 else None,
        "rtf": None if rtf is None else float(f"{rtf:.4g}"),
        "cer": rounded(result.cer),
        "utterances": len(result.utterances),
        "wrong_utterances": result.wrong_utterances,
    }


def table(results: Results) -> str:
    """The WER table as Markdown."""
    head = ("set", "method", "WER %", "95 % interval", "sub", "del", "ins", "words", "CER %", "RTF")
    rows = []
    for name, methods in results.items():
        for method, r in methods.items():
            interval = "{:.2f} - {:.2f}".format(*r["ci95"]) if r["ci95"] else "-"
            counts = [str(r[key]) for key in ("sub", "del", "ins", "words")]
            rtf = "-" if r["rtf"] is None else f"{r['rtf']:.4f}"
            rows.append([name, method, percent(r["wer"]), interval, *counts, percent(r["cer"]), rtf])
    widths = [max(len(row[i]) for row in [list(head), *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |\n"

    rule = "|" + "|".join("-" * (w + 2) if i < 2 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|\n"
    return line(head) + rule + "".join(map(line, rows))


def percent(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}"


def compared(ours: dict[str, dict[str, list[Utterance]]], other_dir: Path) -> Iterator[str]:
    """Lines comparing the sets and methods that two experiments have in common, utterance by utterance."""
    theirs = decoded(other_dir)
    for name, methods in ours.items():
        for method, b in methods.items():
            a = theirs.get(name, {}).get(method)
            if a is None:
                continue
            if [(u.id, u.ref) for u in a] != [(u.id, u.ref) for u in b]:
                raise UserError(f"set {name}, {method}: {other_dir} decoded other utterances or references")
            p = compare([u.ref for u in a], [u.hyp for u in a], [u.hyp for u in b])
            wers = f"{percent(score(a).wer)} -> {percent(score(b).wer)}"
            yield f"{name} {method}: {wers}, better with probability {p:.3f}"


@cli
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score every decoded set of an experiment: the WER table.")
    parser.add_argument("--exp-dir", type=Path, required=True, help="experiment with decode/<method>/<set>.jsonl")
    parser.add_argument("--data-dir", type=Path, help="prepared corpus: warns of utterances that were not decoded")
    parser.add_argument("--compare", type=Path, metavar="EXP", help="another experiment: is this one better, surely?")
    args = parser.parse_args(argv)
    hypotheses = decoded(args.exp_dir)
    results: Results = {}
    for name, methods in hypotheses.items():
        if args.data_dir is not None:
            check_complete(args.data_dir, name, next(iter(methods.values())))
        for method, utterances in methods.items():
            scored = score(utterances)
            rtf = real_time_factor(args.exp_dir / "decode" / method / f"{name}.stats.json")
            results.setdefault(name, {})[method] = as_row(scored, rtf)
            with atomic_write(args.exp_dir / "errors" / f"{name}.{method}.txt") as path:
                path.write_text(error_report(f"set {name}, {method}", scored), encoding="utf-8")
    with atomic_write(args.exp_dir / "wer.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    shown = table(results)
    with atomic_write(args.exp_dir / "wer.md") as path:
        path.write_text(shown, encoding="utf-8")
    print(shown, end="")
    if args.compare is not None:
        print("\n".join(compared(hypotheses, args.compare)) or f"no set and method in common with {args.compare}")


if __name__ == "__main__":
    main()
