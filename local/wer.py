"""Score every decoded set of an experiment: the WER table.

    python local/wer.py --exp-dir exp/tiny [--data-dir data/tiny] [--compare exp/other]

reads EXP/decode/<method>/<set>.jsonl, one `{"id", "ref", "hyp", ...}` a line, and `<set>.stats.json` beside it where
there is one, and writes EXP/wer.json, EXP/wer.md (printed too), EXP/wer.png and EXP/errors/<set>.<method>.txt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.errors import UserError
from local.config.methods import METHODS
from local.scoring.align import Score, Utterance, compare, score, symbol_delay
from local.scoring.error_report import error_report
from local.scoring.hypotheses import check_complete, cost, decoded, lines_of, spoken_words
from local.scoring.table import Results, percent, plot, table


def as_row(result: Score, rtf: float | None, memory: float | None, delay: float | None, oracle: bool) -> dict[str, Any]:
    """The entry of one set and method in wer.json; rates in percent, rounded to 4 decimals; MiB; seconds."""

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
        "peak_memory_mib": rounded(memory),
        "symbol_delay": rounded(delay),
        "oracle": oracle,
    }


def perplexity_line(path: Path) -> str:
    """What the language model's dev perplexity is, as a paragraph; nothing where there is no such file."""
    if not path.is_file():
        return ""
    try:
        found = json.loads("".join(lines_of(path)))["dev"]["perplexity"]
        return f"\nLanguage model: perplexity of dev {found['per_token']:.2f} per token, {found['per_word']:.2f} per word.\n"
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not by local/train_lm.py ({e})") from None


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


@program
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score every decoded set of an experiment: the WER table.")
    parser.add_argument("--exp-dir", type=Path, required=True, help="experiment with decode/<method>/<set>.jsonl")
    parser.add_argument("--data-dir", type=Path, help="prepared corpus: warns of utterances that were not decoded")
    parser.add_argument("--compare", type=Path, metavar="EXP", help="another experiment: is this one better, surely?")
    args = parser.parse_args(argv)
    hypotheses = decoded(args.exp_dir)
    results: Results = {}
    for name, methods in hypotheses.items():
        spoken = {}
        if args.data_dir is not None:
            check_complete(args.data_dir, name, next(iter(methods.values())))
            spoken = spoken_words(args.data_dir, name)
        for method, utterances in methods.items():
            scored = score(utterances)
            costs = cost(args.exp_dir / "decode" / method / f"{name}.stats.json")
            oracle = method in METHODS and METHODS[method].oracle
            results.setdefault(name, {})[method] = as_row(scored, *costs, symbol_delay(scored, spoken), oracle)
            with atomic_write(args.exp_dir / "errors" / f"{name}.{method}.txt") as path:
                path.write_text(error_report(f"set {name}, {method}", scored), encoding="utf-8")
    with atomic_write(args.exp_dir / "wer.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    shown = table(results) + perplexity_line(args.exp_dir / "lm" / "perplexity.json")
    plot(results, args.exp_dir / "wer.png")
    with atomic_write(args.exp_dir / "wer.md") as path:
        path.write_text(shown, encoding="utf-8")
    print(shown, end="")
    if args.compare is not None:
        print("\n".join(compared(hypotheses, args.compare)) or f"no set and method in common with {args.compare}")


if __name__ == "__main__":
    main()
