"""Stage "score": the WER table of an experiment.

    .venv/bin/python -m local.wer --exp-dir exp/tiny [--data-dir data/tiny] [--unit auto] [--compare exp/other ...]

It reads EXP/decode/<method>/<set>.jsonl, one `{"id", "ref", "hyp", ...}` per line, and <set>.stats.json if there is one. It
writes EXP/wer.json, EXP/wer.md (printed too), EXP/wer.png and EXP/errors/<set>.<method>.txt. All of these hold the sets of
one average, the one that decoded last. Sets of earlier averages or options are listed below the table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from local.artifacts.decoded_sets import DecodedSet, find_sets
from local.common.atomic import write_text
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.locks import writes
from local.common.text_files import read_lines
from local.scoring.align import Score, Wanted, score, symbol_delays, unit_of, units, word_errors
from local.scoring.comparison import compare_experiments
from local.scoring.error_report import error_report
from local.scoring.hypotheses import check_complete, cost, is_oracle, read_hypotheses, read_sets
from local.scoring.speech import read_speech
from local.scoring.table import Results, earlier_table, marked_rate, origin, plot, table


def as_row(result: Score, rtf: float | None, memory: float | None, delay: float | None, oracle: bool) -> dict[str, Any]:
    """Return the entry of one set and method in wer.json: rates in percent, memory in MiB, delay in seconds."""

    def rounded(x: float | None) -> float | None:
        return None if x is None else round(x, 4)

    return {
        "unit": result.unit,
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
    """Return a paragraph with the language model's dev perplexity; "" if there is no such file."""
    if not path.is_file():
        return ""
    try:
        found = json.loads("\n".join(read_lines(path)))["dev"]["perplexity"]
        return f"\nLanguage model: perplexity of dev {found['per_token']:.2f} per token, {found['per_word']:.2f} per word.\n"
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        raise UserError(f"{path}: not by local/train_lm.py ({e})") from None


def wer_of(decoded: DecodedSet, wanted: Wanted) -> str:
    """Return the error rate of one decoded set by `marked_rate`, without an interval."""
    utterances = read_hypotheses(decoded.path, wanted)
    unit = unit_of((u.ref for u in utterances), wanted)
    words = sum(len(units(u.ref, unit)) for u in utterances)
    return marked_rate(100 * sum(word_errors(u.ref, u.hyp, unit) for u in utterances) / words if words else None, unit)


def scores_of(exp_dir: Path, sets: Sequence[DecodedSet], wanted: Wanted) -> dict[str, dict[str, Score]]:
    """Return the scores of decoded sets, by set and method. wanted: key score.unit."""
    found = read_sets(exp_dir, sets, dict.fromkeys((s.name for s in sets), wanted))
    unit = {name: unit_of((u.ref for u in next(iter(methods.values()))), wanted) for name, methods in found.items()}
    return {name: {method: score(us, unit[name]) for method, us in methods.items()} for name, methods in found.items()}


def write_reports(folder: Path, reports: dict[str, str]) -> None:
    """Write the error reports by name and remove those of sets and methods that are no longer in the table."""
    for name, text in reports.items():
        write_text(folder / name, text)
    for path in folder.glob("*.*.txt"):
        if path.name not in reports:
            path.unlink()


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, conf=False, exp_dir=True)
    parser.add_argument("--data-dir", type=Path, help="prepared data: warn of utterances that were not decoded")
    parser.add_argument(
        "--compare", type=Path, nargs="+", metavar="EXP", default=[], help="others: which is better, and is it significant?"
    )
    choices = get_args(Wanted)
    parser.add_argument(
        "--unit", choices=choices, default="auto", help="key score.unit: what an error rate counts (%(default)s)"
    )
    args = parser.parse_args(argv)
    writes(args.exp_dir)
    sets, earlier = find_sets(args.exp_dir)
    current = {(s.name, s.method): s for s in sets}
    scores = scores_of(args.exp_dir, sets, args.unit)
    results: Results = {}
    reports = {}
    for name, methods in scores.items():
        speech = {}
        if args.data_dir is not None:
            place = current[name, next(iter(methods))].prepared(args.data_dir)
            check_complete(*place, next(iter(methods.values())).utterances, name)
            speech = read_speech(*place)
        spoken = {i: found.words for i, found in speech.items()}
        for method, scored in methods.items():
            delays = symbol_delays(scored, spoken)
            costs = *cost(current[name, method]), sum(delays) / len(delays) if delays else None
            results.setdefault(name, {})[method] = as_row(scored, *costs, is_oracle(method))
            others = {m: other for m, other in methods.items() if m != method}
            reports[f"{name}.{method}.txt"] = error_report(f"set {name}, {method}", scored, others, speech)
    text = origin(sets) + table(results) + perplexity_line(args.exp_dir / "lm" / "perplexity.json")
    text += earlier_table([(s, wer_of(s, args.unit), current.get((s.name, s.method))) for s in earlier])
    write_reports(args.exp_dir / "errors", reports)
    write_text(args.exp_dir / "wer.json", json.dumps(results, indent=2) + "\n")
    write_text(args.exp_dir / "wer.md", text)
    print(text, end="")
    plot(results, args.exp_dir / "wer.png")
    for other in args.compare:
        theirs = scores_of(other, find_sets(other)[0], args.unit)
        for compared in compare_experiments(scores, theirs, str(other)):
            print(compared.line(str(args.exp_dir), str(other)))


if __name__ == "__main__":
    main()
